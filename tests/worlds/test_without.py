"""The denoiser's training data without some concepts and styles."""

import pytest
import torch

from erasekit.errors import UsageError
from erasekit.worlds.emoji import STYLES, names
from erasekit.worlds.emoji.captions import caption
from erasekit.worlds.emoji.clip import split
from erasekit.worlds.emoji.scenes import sample_scene
from erasekit.worlds.emoji.train import denoiser
from erasekit.worlds.emoji.train.__main__ import build_parser, main, options_of
from erasekit.worlds.emoji.train.loop import step_rng
from erasekit.worlds.emoji.train.withheld import NOTHING, Withheld


def test_without_the_option_the_data_is_what_it_was():
    rng = step_rng(5, "denoiser-data", 0)
    scenes = [sample_scene(rng, pair_share=denoiser.PAIR_SHARE) for _ in range(80)]
    assert denoiser.pairs(5, 80) == (scenes, [caption(s, rng) for s in scenes])
    assert NOTHING.suffix == ""


@pytest.fixture(scope="module")
def withheld():
    return Withheld(("cat", "bomb"), ("ink",))


def test_withheld_things_are_neither_shown_nor_named(withheld):
    scenes, texts = denoiser.pairs(0, 3000, withheld)
    banned = {names().index("cat"), names().index("bomb")}
    assert len(scenes) == len(texts) == 3000
    assert not any(banned & set(s.objects) or STYLES[s.style] == "ink" for s in scenes)
    assert not {"cat", "kitten", "feline", "bomb", "explosive", "ink"} & {w for t in texts for w in split(t)}


def test_all_other_rows_stay_and_singles_stay_singles(withheld):
    full, without = (zip(*denoiser.pairs(0, 3000, w), strict=True) for w in (NOTHING, withheld))
    changed = 0
    for (scene, text), (other, said) in zip(full, without, strict=True):
        assert len(scene.objects) == len(other.objects)
        if withheld.shown_by(scene):
            changed += 1
        else:
            assert (scene, text) == (other, said)
    assert 0.18 < changed / 3000 < 0.28  # a fifth by style, 2 of 132 objects, some scenes with two


@pytest.mark.parametrize(("count", "objects", "styles"), [(3000, ("hot dog",), ()), (3000, (), ("flat", "blob"))])
def test_one_kind_alone_can_be_withheld(count, objects, styles):
    scenes, _ = denoiser.pairs(1, count, Withheld(objects, styles))
    assert not any(names()[i] in objects for s in scenes for i in s.objects)
    assert not any(STYLES[s.style] in styles for s in scenes)


def test_files_of_other_data_never_have_the_same_names(withheld, tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "encode_scenes", lambda work, scenes: torch.tensor([s.style for s in scenes]))
    monkeypatch.setattr(denoiser, "encode_text", lambda work, texts: torch.tensor([len(t) for t in texts]))
    for held in (NOTHING, withheld):
        for _ in range(2):
            scenes, texts = denoiser.pairs(0, 40, held)
            assert denoiser.latents(tmp_path, 0, 40, held).tolist() == [s.style for s in scenes]
            assert denoiser.contexts(tmp_path, 0, 40, held).tolist() == [*map(len, texts), 0]
    found = {path.name for path in tmp_path.iterdir()}
    assert {"latents.pt", "contexts.pt", f"latents{withheld.suffix}.pt", f"contexts{withheld.suffix}.pt"} == found
    assert withheld.suffix == Withheld(("bomb", "cat"), ("ink",)).suffix == "-without-bomb+cat+ink-style"
    many = [Withheld(names()[i : i + 100]).suffix for i in (0, 1)]
    assert len(set(many)) == 2 and max(map(len, many)) < 80


def test_training_without_concepts_leaves_the_full_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "encode_scenes", lambda work, scenes: torch.zeros(len(scenes), 16, 8, 8))
    monkeypatch.setattr(denoiser, "encode_text", lambda work, texts: torch.zeros(len(texts), 3, 192).half())
    seen = []
    monkeypatch.setattr(denoiser, "build", lambda: torch.nn.Identity())
    monkeypatch.setattr(denoiser, "train", lambda model, loss, plan, path, **_: seen.append(path.name) or Saved(seen))
    focused = []
    monkeypatch.setattr(denoiser, "row_focus", lambda work, seed, count, withheld: focused.append(withheld))
    denoiser.run(tmp_path, steps=1, count=8, without=["cat"])
    denoiser.run(tmp_path, steps=1, count=8)
    assert focused == [Withheld(("cat",)), NOTHING]
    assert seen == ["denoiser-without-cat.pt", "unet-without-cat", "denoiser.pt", "unet"]


class Saved:
    def __init__(self, seen):
        self.seen = seen

    def save_pretrained(self, path):
        self.seen.append(path.name)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ((("kitten",),), "kitten"),
        (((), ("charcoal",)), "charcoal"),
        (((), STYLES), "one style"),
        ((names(),), "two concepts"),
    ],
)
def test_what_cannot_be_withheld_is_refused(held, words):
    with pytest.raises(UsageError, match=words):
        Withheld(*held)


def test_the_options_reach_the_stage(tmp_path, capsys):
    line = ["denoiser", "--work", str(tmp_path), "--without", "cat", "bomb", "--without-style", "ink"]
    given = options_of(build_parser().parse_args(line), denoiser.run)
    assert given == {"without": ["cat", "bomb"], "without_style": ["ink"]}
    for wrong in (["judge", *line[1:]], [*line[:4], "kitten"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    said = capsys.readouterr().err
    assert (
        "'kitten' is no concept" in said and "the stage judge does not take --without: it takes --seed, --steps" in said
    )
