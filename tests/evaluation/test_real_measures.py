"""What is kept of real images: each embedded once, each arm measured once, whatever comes between."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import picture

from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import measures, real, real_measures
from erasekit.evaluation.drawing import to_tensor
from erasekit.evaluation.judges import Judgement
from erasekit.evaluation.metrics.distribution import Features, frechet
from erasekit.evaluation.real_measures import check, measure
from erasekit.evaluation.rows import Row


class Near(fakes.NearJudge):
    """Counts what it embeds."""

    def __init__(self) -> None:
        self.seen = 0

    def judge(self, images: torch.Tensor, prompts) -> list[Judgement]:
        self.seen += len(images)
        return super().judge(images, prompts)


class Colours:
    """Instead of Inception: mean and spread of the channels."""

    name, weights_sha256, width = "inception-2015", "cd" * 32, 6

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, batches: Iterable[torch.Tensor]) -> Features:
        found = []
        for images in batches:
            self.seen += len(images)
            found.append(torch.cat([images.mean((2, 3)), images.std((2, 3))], 1).double().repeat(1, self.width // 6))
        return Features(self.name, torch.cat(found).numpy())


@pytest.fixture
def shown(tmp_path: Path) -> real.Real:
    place = tmp_path / "real"
    place.mkdir()
    for i in range(36):
        pixels = np.random.default_rng(i).integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + i % 3)).save(place / f"{i}.png")
    return real.folder(place)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[Row]]:
    found = []
    for arm, shift in (("base", 0), ("edit:e", 100)):
        for i in range(20):
            data = picture("cat" if i % 2 else "castle", i + shift)
            image = f"{arm.replace(':', '-')}-{i}.png"
            (tmp_path / image).write_bytes(data)
            status = "invalid" if (arm, i) == ("edit:e", 3) else "ok"
            found.append(Row(arm, f"p{i}", "unrelated" if i < 18 else "plain", "", "", [], None, None, 0, image,
                             hashlib.sha256(data).hexdigest(), status))  # fmt: skip
    return tmp_path, found


def test_every_image_is_embedded_once(run: tuple[Path, list[Row]], shown: real.Real, monkeypatch) -> None:
    folder, rows = run
    monkeypatch.setattr(measures, "BATCH", 10)
    near, said = Near(), []
    found = measure(folder, rows, shown, [near, fakes.RuleJudge()], None, progress=lambda *now: said.append(now))
    assert near.seen == 36 and said[-1] == (36, 36, "embeddings of real images")
    assert found == shown.facts | {"parts": [], "spaces": {"near-v1": [
        near.judge(one.pixels(), [""])[0].data["embedding"] for one in shown.pictures]}}  # fmt: skip
    again = Near()
    assert measure(folder, [], shown, [again], None) == found and again.seen == 0
    again.weights_sha256 = "2" * 64
    measure(folder, [], shown, [again], None)
    assert again.seen == 36, "other weights, other vectors"


def test_what_was_embedded_before_a_kill_is_kept(run: tuple[Path, list[Row]], shown: real.Real, monkeypatch) -> None:
    folder, rows = run
    monkeypatch.setattr(measures, "BATCH", 10)

    def kill(done: int, total: int, what: str) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folder, rows, shown, [Near()], None, progress=kill)
    rest = Near()
    measure(folder, rows, shown, [rest], None)
    assert rest.seen == 16


def test_an_image_that_the_judge_cannot_embed_is_named(run: tuple[Path, list[Row]], shown: real.Real) -> None:
    class Blind(Near):
        def judge(self, images, prompts):
            return [Judgement("failed", {"reason": "too bright"})]

    with pytest.raises(EraseKitError, match=r"near-v1 cannot embed the real image .*png \(too bright\): replace or delete"):
        measure(run[0], [], shown, [Blind()], None)


def test_sets_in_inceptions_features(run: tuple[Path, list[Row]], shown: real.Real) -> None:
    folder, rows = run
    colours = Colours()
    found = measure(folder, rows, shown, [], colours)["inception"]
    assert colours.seen == 36 + 18 + 17, "the real images once for all arms, and no image without a verdict"
    assert [(d["arm"], d["metric"], d["n"]) for d in found["distances"]] == [
        ("base", "fid_real", 18), ("base", "kid_real", 18), ("edit:e", "fid_real", 17), ("edit:e", "kid_real", 17)]  # fmt: skip
    kept = [r for r in rows if r.arm == "edit:e" and r.group == "unrelated" and r.status == "ok"]
    ours = Colours()([to_tensor([(folder / r.image).read_bytes() for r in kept])])
    fixed = Colours()(one.pixels() for one in shown.pictures)
    fid, kid = found["distances"][2:]
    assert fid["value"] == pytest.approx(frechet(ours, fixed).value, abs=1e-6) and kid["sd"] > 0
    assert all(d["floor"] is not None and d["note"].startswith("to 36 real images, real") for d in found["distances"])
    assert (found["name"], found["weights_sha256"], found["omitted"]) == (Colours.name, Colours.weights_sha256, [])
    again = Colours()
    assert measure(folder, rows, shown, [], again)["inception"] == found and again.seen == 0
    more = [*rows, *(Row(**{**vars(r), "arm": "edit:f"}) for r in kept)]
    measure(folder, more, shown, [], again)
    assert again.seen == 36 + 17, "an arm more, and only that"


def test_too_few_images_have_no_distance_in_inceptions_features(run: tuple[Path, list[Row]], shown: real.Real) -> None:
    colours = Colours()
    colours.width = 18
    found = measure(*run, shown, [], colours)["inception"]
    assert found["omitted"] == ["fid_real is not stated: 18 unrelated images, and 19 are needed",
                                "fid_real is not stated: 17 unrelated images, and 19 are needed"]  # fmt: skip
    assert [(d["arm"], d["metric"]) for d in found["distances"]] == [("base", "kid_real"), ("edit:e", "kid_real")]
    assert real_measures.refusal("Fréchet", "inception-2015", 50, 36, 36) == (
        "fid_real is not stated: 36 real images, and 37 are needed")  # fmt: skip


def test_without_features_real_images_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no judge of this run embeds images, .* --inception WEIGHTS") as error:
        check("emoji", [fakes.RuleJudge()], None)
    assert "\n" not in str(error.value)
    check("emoji", [fakes.RuleJudge(), fakes.NearJudge()], None)
    check("emoji", [fakes.RuleJudge()], Colours())  # pyright: ignore[reportArgumentType]
    check(None, [fakes.RuleJudge()], None)
