"""What compares pixels: pairs of valid images, each measured once, kept by the images' hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic import picture

from erasekit.errors import EraseKitError, ModelError
from erasekit.evaluation import measures
from erasekit.evaluation.drawing import to_tensor
from erasekit.evaluation.measures import Tools, measure, read, tools
from erasekit.evaluation.metrics.distribution import Features, frechet
from erasekit.evaluation.plan import Plan
from erasekit.evaluation.rows import Row


class Mean:
    """Instead of LPIPS: the mean absolute difference."""

    name, weights_sha256 = "LPIPS-mean-v0@full", "ab" * 32

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        self.pairs += len(before)
        return (before - after).abs().mean((1, 2, 3))


class Colours:
    """Instead of Inception: mean and spread of the channels."""

    name, weights_sha256, width = "inception-2015", "cd" * 32, 6

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, batches: Iterable[torch.Tensor]) -> Features:
        found = []
        for images in batches:
            self.seen.append(len(images))
            found.append(torch.cat([images.mean((2, 3)), images.std((2, 3))], 1).double())
        return Features(self.name, torch.cat(found).numpy())


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[Row]]:
    found = []
    for arm, shift in (("base", 0), ("edit:e", 100), ("edit:f", 0)):
        for i in range(20):
            data = picture("cat" if i % 2 else "castle", i + shift)
            image = f"{arm.replace(':', '-')}-{i}.png"
            (tmp_path / image).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            found.append(
                Row(arm, f"p{i}", "unrelated" if i < 17 else "plain", "", "", [], None, None, 0, image, sha256)
            )
    found[25] = replace(found[25], status="invalid")
    return tmp_path, found


def test_every_valid_pair_by_its_images(run: tuple[Path, list[Row]]) -> None:
    folder, rows = run
    found = measure(folder, rows, Tools(lpips=Mean()))["lpips"]
    base = {r.prompt: r for r in rows if r.arm == "base"}
    for r in rows[20:]:
        key = f"{base[r.prompt].sha256}-{r.sha256}"
        if r.status != "ok":
            assert key not in found["pairs"]
            continue
        a, b = (to_tensor([(folder / x.image).read_bytes()])[0] for x in (base[r.prompt], r))
        assert found["pairs"][key] == pytest.approx(float((a - b).abs().mean()), abs=1e-6)
        assert (found["pairs"][key] == 0) == (r.arm == "edit:f"), "the same images"
    assert (found["name"], found["weights_sha256"]) == (Mean.name, Mean.weights_sha256)


def test_what_is_known_is_not_measured_again(run: tuple[Path, list[Row]]) -> None:
    folder, rows = run
    first = measure(folder, rows[:40], Tools(lpips=Mean()))
    again, more = Mean(), Mean()
    assert measure(folder, rows[:40], Tools(lpips=again)) == first and again.pairs == 0
    whole = measure(folder, rows, Tools(lpips=more))
    assert more.pairs == len({r.sha256 for r in rows[40:]})
    assert first["lpips"]["pairs"].items() <= whole["lpips"]["pairs"].items()
    other = Mean()
    other.weights_sha256 = "ef" * 32
    measure(folder, rows[:40], Tools(lpips=other))
    assert other.pairs == 19, "other weights, other numbers"
    back = Mean()
    assert measure(folder, rows[:40], Tools(lpips=back)) == first and back.pairs == 0, "those of the first are kept"
    for kept in (folder / "measured").iterdir():
        kept.write_text("{cut")
    assert measure(folder, rows[:40], Tools(lpips=back)) == first and back.pairs == 19
    (folder / measures.FILE).write_text("{cut")
    with pytest.raises(EraseKitError, match=r"delete it and run"):
        read(folder)


def test_sets_in_inceptions_features(run: tuple[Path, list[Row]]) -> None:
    folder, rows = run
    found = measure(folder, rows, Tools(inception=Colours()))["inception"]
    assert [(d["arm"], d["metric"], d["n"]) for d in found["distances"]] == [
        ("edit:e", "fid", 16), ("edit:e", "kid", 16), ("edit:f", "fid", 17), ("edit:f", "kid", 17)]  # fmt: skip
    ours, base = (
        [r for r in rows if r.arm == arm and r.group == "unrelated" and r.prompt != "p5"] for arm in ("edit:e", "base")
    )
    sets = [Colours()([to_tensor([(folder / r.image).read_bytes() for r in part])]) for part in (ours, base)]
    assert found["distances"][0]["value"] == pytest.approx(frechet(*sets).value, abs=1e-7)
    assert found["distances"][2]["value"] == pytest.approx(0, abs=1e-7) and found["omitted"] == []
    few = measure(folder, [r for r in rows if r.prompt != "p0"], Tools(inception=Colours()))["inception"]
    assert few["omitted"] == ["fid is not stated: 15 pairs of images, and 16 are needed",
                              "kid is not stated: 15 pairs of images, and 16 are needed"]  # fmt: skip
    assert [d["arm"] for d in few["distances"]] == ["edit:f", "edit:f"]


def test_pixels_of_few_images_at_a_time_and_the_unedited_ones_once(run: tuple[Path, list[Row]], monkeypatch) -> None:
    folder, rows = run
    whole = measure(folder, rows, Tools(inception=Colours()))
    shutil.rmtree(folder / "measured")
    monkeypatch.setattr(measures, "BATCH", 5)
    colours, said = Colours(), []
    found = measure(folder, rows, Tools(inception=colours), progress=lambda *now: said.append(now))
    assert colours.seen == [5, 5, 5, 2, 5, 5, 5, 1, 5, 5, 5, 2], "17 of base, 16 of edit:e, 17 of edit:f"
    assert [one["value"] for one in found["inception"]["distances"]] == pytest.approx(
        [one["value"] for one in whole["inception"]["distances"]], abs=1e-7
    )
    assert said[0] == (5, 50, "features of images") and said[-1] == (50, 50, "features of images")


@pytest.mark.parametrize(("stop", "left"), [(10, 29), (19, 20), (29, 10)])
def test_what_was_measured_before_a_kill_is_kept(
    run: tuple[Path, list[Row]], monkeypatch, stop: int, left: int
) -> None:
    folder, rows = run
    monkeypatch.setattr(measures, "BATCH", 10)
    said, rest = [], Mean()

    def kill(done: int, total: int, what: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folder, rows, Tools(lpips=Mean()), progress=kill)
    found = measure(folder, rows, Tools(lpips=rest), progress=lambda *now: said.append(now))
    assert rest.pairs == left and said[-1] == (39, 39, "pairs of images")
    shutil.rmtree(folder / "measured")
    assert found == measure(folder, rows, Tools(lpips=Mean()))


def test_an_arm_s_distances_are_kept_before_the_next_is_walked(run: tuple[Path, list[Row]]) -> None:
    folder, rows = run

    def kill(done: int, total: int, what: str) -> None:
        if done == total:  # edit:f is seen, and not yet measured
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folder, rows, Tools(inception=Colours()), progress=kill)
    rest = Colours()
    found = measure(folder, rows, Tools(inception=rest))["inception"]
    assert sum(rest.seen) == 17 + 17 and [one["arm"] for one in found["distances"]] == ["edit:e"] * 2 + ["edit:f"] * 2


def test_without_weights_there_is_nothing(run: tuple[Path, list[Row]]) -> None:
    folder, rows = run
    assert tools(Plan(("tiny",))) == Tools() and Tools().names == []
    assert measure(folder, rows, Tools()) == {} == read(folder)
    for key in ("lpips", "inception"):
        with pytest.raises(ModelError, match="not at hand"):
            tools(Plan(("tiny",), **{key: folder / "none.pth"}))
