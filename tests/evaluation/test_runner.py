"""The runner over a tiny model: resumes to the same bytes, redraws what is damaged, reuses the baseline, fails in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache as cache_of
from pathlib import Path

import edits
import fakes
import pytest
import tiny
import torch
from PIL import Image

from erasekit import models
from erasekit.edit import Edit
from erasekit.errors import BaseMismatchError, EditError, EraseKitError, UsageError
from erasekit.evaluation import aggregate, cache, drawing, judges, measures, results, rows, runner, shards, suites
from erasekit.evaluation.executors import Local
from erasekit.evaluation.plan import Entry, Plan, files
from erasekit.evaluation.worker import Brush, Pinned, Task, Worker
from erasekit.files import file_sha256

MADE = ("run.json", "texts.json", "rows.jsonl", "results.json")  # the page shows times


LOAD, DRAW = cache_of(models.load), drawing.draw


def set_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(suites, "load_suite", lambda name, *, prompts=None: fakes.suite(name))
    patch.setattr(judges, "get", fakes.get)
    patch.setattr(drawing, "draw", fakes.draw)
    patch.setattr(models, "load", LOAD)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch)


@pytest.fixture(scope="module")
def edit_file(sd1_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of text encoder and U-Net, for the folder's model."""
    pipe = models.load(sd1_folder)
    path = tmp_path_factory.mktemp("edits") / "mine.safetensors"
    edits.edit(pipe).save(path)
    return path


@pytest.fixture
def plan(sd1_folder: Path, edit_file: Path) -> Plan:
    return Plan(("tiny",), model=str(sd1_folder), edits=files([edit_file]), batch=4)


class Counting(Local):
    """In this process; counts what is drawn, and stops after `most` shards as a kill would."""

    def __init__(self, most: int = 10**9) -> None:
        self.most, self.shards, self.images, self.judged = most, 0, 0, 0

    def run(self, tasks):
        worker = Worker()
        for task in tasks:
            if self.shards == self.most:
                raise KeyboardInterrupt
            self.shards += 1
            self.images += 0 if task.pngs else len(task.shard.items)
            self.judged += len(task.shard.items)
            yield worker.run(task)


def run(plan: Plan, out: Path, executor=None, **options) -> dict:
    runner.evaluate(plan, out, executor=executor or Counting(), command="erasekit evaluate ...", **options)
    return json.loads((out / "results.json").read_text())


def made(out: Path) -> dict[str, bytes]:
    found = {name: (out / name).read_bytes() for name in MADE}
    return found | {str(path.relative_to(out)): path.read_bytes() for path in out.glob("images/*/*.png")}


@pytest.fixture(scope="module")
def whole(sd1_folder: Path, edit_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted run; read it only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch)
        run(Plan(("tiny",), model=str(sd1_folder), edits=files([edit_file]), batch=4), out)
    return out


def value(found: dict, metric: str, arm: str, group: str | None = None) -> float:
    (one,) = [m for m in found["metrics"] if (m["metric"], m["arm"], m["group"], m["target"]) == (metric, arm, group, None)]
    return one["value"]


# -- what it makes ------------------------------------------------------------------------------------------------


def test_all_arms_and_rows_in_canonical_order(whole: Path) -> None:
    found = rows.read(whole / "rows.jsonl")
    arms = ["base", "edit:mine", "random:mine"]
    shots = [(p.id, seed) for p in fakes.PROMPTS for seed in p.seeds]
    assert [(row.arm, *row.shot) for row in found] == [(arm, *shot) for arm in arms for shot in shots]
    for row in found:
        with Image.open(whole / row.image) as image:
            assert image.size == (32, 32)
        assert set(row.judgements) == {"rule-v1[3]@0.5", "near-v1"}
    assert len({row.sha256 for row in found}) > 2 * fakes.COUNT, "the arms draw different images"


def test_results_are_valid_and_recomputed_bit_for_bit(whole: Path) -> None:
    found = results.load(whole)
    assert results.to_bytes(aggregate.recompute(whole)) == (whole / "results.json").read_bytes()
    assert found["counts"]["base"] == {"ok": fakes.COUNT, "failed": 0, "invalid": 0}
    assert [arm["images"] for arm in found["arms"]] == [fakes.COUNT] * 3
    assert found["arms"][1]["edit"]["file"] == "mine.safetensors"
    assert str(whole.parent) not in (whole / "results.json").read_text(), "no path of this machine in the results"


def test_the_unedited_model_keeps_everything(whole: Path) -> None:
    found = results.load(whole)
    base = [m for m in found["metrics"] if m["arm"] == "base" and m["metric"] in ("specificity", "fidelity")]
    assert base and all(m["value"] == 1 for m in base)
    naive = [row for row in rows.read(whole / "rows.jsonl") if row.arm == "base" and row.group == "plain"]
    shown = sum("cat" in row.judgements["rule-v1[3]@0.5"]["found"] for row in naive)
    assert value(found, "efficacy", "base") == 1 - shown / len(naive)


def test_a_worker_draws_what_the_plain_pipeline_draws(sd1_folder: Path, edit_file: Path, monkeypatch) -> None:
    """It encodes prompts apart from the pipeline's call: under an edit that must be the edited text encoder."""
    monkeypatch.setattr(drawing, "draw", DRAW)
    pipe, edit = models.load(sd1_folder), Edit.load(edit_file)
    drawn, file = [], Pinned(edit_file, file_sha256(edit_file))
    for scale, brush in ((0.0, Brush(str(sd1_folder))), (1.0, Brush(str(sd1_folder), file))):
        (shard,) = shards.split("base", fakes.PROMPTS[:1], size=4, context={})
        done = Worker().run(Task("key", shard, brush, fakes.suite().sampling, (("rule", "0" * 64),)))
        with edit.applied(pipe, scale=scale), torch.no_grad():
            plain = pipe("a cat", generator=torch.Generator().manual_seed(1), num_inference_steps=2, guidance_scale=3.0,
                         output_type="pt").images[0]  # fmt: skip
        drawn.append(drawing.to_tensor(done.pngs)[1])
        assert (drawn[-1] - plain).abs().max() < 2 / 255
        assert [drawing.label_of(png) for png in done.pngs] == [shard.label(item) for item in shard.items]
    assert (drawn[0] - drawn[1]).abs().max() > 2 / 255, "the edit changes the image"


def test_a_batch_of_texts_is_encoded_once_by_each_state_of_the_encoder(sd1_folder: Path, edit_file: Path, monkeypatch) -> None:
    """And the images are those of a worker that draws the shard first: what was drawn before leaves no trace."""
    monkeypatch.setattr(drawing, "draw", DRAW)
    pipe, encoded = models.load(sd1_folder), []
    real = type(pipe).encode_prompt

    def encode_prompt(self, prompt, *given, **options):
        if isinstance(prompt, list):
            encoded.append(tuple(prompt))
        return real(self, prompt, *given, **options)

    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    own = Brush(str(sd1_folder))
    edited = replace(own, edit=Pinned(edit_file, file_sha256(edit_file)))
    prompt = replace(fakes.PROMPTS[0], seeds=(0, 1, 2))
    both = shards.split("base", [prompt], size=2, context={})
    tasks = [Task("k", shard, brush, fakes.suite().sampling, ()) for brush in (own, edited) for shard in both]
    worker = Worker()
    drawn = [worker.run(task).pngs for task in tasks]
    assert encoded == [(prompt.text,), ("",)] * 2, "two shards each, once by the model and once by the edited one"
    assert [Worker().run(task).pngs for task in (tasks[1], tasks[3])] == [drawn[1], drawn[3]]


def test_times_are_beside_the_results(whole: Path) -> None:
    times = json.loads((whole / "timing.json").read_text())
    assert times["images"].keys() == {"base", "edit:mine", "random:mine"} and min(times["images"].values()) > 0


def test_what_compares_pixels_is_kept_beside_the_rows(plan: Plan, whole: Path, tmp_path: Path, monkeypatch) -> None:
    class Mean:
        name, weights_sha256 = "LPIPS-mean-v0@full", "ab" * 32

        def __call__(self, before, after):
            return (before - after).abs().mean((1, 2, 3))

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with monkeypatch.context() as patch:
        patch.setattr(measures, "tools", lambda plan: measures.Tools(lpips=Mean()))
        again = Counting()
        found = run(plan, out, again)
    assert again.judged == 0 and found["extractors"] == [{"name": Mean.name, "weights_sha256": Mean.weights_sha256}]
    assert value(found, "lpips_e(mean-v0@full)", "edit:mine") > 0 and (out / measures.FILE).exists()
    assert results.to_bytes(aggregate.recompute(out)) == (out / "results.json").read_bytes()
    (out / measures.FILE).rename(tmp_path / "kept")
    with pytest.raises(EraseKitError, match=r"measures.json does not exist: run the same"):
        aggregate.recompute(out)
    (tmp_path / "kept").rename(out / measures.FILE)
    before, again = made(out), Counting()
    with pytest.raises(EraseKitError, match=r"holds distances by LPIPS-mean-v0@full \(give its weights again"):
        run(plan, out, again)
    assert made(out) == before and again.shards == 0, "what the weights gave is not lost without a word"
    (out / "results.json").unlink()
    run(plan, out)
    assert made(out) == made(whole), "who deletes the results wants others"
    assert json.loads((out / measures.FILE).read_text()).keys() == {"text"}
    monkeypatch.setattr(measures, "tools", lambda plan: measures.Tools(lpips=Mean()))
    monkeypatch.setattr(Mean, "__call__", None)
    assert value(run(plan, out), "lpips_e(mean-v0@full)", "edit:mine") > 0, "no pair is measured twice"


def test_an_arm_is_called_after_what_it_does(plan: Plan, tmp_path: Path) -> None:
    chosen = replace(plan.edits[0], name="strong")
    twice = replace(plan.edits[0], name="mine-2", file=tmp_path / "mine-2.safetensors")
    shutil.copy(plan.edits[0].file, twice.file)
    found = run(replace(plan, edits=(plan.edits[0], twice, chosen), control="none"), tmp_path / "out")
    about = Edit.load(twice.file).describe()
    name = f"{about['method']} {about['targets'][0]}->{about['anchors'][0]}"
    assert [(arm["arm"], arm["label"]) for arm in found["arms"][1:]] == [
        ("edit:mine", name), ("edit:mine-2", f"{name} 2"), ("edit:strong", "strong")]  # fmt: skip
    assert found["warnings"] == [
        f"no random control was drawn for {name}, {name} 2, strong, so damage is not told from erasure"
    ]


# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 4, 11])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(plan: Plan, whole: Path, tmp_path: Path, most: int) -> None:
    killed, rest = Counting(most), Counting()
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "a" / "out", killed)
    run(plan, tmp_path / "a" / "out", rest)
    assert killed.images + rest.images == 3 * fakes.COUNT, "no finished image is drawn again"
    assert made(tmp_path / "a" / "out") == made(whole)


def test_a_finished_run_draws_and_judges_nothing(plan: Plan, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    again = Counting()
    run(plan, tmp_path / "out", again)
    assert (again.images, again.judged) == (0, 0) and made(tmp_path / "out") == made(whole)


def test_damaged_files_are_found_and_redone(plan: Plan, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    images = sorted(out.glob("images/edit-mine/*.png"))
    images[0].write_bytes(images[0].read_bytes()[:-30])  # truncated
    lines = sorted(out.glob("shards/*.jsonl"))[0]
    lines.write_bytes(lines.read_bytes()[:-10])
    (out / "rows.jsonl").unlink()
    again = Counting()
    run(plan, out, again)
    assert 0 < again.images <= 4 and again.judged <= 8, "one shard is drawn again, one is only judged again"
    assert made(out) == made(whole)


def test_images_without_rows_are_judged_and_not_drawn(plan: Plan, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "shards")
    again = Counting()
    run(plan, tmp_path / "out", again, baseline=tmp_path / "base")
    assert again.images == fakes.COUNT, "only the base, which belongs to another folder now, is drawn"
    assert made(tmp_path / "out") == made(whole)


def test_the_images_of_one_shard_at_a_time_are_read(plan: Plan, whole: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "shards")
    read, real = [], cache.Store.pngs
    monkeypatch.setattr(cache.Store, "pngs", lambda store, shard: read.append(shard) or real(store, shard))

    class Watching(Counting):
        def run(self, tasks):
            for done in super().run(tasks):
                assert len(read) == self.shards
                yield done

    run(plan, tmp_path / "out", Watching())
    assert len(read) > 5


def test_a_full_disk_is_one_line_and_loses_nothing(plan: Plan, whole: Path, tmp_path: Path, monkeypatch) -> None:
    written, real = [], cache.write_whole

    def full(path: Path, data: bytes, *, swept: bool = False) -> None:
        if len(written) >= 20:
            raise EditError(f"{path} cannot be written: no space left on device; choose another place")
        written.append(path)
        real(path, data, swept=swept)

    monkeypatch.setattr(cache, "write_whole", full)
    with pytest.raises(EraseKitError, match=r"no space left on device: make room .*finished is kept") as error:
        run(plan, tmp_path / "a" / "out")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(cache, "write_whole", real)
    rest = Counting()
    run(plan, tmp_path / "a" / "out", rest)
    assert rest.images < 3 * fakes.COUNT - 8 and made(tmp_path / "a" / "out") == made(whole)


# -- baseline -----------------------------------------------------------------------------------------------------


def test_the_baseline_is_drawn_once_for_all_edits(plan: Plan, sd1, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    (2.0 * Edit.load(plan.edits[0].file)).save(other)
    first, second = Counting(), Counting()
    run(replace(plan, control="none"), tmp_path / "first", first)
    run(replace(plan, control="none", edits=files([other])), tmp_path / "second", second)
    assert (first.images, second.images) == (2 * fakes.COUNT, fakes.COUNT)
    base = [[row for row in rows.read(tmp_path / name / "rows.jsonl") if row.arm == "base"] for name in ("first", "second")]
    assert base[0] == base[1] and (tmp_path / "second" / base[1][0].image).is_file()


def test_a_baseline_of_another_model_is_refused(plan: Plan, sd2_folder: Path, tmp_path: Path) -> None:
    base = replace(plan, edits=(), targets=("cat",))
    run(base, tmp_path / "a", baseline=tmp_path / "base")
    with pytest.raises(EraseKitError, match=r"was drawn by another model .*--baseline") as error:
        run(replace(base, model=str(sd2_folder)), tmp_path / "b", baseline=tmp_path / "base")
    assert "\n" not in str(error.value)


# -- plans --------------------------------------------------------------------------------------------------------


def test_several_suites_and_fitted_edits(plan: Plan, tmp_path: Path) -> None:
    entry = Entry("uce-cat", method="uce", targets=("cat",), anchor=("dog",), retain=("fox",), seed=3)
    both = replace(plan, suites=("tiny", "other/tiny"), edits=(entry,), control="none", sha256="5e" * 32)
    found = runner.evaluate(both, tmp_path / "out", executor=Local())
    assert found == [tmp_path / "out" / "tiny" / "results.json", tmp_path / "out" / "other-tiny" / "results.json"]
    (fitted,) = (tmp_path / "out" / "edits").glob("*.safetensors")
    before = fitted.stat().st_mtime_ns
    again = Counting()
    runner.evaluate(both, tmp_path / "out", executor=again)
    assert (again.images, fitted.stat().st_mtime_ns) == (0, before), "a fitted edit is not fitted again"
    assert "fit" in json.loads((found[0].parent / "timing.json").read_text())
    written = results.load(found[0])
    edit = written["arms"][1]["edit"]
    assert (edit["method"], edit["retain"], edit["seed"]) == ("uce", ["fox"], 3), "all that the edit was fitted from"
    assert written["created_by"]["plan_sha256"] == "5e" * 32


def test_models_that_never_knew(plan: Plan, tmp_path: Path) -> None:
    tiny.sd1(seed=3).save_pretrained(tmp_path / "never")
    (tmp_path / "never/without.json").write_text('{"concepts": ["cat"], "styles": ["flat"]}')
    found = run(replace(plan, never=(f"cat={tmp_path / 'never'}",)), tmp_path / "out")
    arm = found["arms"][-1]
    asked = fakes.COUNT - 3  # one prompt of three seeds asks for the flat style, which it never knew either
    assert (arm["arm"], arm["kind"], arm["images"], arm["edit"]) == ("never:cat", "never", asked, None)
    assert any("never knew cat: not asked 1 of 6 prompts" in line for line in found["warnings"])
    drawn = {(row.arm, *row.shot): row.sha256 for row in rows.read(tmp_path / "out" / "rows.jsonl")}
    assert drawn["never:cat", "plain/cat/1", 0] != drawn["base", "plain/cat/1", 0]


def test_without_edit_or_target_there_is_nothing_to_measure(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to measure: give --edit"):
        run(replace(plan, edits=()), tmp_path / "out")


def test_two_suites_of_one_name_are_refused(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(suites, "load_suite", lambda name, *, prompts=None: fakes.suite("Mine" if name == "a" else "mine"))
    counting = Counting()
    with pytest.raises(UsageError, match="two suites are called 'mine'"):
        run(replace(plan, suites=("a", "b")), tmp_path / "out", counting)
    assert counting.shards == 0 and not (tmp_path / "out").exists()


def test_each_suite_has_its_own_prompt_file(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    seen = {}

    def load_suite(name: str, *, prompts: Path | None = None):
        seen[name] = prompts
        return fakes.suite(name)

    monkeypatch.setattr(suites, "load_suite", load_suite)
    two = replace(plan, suites=("a", "b"), control="none", prompts={"b": Path("b.csv")})
    runner.evaluate(two, tmp_path / "out", executor=Counting())
    assert seen == {"a": None, "b": Path("b.csv")}


def test_two_models_that_never_knew_the_same_are_refused(plan: Plan, sd1_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never knew cat twice"):
        run(replace(plan, never=(f"cat={sd1_folder}", f"cat={sd1_folder}")), tmp_path / "out")


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_an_edit_of_another_model_is_refused_early(plan: Plan, sd1_folder: Path, tmp_path: Path) -> None:
    pipe = tiny.sd1(seed=5)
    edits.edit(pipe).save(tmp_path / "foreign.safetensors")
    counting = Counting()
    with pytest.raises(BaseMismatchError):
        run(replace(plan, edits=files([tmp_path / "foreign.safetensors"])), tmp_path / "out", counting)
    assert counting.shards <= 2, "long before the run is over"


def test_an_edit_that_is_overwritten_meanwhile_ends_the_run_and_poisons_nothing(plan: Plan, tmp_path: Path) -> None:
    path, out = tmp_path / "mine.safetensors", tmp_path / "a" / "out"
    first = Edit.load(plan.edits[0].file)
    first.save(path)
    own = replace(plan, edits=files([path]), control="none")

    class Overwriting(Counting):
        def run(self, tasks):
            (2.0 * first).save(path)
            yield from super().run(tasks)

    with pytest.raises(EditError, match=r"mine.safetensors was overwritten after the run began: run the same") as error:
        run(own, out, Overwriting())
    assert "\n" not in str(error.value)
    again, clean = Counting(), Counting()
    found = run(own, out, again)
    assert again.images >= fakes.COUNT, "nothing of the first edit stands for the second"
    run(own, tmp_path / "b" / "out", clean)
    assert made(out) == made(tmp_path / "b" / "out") and found["arms"][1]["edit"]["sha256"] == file_sha256(path)


def test_images_that_are_not_finite_count_as_invalid_and_never_as_erased(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    def black(pipe, prompts, seeds, sampling, **options):
        return torch.zeros((len(seeds), 32, 32, 3), dtype=torch.uint8)

    pipe = tiny.sd1()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    sampling = fakes.suite().sampling
    assert int(DRAW(pipe, ["a cat"], [0], sampling).max()) == 0, "what is not finite comes out black"
    monkeypatch.setattr(drawing, "draw", black)
    found = run(replace(plan, control="none"), tmp_path / "out")
    assert found["counts"]["edit:mine"] == {"ok": 0, "failed": 0, "invalid": fakes.COUNT}
    assert not [m for m in found["metrics"] if m["metric"] == "efficacy"], "no rate rests on images that are none"
    assert any("black or constant" in line for line in found["warnings"])


def test_a_judge_that_raises_ends_the_run(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    def broken(self, images, prompts):
        raise ZeroDivisionError("the judge fell over")

    monkeypatch.setattr(fakes.RuleJudge, "judge", broken)
    with pytest.raises(ZeroDivisionError):
        run(plan, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_target_that_no_judge_can_name_is_refused_before_anything_is_drawn(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    def label(self, word):
        raise UsageError(f"the judge {self.name} does not know {word!r}: use one of its labels")

    monkeypatch.setattr(fakes.RuleJudge, "label", label, raising=False)
    counting = Counting()
    with pytest.raises(UsageError, match="cannot measure 'cat'"):
        run(plan, tmp_path / "out", counting)
    assert counting.images == 0


def test_an_unknown_scheduler_is_one_line(sd1) -> None:
    with pytest.raises(UsageError, match="NoSuchScheduler"):
        drawing.use_scheduler(sd1, "NoSuchScheduler")
    drawing.use_scheduler(sd1, "EulerDiscreteScheduler")
    assert type(sd1.scheduler).__name__ == "EulerDiscreteScheduler"
    assert sd1.scheduler.config.beta_end == 0.012, "the model's own noise schedule stays"


def test_a_shard_never_crosses_a_group_or_target_or_guidance() -> None:
    one, *others = fakes.PROMPTS
    prompts = [one, replace(one, id="x", guidance=9.0), *others]
    cut = shards.split("base", prompts, size=3, context={})
    for shard in cut:
        assert len({(i.prompt.group, i.prompt.target, i.prompt.guidance) for i in shard.items}) == 1
        assert len(shard.items) <= 3
    items = [(item.prompt.id, item.seed) for shard in cut for item in shard.items]
    assert items == [(p.id, seed) for p in prompts for seed in p.seeds]
    assert len({item.image for shard in cut for item in shard.items}) == len(items)
    assert len({shard.digest for shard in cut}) == len(cut)


def test_progress_counts_every_image_once(plan: Plan, tmp_path: Path) -> None:
    said = []
    run(replace(plan, control="none"), tmp_path / "out", progress=lambda done, total, what: said.append((done, total, what)))
    *images, last = said
    assert images[0] == (0, 2 * fakes.COUNT, "images") and images[-1][0] == 2 * fakes.COUNT
    assert [done for done, _, _ in images] == sorted({done for done, _, _ in images})
    assert last == (1, 1, "edits in sentences")


def photographs(place: Path, *, last: int = 15) -> Path:
    place.mkdir(exist_ok=True)
    for i in [*range(15), last]:
        noise = torch.rand(24, 20, 3, generator=torch.Generator().manual_seed(i)) * 255
        Image.fromarray(noise.to(torch.uint8).numpy()).save(place / f"{min(i, 15)}.png")
    return place


def test_real_images_are_a_part_of_the_run(plan: Plan, whole: Path, tmp_path: Path, monkeypatch) -> None:
    out, place = tmp_path / "out", photographs(tmp_path / "photographs")
    shutil.copytree(whole, out)
    again, planned = Counting(), replace(plan, real=str(place), sha256="ab" * 32)
    found = run(planned, out, again)
    assert again.judged == 0 and found["real"]["name"] == "photographs" and found["real"]["images"] == 16
    assert "kid_real(near-v1) is not stated: 5 unrelated images, and 16 are needed" in found["omitted"]
    assert results.to_bytes(aggregate.recompute(out)) == (out / "results.json").read_bytes()
    assert found["real"]["sha256"][:12] in (out / "report.html").read_text()
    assert str(tmp_path) not in (out / "results.json").read_text() + (out / "run.json").read_text()
    before = made(out)
    with monkeypatch.context() as patch:
        patch.setattr(fakes.NearJudge, "judge", lambda *given: pytest.fail("no image is embedded twice"))
        run(planned, out)
    assert made(out) == before
    for other in (replace(planned, real=None), replace(planned, real=str(photographs(tmp_path / "other", last=16)))):
        with pytest.raises(EraseKitError, match=r"holds distances to the real images photographs, .*give --real with the same"):
            run(other, out)
    assert made(out) == before
    changed = run(replace(planned, real=str(photographs(place, last=16))), tmp_path / "second")
    plans = [one["created_by"]["plan_sha256"] for one in (found, changed, run(replace(planned, real=None), tmp_path / "third"))]
    assert len(set(plans)) == 3 and plans[2] == "ab" * 32 and changed["real"]["sha256"] != found["real"]["sha256"]
    assert made(tmp_path / "third")["rows.jsonl"] == made(whole)["rows.jsonl"]


def test_a_damaged_real_image_ends_the_run_before_it_draws(plan: Plan, tmp_path: Path) -> None:
    place, nothing = photographs(tmp_path / "real"), Counting()
    (place / "7.png").write_bytes((place / "7.png").read_bytes()[:-99])
    with pytest.raises(UsageError, match=r"7.png cannot be read: it is damaged or no image"):
        run(replace(plan, real=str(place)), tmp_path / "out", nothing)
    with pytest.raises(UsageError, match="no judge of this run embeds images"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "load_suite", lambda name, *, prompts=None: fakes.suite(name, judges=("rule",)))
        run(replace(plan, real=str(place)), tmp_path / "out", nothing)
    assert nothing.shards == 0 and not (tmp_path / "out").exists()


def test_a_suite_names_its_own_real_images(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    """`emoji/quality`, shortened: every arm has its distance to the references, the unedited model too."""
    from erasekit.evaluation.suites.load import load_suite

    monkeypatch.undo()
    monkeypatch.setattr(drawing, "draw", fakes.draw)
    monkeypatch.setattr(models, "load", LOAD)
    real = load_suite("emoji/quality")
    short = replace(real, blocks=tuple(replace(block, count=8) for block in real.blocks), judges=("emoji-clip",), seeds=(0, 1))
    monkeypatch.setattr(suites, "load_suite", lambda name, *, prompts=None: short)
    found = run(replace(plan, suites=("emoji/quality",)), tmp_path / "out")
    assert found["real"]["name"] == "emoji" and found["real"]["images"] == 48
    own = [m for m in found["metrics"] if m["metric"] == "kid_real(emoji-clip-v1[128])"]
    assert [(m["arm"], m["n"]) for m in own] == [("base", 24), ("edit:mine", 24), ("random:mine", 24)]
    assert all(m["value"] > 5 * abs(m["floor"]) and m["sd"] > 0 for m in own), [(m["value"], m["floor"]) for m in own]
    assert any(line.startswith("frechet_real(emoji-clip-v1[128]) is not stated: 24 unrelated") for line in found["omitted"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "kid_real(emoji-clip-v1[128])" in page and "to 48 real images, emoji" in page
    assert results.to_bytes(aggregate.recompute(tmp_path / "out")) == (tmp_path / "out" / "results.json").read_bytes()


def test_a_real_suite_with_its_real_judges(plan: Plan, tmp_path: Path, monkeypatch) -> None:
    """`emoji/object`, shortened: its prompts, labels and judges fit the runner and the aggregates."""
    from erasekit.evaluation.suites.load import load_suite

    monkeypatch.undo()
    monkeypatch.setattr(drawing, "draw", fakes.draw)
    monkeypatch.setattr(models, "load", LOAD)
    real = load_suite("emoji/object")
    short = replace(real, blocks=tuple(replace(block, count=min(block.count, 2)) for block in real.blocks), judges=("emoji",))
    monkeypatch.setattr(suites, "load_suite", lambda name, *, prompts=None: short)
    found = run(replace(plan, suites=("emoji/object",), control="none"), tmp_path / "out")
    kept = [m for m in found["metrics"] if (m["metric"], m["arm"]) == ("specificity", "base")]
    assert all(m["value"] == 1 for m in kept), "none where the judge finds nothing in the noise that is drawn here"
    assert found["labels"] == {"cat": ["cat"]} and sum(found["counts"]["base"].values()) >= 10
    assert {m["metric"] for m in found["metrics"]} >= {"efficacy", "generality", "target_rate", "valid_rate"}
    assert results.to_bytes(aggregate.recompute(tmp_path / "out")) == (tmp_path / "out" / "results.json").read_bytes()
