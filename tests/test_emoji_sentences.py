"""The sentences that the benchmarks give to methods with sentences of their own: of the emoji world's words alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji_sentences  # noqa: E402
from trained_rule import Rule  # noqa: E402

from erasekit.concept import EraseRequest  # noqa: E402
from erasekit.methods import make_config, resolve  # noqa: E402
from erasekit.methods._anchors import read_captions, to_draw  # noqa: E402
from erasekit.methods._templates import fill  # noqa: E402
from erasekit.worlds.emoji.captions import HELD_OUT_SINGLE, PAIR, SINGLE  # noqa: E402
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, concepts  # noqa: E402

FORMS = ("object.txt", "style.txt")


def config(method: str, kind: str):
    cls, preset = resolve(method)
    return make_config(cls, {**preset.values, **Rule().parameters(method, kind)})


def known() -> set[str]:
    """Every word of the captions that the model was trained on."""
    forms = [re.sub(r"{\w}", "", form) for form in SINGLE + PAIR]
    named = [name for concept in concepts() for name in (concept.name, *concept.synonyms)]
    return {word for text in (*forms, *named, *STYLES, *BACKGROUNDS, "an") for word in re.findall(r"[a-z]+", text)}


def test_the_files_are_those_that_the_world_makes() -> None:
    for name, text in emoji_sentences.files().items():
        assert (emoji_sentences.FOLDER / name).read_text() == text, "run benchmarks/emoji_sentences.py"
        assert len(set(text.splitlines())) == (400 if name == "captions.txt" else 30)


@pytest.mark.parametrize(("method", "kind", "target"), [
    ("ac:object", "object", "owl"), ("ac:style", "style", "ink style"), ("ac", "style", "ink style"),
    ("mace:object", "object", "owl"), ("mace:style", "style", "ink style"), ("mace", "object", "owl"),
])  # fmt: skip
def test_every_word_that_a_method_reads_is_one_that_the_model_was_trained_on(
    method: str, kind: str, target: str
) -> None:
    found = config(method, kind)
    if method.startswith("ac"):
        assert not found.augments
        request = EraseRequest.build(target, anchor="noto style" if kind == "style" else "cat")
        gallery = to_draw(request, found.kind, read_captions(found.prompts), 30)
        assert gallery.dropped == 0 and all(target in text for item in gallery.items[0] for text in item.targets)
        texts = [text for item in gallery.items[0] for text in (item.caption, *item.targets)]
    else:
        texts = [fill(text, target) for text in (*found.sentences, found.picture)]
        texts += read_captions(found.prior_file)
    words = {word for text in texts for word in re.findall(r"[a-z]+|'s", text.lower())}
    assert len(words) > 10 and words <= known(), words - known()


def test_an_article_fits_its_noun_and_no_form_is_held_out() -> None:
    own = [fill(text, "owl") for text in read_captions(emoji_sentences.FOLDER / "object.txt")]
    assert any("an owl" in text for text in own) and not any(re.search(r"\ba owl", text) for text in own)
    held = [re.escape(form).replace(r"\{a\}", ".+").replace(r"\{s\}", r"\w+").replace(r"\{b\}", r"\w+")
            for form in HELD_OUT_SINGLE]  # fmt: skip
    assert not [text for text in own for form in held if re.fullmatch(form, text)]


def test_kinds_with_captions_of_their_own_keep_them() -> None:
    assert set(Rule().parameters("ac:memorised")) == set(Rule().parameters("ac:nudity")) == {"steps", "rate"}
    assert set(Rule().parameters("spm", "style")) == {"steps", "rate"} and Rule().parameters("uce") == {}
    assert set(Rule().parameters("mace-refine")) == {"template_file", "prior_file"}, "as the whole system reads them"
