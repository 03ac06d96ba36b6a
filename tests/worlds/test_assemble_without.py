"""A denoiser that never saw something becomes a model that loads, says so, and stands beside an edit."""

import json

import pytest
import tiny

from erasekit import models
from erasekit.errors import UsageError
from erasekit.evaluation import arms, controls
from erasekit.evaluation.plan import Plan
from erasekit.evaluation.suites import load_suite
from erasekit.worlds.emoji.train import assemble
from erasekit.worlds.emoji.train.withheld import Withheld

HELD = {"without": ["cat", "bomb"], "without_style": ["ink"]}


@pytest.fixture
def work(tmp_path):
    pipe = tiny.sd1()
    for part in ("vae", "text_encoder", "tokenizer", "unet"):
        getattr(pipe, part).save_pretrained(tmp_path / part)
    return tmp_path


def test_it_loads_and_is_accepted_as_the_model_that_never_knew(work):
    tiny.unet().save_pretrained(work / "unet-without-bomb+cat+ink-style")
    assemble.run(work, **HELD)
    folder = work / "model-without-bomb+cat+ink-style"
    assert not (work / "model").exists()
    assert json.loads((folder / "without.json").read_text()) == {"concepts": ["bomb", "cat"], "styles": ["ink"]}
    assert models.load(folder).unet.config.cross_attention_dim == tiny.WIDTH
    suite = load_suite("emoji/object")
    plan = Plan(("emoji/object",), targets=("cat",), never=(f"cat={folder}",), control="none")
    base, never = arms.build(plan, suite, [], "0" * 64)
    assert never.kind == "never" and set(never.prompts) < set(base.prompts)
    left_out = len(base.prompts) - len(never.prompts)
    assert f"not asked {left_out} of {len(base.prompts)} prompts" in never.note and not base.note
    with pytest.raises(UsageError, match="was trained with 'dog', and without bomb, cat, ink"):
        arms.build(Plan(plan.suites, targets=("dog",), never=(f"dog={folder}",)), suite, [], "0" * 64)


def test_the_full_model_withholds_nothing(work):
    assemble.run(work)
    assert controls.withheld(work / "model") == frozenset() and not (work / "model/without.json").exists()


def test_a_denoiser_that_was_not_trained_is_named(work):
    with pytest.raises(UsageError, match=r"unet-without-bomb\+cat\+ink-style is not there: run the stage denoiser with"):
        assemble.run(work, **HELD)


def test_what_is_written_is_what_judges_call_it(tmp_path):
    Withheld(("hot dog",), ("ink",)).note(tmp_path)
    assert controls.withheld(tmp_path) == {"hot dog", "ink"}
