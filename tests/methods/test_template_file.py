"""Sentences of the user's in the place of built-in ones: what is read, what is refused, and what a checkpoint knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.errors import TrainingError, UsageError
from erasekit.methods import make_config
from erasekit.methods._anchors import to_draw
from erasekit.methods._templates import fill, listed, read_sentences
from erasekit.methods.mace import MACE
from erasekit.methods.mace_refine import MACERefine, MACERefineConfig

QUICK = {"steps": 1, "rate": 1e-2, "count": 1, "sampling_steps": 2}


def fit(cls, pipe, file: Path, **more):
    request = EraseRequest.build("cat", anchor="owl")
    checkpoint = {"checkpoint": more.pop("checkpoint")} if "checkpoint" in more else {}
    config = make_config(cls, {"template_file": str(file), **more})
    return cls().fit(backbone(pipe), request, config, **checkpoint)


def test_a_concept_stands_with_its_article_where_that_is_asked() -> None:
    assert fill("a photo of {a}", "owl") == "a photo of an owl" and fill("{a}, {}", "cat") == "a cat, cat"
    assert fill("{a} here", "unicorn") == "a unicorn here" and fill("{a} here", "") == "here"
    assert fill("with {a}", "Bill Clinton") == "with Bill Clinton" and fill("with {a}", "a person") == "with a person"
    request = EraseRequest.build("cat", anchor="owl")
    (item,) = to_draw(request, "object", ["a photo of {a}"], 1).items[0]
    assert (item.caption, item.targets) == ("a photo of an owl", ("a photo of a cat",))


def test_the_file_takes_the_place_of_the_templates(sd1, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("a photo of {a}\n\n a photo of {a}\n{} here\n")
    config = MACERefineConfig(template_file=str(file), retain_templates=1)
    assert config.sentences == ("a photo of {a}", "{} here") and config.retain_in == ("a photo of {a}",)
    assert config.weights.retained == pytest.approx(2 * MACERefineConfig(template_file=str(file)).weights.retained)
    own = fit(MACERefine, sd1, file)
    assert own.parameters["template_file"] == "own.txt"
    assert own.self_check["sentences"] == listed(config.sentences)  # a file's name is all that the parameters have
    file.write_text("{}\n")
    bare = MACERefine().fit(backbone(sd1), EraseRequest.build("cat", anchor="owl"), MACERefineConfig(templates="none"))
    again = fit(MACERefine, sd1, file)
    first, second, third = (edit.ops[0].tensors() for edit in (own, bare, again))
    assert all(second[k].equal(third[k]) for k in second)
    assert any(first[k].shape != third[k].shape or not first[k].equal(third[k]) for k in first)


@pytest.mark.parametrize("text", ["", "a photo\n"])
def test_a_file_of_no_use_is_one_clear_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match="where the concept stands"):
        read_sentences(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_sentences(tmp_path / "none.txt")


def test_a_checkpoint_of_other_sentences_is_refused(sd1, tmp_path: Path) -> None:
    file, state = tmp_path / "own.txt", tmp_path / "state.safetensors"
    file.write_text("a photo of {a}\n")
    assert fit(MACE, sd1, file, checkpoint=state, **QUICK).self_check["sentences"] == listed(["a photo of {a}"])
    file.write_text("a picture of {a}\n")
    with pytest.raises(TrainingError, match="sentences"):
        fit(MACE, sd1, file, checkpoint=state, **QUICK)
