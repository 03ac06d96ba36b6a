"""M-ErasureBench: rates and gaps by hand, white-box equals black-box without an edit, halves, controls, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import edits
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from erasekit.attacks import Case, _bench, _bench_rates, m_erasurebench
from erasekit.attacks._bench import CONCEPT_SEEDS, by_latent, by_word, collected, orders, rearranged, taught
from erasekit.attacks._bench_rates import outdone
from erasekit.attacks._bench_scenarios import SCENARIOS, TEMPLATES, MErasureBenchConfig, chosen
from erasekit.attacks._inversion import BLIND
from erasekit.attacks.base import Outcome, Spent
from erasekit.attacks.ladder import kept
from erasekit.attacks.latent_inversion import LatentInversionConfig
from erasekit.attacks.m_erasurebench import MErasureBench, check_model, counted, gap, halves
from erasekit.attacks.sight import Seen, Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.cli import main
from erasekit.cli.attack_bench import others, summary
from erasekit.errors import UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import Judgement
from erasekit.evaluation.statistics import wilson

QUICK = MErasureBenchConfig(images=4, seeds=1, steps=2, rounds=1, tiles=2, word_steps=2, word_batch=2, initial="photo")
OTHERS = ("a photo of dog", "a fox")
ROWS = [scenario.row for scenario in SCENARIOS]


class Fickle:
    """Finds "cat" in two of three pictures, by the sum of their bytes."""

    name, weights_sha256, licence, labels = "fickle", "", "", ("cat", "dog", "fox")

    @staticmethod
    def sees(picture: np.ndarray) -> bool:
        return int(picture.astype(np.int64).sum()) % 3 > 0

    def judge(self, images, prompts):
        pixels = (images * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        return [Judgement("ok", {"scores": {}, "found": ["cat"] * self.sees(one)}) for one in pixels]


class Colours:
    """A perfect judge of plain colours: red is a cat, black is no picture."""

    name, weights_sha256, licence, labels = "colours", "", "", ("cat",)

    def judge(self, images, prompts):
        return [self.one(*image.mean((1, 2)).tolist()) for image in images]

    def one(self, red, green, blue):
        if red + green + blue == 0:
            return Judgement("invalid", {"reason": "black"})
        return Judgement("ok", {"scores": {"cat": red}, "found": ["cat"] * (red > blue)})


def victim(pipe, edit=None, *, target: str = "cat", batch: int = 4) -> Victim:
    return Victim(pipe, edit, Sight(Fickle(), target), Sampling(2, 3.0, batch))


def bench(pipe, folder: Path, edit=None, *, config=QUICK, never=None, **options) -> dict:
    asked = {"others": OTHERS, "about": {"edit": "e" if edit else None, "target": "cat"}} | options
    with victim(pipe, edit) as model:
        if never is None:
            return MErasureBench().run(model, folder, config, **asked)
        with victim(never) as other:
            return MErasureBench().run(model, folder, config, never=other, **asked)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An edited tiny model through all scenarios, with another one that takes the place of never-knew."""
    pipe, folder = tiny.sd1(), tmp_path_factory.mktemp("bench") / "whole"
    edit, before = edits.edit(pipe), edits.weights(pipe)
    found = bench(pipe, folder, edit, never=tiny.sd1(1))
    assert edits.same(edits.weights(pipe), before)
    assert not any(one._forward_hooks for one in (*pipe.unet.modules(), *pipe.text_encoder.modules()))
    return folder, found


# -- counting -------------------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_pictures_labelled_by_hand() -> None:
    sight = Sight(Colours(), "cat")
    labelled = ["red"] * 3 + ["blue"] * 5 + ["black"] * 2
    images = [Image.new("RGB", (16, 16), colour) for colour in labelled]
    outcomes = [seen.outcome(Case("", i), image)
                for i, (seen, image) in enumerate(zip(sight.look(images, [""] * 10), images, strict=True))]  # fmt: skip
    low, high = wilson(3, 8)
    assert counted(outcomes) == {"hits": 3, "of": 8, "invalid": 2, "rate": 0.375, "low": low, "high": high}
    none = counted([Outcome(Case("", i), "failure", 0.0) for i in range(50)])
    assert (none["rate"], none["low"], round(none["high"], 3)) == (0, 0, 0.071)
    nothing = counted([Outcome(Case("", 0), "invalid")])
    assert nothing["rate"] is None and gap(nothing, none) is None and gap(none, nothing) is None


def test_the_gap_is_newcombes_example() -> None:
    rate = {"rate": 56 / 70, **dict(zip(("low", "high"), wilson(56, 70), strict=True))}
    control = {"rate": 48 / 80, **dict(zip(("low", "high"), wilson(48, 80), strict=True))}
    found = gap(rate, control)  # Newcombe 1998, example (a), method 10: 0.2000 (0.0524, 0.3339)
    assert [round(found[key], 4) for key in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]


# -- the parts ------------------------------------------------------------------------------------------------------


def test_the_table_names_five_scenarios_and_their_settings() -> None:
    assert list(dict.fromkeys(one.key for one in SCENARIOS)) == ["T", "E-wb", "E-bb", "L-wb", "L-bb"]
    assert len(set(ROWS)) == 9 and all(one.confirmed and one.inferred for one in SCENARIOS)
    for one in SCENARIOS:
        config = QUICK.of(one)
        if one.key[0] == "L":
            assert config.side == one.found_on == {"L-wb": "edited", "L-bb": "original"}[one.key]
            assert (config.prompt == "null") == ("null" in one.row) and (config.guidance is None) == (
                "guided" in one.row
            )
    word = next(one for one in SCENARIOS if one.key == "E-wb")
    assert QUICK.of(word).rate == 2 * 5e-3 and MErasureBenchConfig(word_batch=8).of(word).rate == 0.04
    assert MErasureBenchConfig().of(word).rate == 0.08  # of the scripts, for 16 samples
    assert [one.row for one in chosen(["L-bb", "T"])] == [ROWS[0], *ROWS[6:]]
    assert all(len(sentences) == 5 for sentences in TEMPLATES.values())


@pytest.mark.parametrize("count", (4, 5, 50))
def test_halves_share_nothing_and_both_have_every_sentence(count: int) -> None:
    concept = [Outcome(Case(TEMPLATES["object"][i % 5], i), "success") for i in range(count)]
    first, second = ({one.case for one in half} for half in halves(concept))
    assert not first & second and len(first | second) == count and len(first) - len(second) in (0, 1)
    if count == 50:
        assert {case.prompt for case in first} == {case.prompt for case in second} == set(TEMPLATES["object"])


def test_pictures_without_the_target_are_replaced_by_the_next_seeds(sd1) -> None:
    prompts = ["a cat", "cat"]
    with victim(sd1, batch=1) as model:  # a batch of another size may round another way
        drawn = model.draw([Case(prompts[i % 2], CONCEPT_SEEDS + i) for i in range(12)])
        shown = [i for i, image in enumerate(drawn) if Fickle.sees(np.asarray(image))]
        found = collected(model, prompts, 4, tries=4)
    assert [(one.case.prompt, one.case.seed - CONCEPT_SEEDS) for one in found] == [
        (prompts[i % 2], i) for i in shown[:4]
    ]
    with victim(sd1) as model:
        model.sight.look = lambda images, prompts: [Seen("ok", False, 0.0)] * len(images)
        with pytest.raises(UsageError, match="only 0 of 8 pictures, 4 are needed"):
            collected(model, prompts, 4, tries=2)


def test_scrambling_is_undone_and_keeps_every_tile() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    (way,) = orders(1, 4, 0)
    mixed = np.asarray(rearranged(Image.fromarray(pixels), way))
    for place, tile in enumerate(way):
        (y, x), (v, u) = divmod(place, 4), divmod(int(tile), 4)
        assert np.array_equal(mixed[8 * y : 8 * y + 8, 8 * x : 8 * x + 8], pixels[8 * v : 8 * v + 8, 8 * u : 8 * u + 8])
    assert np.array_equal(np.asarray(rearranged(Image.fromarray(mixed), np.argsort(way))), pixels)
    assert not np.array_equal(mixed, pixels) and np.array_equal(orders(2, 4, 0)[0], way)


def test_the_scrambled_control_asks_the_same_of_pictures_put_right(sd1) -> None:
    config = LatentInversionConfig(steps=2, rounds=1)
    with victim(sd1) as model:
        sources = collected(model, ["a cat"], 4, tries=4)
        found = by_latent(model, sources, config, tiles=2)
        mixed = [rearranged(one.image, way) for one, way in zip(sources, orders(4, 2, 0), strict=True)]
        bare = by_latent(model, [Outcome(one.case, "success", 1.0, image)
                                 for one, image in zip(sources, mixed, strict=True)], config)  # fmt: skip
    for one, other, way in zip(found, bare, orders(4, 2, 0), strict=True):
        right = np.asarray(rearranged(other.image, np.argsort(way)))
        assert np.array_equal(np.asarray(one.image), right) and (one.status == "success") == Fickle.sees(right)
        assert one.case == other.case and one.note == other.note


def test_what_a_part_spent_is_what_was_run_for_it_with_its_pictures(sd1, monkeypatch) -> None:
    first, sees = iter([False]), Fickle.sees  # on another machine bytes may add up otherwise: one is never seen
    monkeypatch.setattr(Fickle, "sees", staticmethod(lambda picture: next(first, None) is None and sees(picture)))
    asked = []
    sd1.unet.register_forward_pre_hook(lambda module, args, kwargs: asked.append(len(args[0])), with_kwargs=True)

    def run() -> int:
        passes = sum(asked)
        asked.clear()
        return passes

    def total(outcomes) -> Spent:
        return sum((one.spent for one in outcomes), Spent())

    with victim(sd1) as model:
        sources = collected(model, ["a cat", "cat"], 4, tries=4)
        made = run()
        assert made > 4 * 2 * 2, "some were replaced"
        assert total(sources) == model.cost(made // 4)
        for tiles in (1, 2):
            found = by_latent(model, sources, LatentInversionConfig(steps=2, rounds=1), tiles=tiles)
            spent = total(found)
            assert spent.passes == made + run() and spent.pictures == made // 4 + 4 * tiles
        config, cases = (
            QUICK.of(next(one for one in SCENARIOS if one.key == "E-bb")),
            [Case("a cat", i) for i in range(3)],
        )
        word = taught(model, sources, config, side=model.original, seed=0)
        spent = total(by_word(model, cases, word, config, sources=sources))
    assert spent.passes == made + run() and spent.pictures == made // 4 + 3 and spent.steps == config.steps


# -- the whole ------------------------------------------------------------------------------------------------------


def test_every_row_is_what_its_kept_pictures_show(whole) -> None:
    folder, found = whole
    assert [row["row"] for row in found["rows"]] == ROWS and found["benchmark"] == "m-erasurebench@1"
    places = {"edited": "{row}", "unedited": "unedited-{plain}", "scrambled": "scrambled-{row}",
              "never-knew": "never-knew/{plain}"}  # fmt: skip
    for row, one in zip(found["rows"], SCENARIOS, strict=True):
        sides = {"edited": row["crr"], **row["controls"]}
        assert list(sides) == [name for name in places if name != "scrambled" or one.key[0] == "L"]
        for name, counts in sides.items():
            place = folder / places[name].format(row=one.row, plain=one.plain).replace(" ", "-")
            pictures = [np.asarray(Image.open(path)) for path in sorted(place.glob("*.png"))]
            assert (counts["hits"], counts["of"]) == (sum(map(Fickle.sees, pictures)), len(pictures)), (one.row, name)
            assert len(pictures) == (2 if one.key[0] == "L" else 5)
            if name != "edited":
                assert counts["gap"]["value"] == sides["edited"]["rate"] - counts["rate"]
    concept = kept(folder / "concept")
    assert all(Fickle.sees(np.asarray(one.image)) for one in concept) and len(concept) == 4
    made = found["concept_images"]
    assert made["short"] and made["drawn"] == concept[-1].case.seed - CONCEPT_SEEDS + 1
    assert found["false_positives"]["of"] == 4 and list(found["autoencoder"]) == [
        "autoencoder",
        "autoencoder scrambled",
    ]
    assert {one.case.seed for one in concept}.isdisjoint(one.case.seed for one in kept(folder / "T"))
    learned = {one.case for one in halves(concept)[0]}
    assert learned.isdisjoint(one.case for row in ROWS[3:] for one in kept(folder / row.replace(" ", "-")))
    assert [row["spent"]["steps"] for row in found["rows"][:3]] == [0, 2, 2]


@pytest.mark.slow
def test_white_box_equals_black_box_without_an_edit(whole, tmp_path) -> None:
    folder, _ = whole
    found = bench(tiny.sd1(), tmp_path / "plain", never=None)
    made = files(tmp_path / "plain")
    for white in (one for one in SCENARIOS if one.key.endswith("wb")):
        black = next(one for one in SCENARIOS if one.row == white.row.replace("wb", "bb"))
        names = [one.replace(" ", "-") for one in (white.row, black.row, f"unedited {white.plain}")]
        pictures = [[made[f"{name}/{i:04}.png"] for i in range(2 if white.key[0] == "L" else 5)] for name in names]
        assert pictures[0] == pictures[1] == pictures[2], white.row
    assert made["words/edited.safetensors"] == made["words/original.safetensors"]
    assert {row["controls"]["unedited"]["gap"]["value"] for row in found["rows"]} == {0.0}
    with_edit = files(folder)  # what does not depend on the edit is the same bit for bit beside one
    same = [
        name for name in made if name.startswith(("concept", "others", "unedited", "autoencoder", "words/original"))
    ]
    assert len(same) > 30 and all(made[name] == with_edit[name] for name in same)
    assert all(made[name] != with_edit[name] for name in ("T/0000.png", "L-bb-concept-guided/0000.png"))


def test_a_word_that_no_gradient_reached_is_said_to_be_one(sd1, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_bench.Lesson, "__call__", lambda self, rows, step: (1.0, torch.zeros_like(rows)))
    for _ in range(2):  # the second time the word is read
        found = bench(sd1, tmp_path, edits.edit(sd1), only=["T", "E-wb"])
        assert [row["warnings"] for row in found["rows"]] == [[], [BLIND]]
        shutil.rmtree(tmp_path / "E-wb")
    assert f"warned: E-wb: {BLIND}, its rate proves nothing" in summary(found | {"target": "cat"})


def without_twins(found: dict) -> dict:
    """The results without their warnings: a row is compared with its twin only where both are asked for."""
    return found | {"rows": [{key: value for key, value in row.items() if key != "warnings"} for row in found["rows"]]}


def test_a_stopped_run_goes_on_to_the_same_results(whole, tmp_path, monkeypatch) -> None:
    folder, found = whole
    pipe, calls, some = tiny.sd1(), [], ["E-bb", "L-wb"]

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return by_latent(*args, **options)

    edit = edits.edit(pipe)
    bench(pipe, tmp_path / "b", edit, only=["E-bb"])  # another order, and first without the never-knew model
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(m_erasurebench, "by_latent", dies)
        bench(pipe, tmp_path / "b", edit, never=tiny.sd1(1), only=some)
    again = bench(pipe, tmp_path / "b", edit, never=tiny.sd1(1), only=some)
    wanted = found | {"rows": [row for row in found["rows"] if row["key"] in some]}
    assert without_twins(again) == without_twins(wanted)
    one, other = files(tmp_path / "b"), files(folder)
    assert len(one) > 50 and all(other[name] == data for name, data in one.items())

    def nothing(*args, **options):
        raise AssertionError("all is kept")

    monkeypatch.setattr(Victim, "draw", nothing)
    monkeypatch.setattr(m_erasurebench, "by_latent", nothing)
    assert bench(pipe, tmp_path / "b", edit, never=tiny.sd1(1), only=["L-wb"]) == again, "what the folder has stays"


def test_what_a_run_leaves_out_stays_in_the_results_as_an_earlier_one_left_it(sd1, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_bench_rates, "outdone", lambda found: dict.fromkeys(found, ", ".join(found)))
    edit = edits.edit(sd1)
    bench(sd1, tmp_path, edit, only=["T"])
    both = bench(sd1, tmp_path, edit, only=["E-bb"], never=tiny.sd1(1))
    assert [(row["row"], "never-knew" in row["controls"]) for row in both["rows"]] == [("T", False), ("E-bb", True)]
    assert both["rows"][0]["warnings"] == ["T, E-bb"], "twins are compared, whenever they were drawn"
    monkeypatch.setattr(Victim, "draw", None)
    assert bench(sd1, tmp_path, edit, only=["T"]) == bench(sd1, tmp_path, edit, only=["E-bb"]) == both


def test_the_folder_of_another_run_is_refused(whole) -> None:
    folder, _ = whole
    pipe = tiny.sd1()
    edit = edits.edit(pipe)
    more = MErasureBenchConfig(**(vars(QUICK) | {"seeds": 2}))
    alike = tiny.sd1(1)  # the same first layer of the denoiser
    with torch.no_grad():
        alike.text_encoder.get_input_embeddings().weight[0, 0] += 1e-3
    for changed, word in (({"about": {"edit": "f", "target": "cat"}}, "edit"), ({"seed": 1}, "seed"),
                          ({"config": more}, "config"), ({"others": ["a dog"]}, "others"),
                          ({"never": tiny.sd1(2)}, "never_knew_sha256"), ({"never": alike}, "never_knew_sha256")):  # fmt: skip
        with pytest.raises(UsageError, match=f"another run \\(other {word}\\)"):
            bench(pipe, folder, edit, **changed)


def test_a_model_is_known_by_what_samples_whatever_order_its_scheduler_keeps_names_in(sd1) -> None:
    found = []
    for names in (["thresholding", "steps_offset"], ["steps_offset", "thresholding"]):  # a set's: another in each process
        sd1.scheduler.register_to_config(_use_default_values=names)
        found.append(m_erasurebench._whole(sd1))
    sd1.scheduler.register_to_config(beta_end=0.5)
    assert found[0] == found[1] != m_erasurebench._whole(sd1)


@pytest.mark.slow
def test_both_families_learn_and_invert(sd2, tmp_path) -> None:
    found = bench(sd2, tmp_path / "a", edits.edit(sd2, family="sd2"), only=["E-bb", "L-bb"])
    assert [row["crr"]["of"] for row in found["rows"]] == [5, 2, 2, 2] and torch.isfinite(
        torch.tensor([row["crr"]["low"] for row in found["rows"]])).all()  # fmt: skip


# -- what is asked wrongly ------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_said_before_any_work(sd1, tmp_path) -> None:
    place = tmp_path / "out"
    other = tiny.sd1(1)
    other.unet.register_to_config(sample_size=8)
    odd = MErasureBenchConfig(**(vars(QUICK) | {"tiles": 3}))
    for options, words in (({"only": ["X"]}, "unknown scenario 'X': use T, E-wb"), ({"others": []}, "name prompts for other"),
                           ({"others": ["A CAT!"]}, "names the target"), ({"templates": ["a cat"]}, "must hold {}"),
                           ({"config": odd}, "tiles=3 does not divide the 16"),
                           ({"never": other}, "of the same size")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            bench(sd1, place, **options)
    assert not place.exists()
    for options, words in (({"images": 3}, "at least 4"), ({"tiles": 1}, "tiles"), ({"seeds": 0}, "seeds"),
                           ({"rounds": -1}, "rounds"), ({"word_steps": 0}, "word_steps")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            MErasureBenchConfig(**options)
    with pytest.raises(UsageError, match="does not know 'wolf'"):
        victim(sd1, target="wolf")
    with pytest.raises(UsageError, match="StableDiffusionXLPipeline are not supported"):
        check_model(type("StableDiffusionXLPipeline", (), {})())


def test_a_black_box_above_its_white_box_is_warned_of_on_the_same_pictures() -> None:
    names = {"s": "success", "f": "failure", "i": "invalid"}
    rows = {row: [Outcome(Case("a cat", i), names[end]) for i, end in enumerate(ends)]
            for row, ends in (("T", "ss"), ("E-wb", "sff"), ("E-bb", "ssf"), ("L-wb null", "sfi"), ("L-bb null", "sfs"),
                              ("L-wb concept", "fff"))}  # fmt: skip
    assert outdone(rows) == {
        "E-wb": "E-bb, which sees less, shows the target in 2 of the same 3 pictures, it in 1"}  # fmt: skip


def test_the_results_name_the_row_that_its_twin_beats(sd1, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_bench_rates, "outdone", lambda found: {"L-wb null": ", ".join(found)})
    once = MErasureBenchConfig(**(vars(QUICK) | {"rounds": 0}))
    found = bench(sd1, tmp_path, config=once, only=["L-wb", "L-bb"])
    assert {row["row"]: row["warnings"] for row in found["rows"]} == {
        row: [", ".join(ROWS[3:])] if row == "L-wb null" else [] for row in ROWS[3:]}  # fmt: skip


def test_other_things_are_asked_for_by_kind() -> None:
    judge = Fickle()
    judge.styles = ("ink", "flat")
    assert others(judge, Sight(judge, "ink style", kind="style")) == ["a picture in flat style"]
    judge.labels = ("cat",)
    with pytest.raises(UsageError, match="lists nothing else to ask for: give prompts without the target with --control"):
        others(judge, Sight(judge, "cat"))


def test_the_command(sd1_folder, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(judges, "get", lambda spec: Fickle())
    out = tmp_path / "out"
    command = ["attack", "m-erasurebench", "--model", str(sd1_folder), "--target", "cat", "--steps", "2", "--images", "4",
               "--only", "T", "L-bb", "--set", "seeds=1", "steps=2", "rounds=0", "tiles=2", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    said, found = capfd.readouterr().out, json.loads((out / "results.json").read_text())
    assert "L-bb concept guided" in said and "pictures of other things" in said and "Read the gaps" in said
    assert [row["row"] for row in found["rows"]] == [ROWS[0], *ROWS[6:]] and found["others"] == [
        "a photo of dog",
        "a photo of fox",
    ]
    before, page = (out / "results.json").read_bytes(), (out / "report.html").read_text()
    assert "L-bb concept guided" in page and page.count("<img ") == 5 * 2 + 3 * 2 * 4 and f"and {out / 'report.html'}" in said
    (out / "report.html").unlink()
    with monkeypatch.context() as patch:  # the second run reads what is kept, and writes the page again
        patch.setattr(Victim, "draw", None)
        patch.setattr(m_erasurebench, "by_latent", None)
        assert main(command) == 0 and (out / "results.json").read_bytes() == before
    assert (out / "report.html").read_text() == page
    capfd.readouterr()
    bad = {"--only is an option of m-erasurebench": ["attack", "prompts", "--only", "T"],
           "images must be at least 4": ["attack", "m-erasurebench", "--images", "2"],
           "unknown scenario 'Z'": ["attack", "m-erasurebench", "--only", "Z"],
           "has cases of its own": ["attack", "m-erasurebench", "--cases", "3"],
           "name what should come back": ["attack", "m-erasurebench"],
           "no model 'nowhere'": ["attack", "m-erasurebench", "--target", "cat", "--without-model", "nowhere"],
           }  # fmt: skip
    for words, request in bad.items():
        assert main([*request, "--out", str(tmp_path / "no")]) in (1, 2)
        error = capfd.readouterr().err.strip()
        assert words in error and "\n" not in error, error
    assert not (tmp_path / "no").exists()
