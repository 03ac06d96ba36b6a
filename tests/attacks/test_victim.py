"""The model under attack: two sides of one pipeline, what it encodes and draws, and what a judge's words mean for it."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from erasekit.attacks import Case, Outcome, Spent, get, pictures
from erasekit.attacks.base import reached
from erasekit.attacks.prompts import Prompts, PromptsConfig, better, unattacked
from erasekit.attacks.sight import Seen, Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement

CASES = [Case("a cat", 0), Case("a dog", 1), Case("a fox on a hill", 2)]


class Bright:
    """A judge that finds "cat" in pictures whose mean is above the threshold."""

    name, weights_sha256, licence = "bright", "", ""
    labels = ("cat", "dog")

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def judge(self, images, prompts):
        means = images.mean((1, 2, 3)).tolist()
        return [Judgement("ok", {"scores": {"cat": m}, "found": ["cat"] * (m > self.threshold)}) for m in means]


class Painter(Bright):
    """The same, which answers styles apart from things."""

    styles = ("ink", "flat")


def victim(pipe, edit=None, *, threshold: float = 0.5, batch: int = 2) -> Victim:
    return Victim(pipe, edit, Sight(Bright(threshold), "cat"), Sampling(2, 3.0, batch))


def weights(pipe) -> dict[str, tuple[int, int]]:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    return {f"{n}.{k}": (id(p), p._version, p.requires_grad) for n, m in parts.items() for k, p in m.named_parameters()}


def test_both_sides_are_what_they_are_called_and_nothing_is_left(sd1) -> None:
    edit = edits.edit(sd1)
    before, text = weights(sd1), sd1.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    plain = sd1.unet(torch.ones(1, 4, 16, 16), 500, encoder_hidden_states=sd1.text_encoder(text)[0]).sample
    with edit.applied(sd1):
        changed = sd1.unet(torch.ones(1, 4, 16, 16), 500, encoder_hidden_states=sd1.text_encoder(text)[0]).sample
    assert not torch.equal(plain, changed)

    def now(model: Victim) -> torch.Tensor:
        return model.denoiser()(torch.ones(1, 4, 16, 16), 500, model.condition(model.ids(["a cat"])))

    inside = None
    with pytest.raises(RuntimeError, match="stop"), victim(sd1, edit) as model:
        inside = now(model)
        with model.original():
            with model.original():
                assert torch.equal(now(model), plain)
            assert torch.equal(now(model), plain)
        assert torch.equal(now(model), changed)
        raise RuntimeError("stop")
    assert inside is not None and not inside.requires_grad and torch.equal(inside, changed)
    after = weights(sd1)
    assert {k: (v[0], v[2]) for k, v in after.items()} == {k: (v[0], v[2]) for k, v in before.items()}
    again = sd1.unet(torch.ones(1, 4, 16, 16), 500, encoder_hidden_states=sd1.text_encoder(text)[0]).sample
    assert torch.equal(again, plain)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_family_is_known_whatever_is_loaded(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    pipe.unet.conv_in.lora_A = torch.nn.Linear(1, 1)  # as a loaded LoRA is named, on which nothing could be fitted
    assert victim(pipe).family == family


def test_inserted_rows_are_read_at_their_positions_with_gradient(sd1) -> None:
    with victim(sd1) as model:
        ids = model.ids(["a cat", "a dog"])
        rows = model.table[ids[:, 1:3]].clone().requires_grad_()
        at = torch.tensor([[1, 2], [1, 2]])
        found = model.condition(ids.roll(1, 0), rows, at)  # the other prompt's ids, with this one's words put in
        torch.testing.assert_close(found[0, :3], model.condition(ids)[0, :3])
        (gradient,) = torch.autograd.grad(found[0].sum(), rows)
        assert float(gradient[0].abs().sum()) > 0 and float(gradient[1].abs().sum()) == 0
    assert not sd1.text_encoder.get_input_embeddings()._forward_hooks


def test_pictures_are_those_of_the_pipeline(sd1) -> None:
    with victim(sd1) as model:
        images = model.draw(CASES)
        conditions = model.condition(model.ids([case.prompt for case in CASES]))
        same = model.draw(CASES, conditions=conditions)
        with torch.no_grad():
            own = sd1([c.prompt for c in CASES[:2]], num_inference_steps=2, guidance_scale=3.0, output_type="np",
                      generator=[torch.Generator().manual_seed(c.seed) for c in CASES[:2]]).images  # fmt: skip
        for i in (0, 1):
            assert np.abs(np.asarray(images[i]) - np.round(own[i] * 255)).max() <= 1
        assert all(np.array_equal(a, b) for a, b in zip(images, same, strict=True))
        noise = torch.zeros(3, 4, 16, 16)
        assert not np.array_equal(model.draw(CASES, latents=noise)[0], images[0])


def test_a_judge_is_read_for_one_target() -> None:
    white, black = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16))
    sight = Sight(Bright(), "cat")
    assert [seen.hit for seen in sight.look([white, black], ["", ""])] == [True, False]
    with pytest.raises(UsageError, match="does not know 'wolf'"):
        Sight(Bright(), "wolf")
    detector = Sight(Bright(), "cat")._read("ok", {"found": ["dog"], "boxes": [{"label": "cat", "score": 0.2}] * 2})
    assert (detector.hit, detector.score) == (False, 0.2)
    style = Sight(Painter(), "ink", kind="style")._read("ok", {"style": "ink", "style_scores": {"ink": 0.9}, "found": []})
    assert style.hit and style.score == 0.9
    with pytest.raises(UsageError, match="does not know 'ink style': it is a style, attack it with --style"):
        Sight(Painter(), "ink style")
    with pytest.raises(UsageError, match="names nothing"):
        sight._read("ok", {"embedding": ""})
    assert Seen("failed", False, 0.0, "no face").outcome(CASES[0], white).status == "invalid"


def test_a_style_is_known_with_and_without_the_word() -> None:
    seen = {"style": "ink", "style_scores": {"ink": 0.9}, "found": []}
    for target in ("ink", "ink style"):
        sight = Sight(Painter(), target, kind="style")
        assert (sight.target, sight.labels, sight._read("ok", seen).hit) == ("ink", ("ink",), True)
    with pytest.raises(UsageError, match="does not know the style 'cat': name one of ink, flat, or another judge"):
        Sight(Painter(), "cat", kind="style")
    classifier = Sight(Bright(), "cat style", kind="style")  # a classifier of styles has them as its labels
    assert classifier.labels == ("cat",) and classifier._read("ok", {"found": ["cat"], "scores": {"cat": 0.8}}).hit


@pytest.mark.parametrize("threshold", (0.0, 1.0))
def test_prompts_are_drawn_until_one_shows_the_target(sd1, threshold: float) -> None:
    with victim(sd1, threshold=threshold) as model:
        found = Prompts().run(model, CASES, PromptsConfig(seeds=3))
        skipped = unattacked(model, CASES)
    assert [one.status for one in found] == ["failure" if threshold else "success"] * 3
    assert [one.spent.pictures for one in found] == [3 if threshold else 1] * 3
    assert [one.status for one in skipped] == ["failure" if threshold else "skipped"] * 3
    assert [one.case for one in found] == CASES and reached(found) == (0 if threshold else 3, 3)


def test_the_better_outcome_is_a_success_then_valid_then_higher() -> None:
    ranked = [Outcome(CASES[0], "invalid"), Outcome(CASES[0], "failure", 0.1), Outcome(CASES[0], "failure", 0.4),
              Outcome(CASES[0], "success", 0.3)]  # fmt: skip
    for i, low in enumerate(ranked):
        for high in ranked[i + 1 :]:
            for pair in ((low, high), (high, low)):
                found = better(*pair, CASES[1])
                assert (found.status, found.score, found.case) == (high.status, high.score, CASES[1])
    assert Spent(1, 2, 3, 4) + Spent(pictures=1) * 2 == Spent(1, 2, 3, 6)
    with pytest.raises(ValueError, match="status"):
        Outcome(CASES[0], "won")
    assert get("prompts") is Prompts
    with pytest.raises(UsageError, match="unknown attack 'x': use one of prompts"):
        get("x")
    with pytest.raises(UsageError, match="seeds"):
        PromptsConfig(seeds=0)


@pytest.mark.parametrize("guidance", (1.0, 3.0))
def test_what_a_picture_costs_is_what_the_model_was_asked(sd1, guidance: float) -> None:
    asked = {"passes": 0, "encodings": 0}

    def count(name: str, module, rows) -> None:
        def hook(module, args, kwargs) -> None:
            asked[name] += len(rows(args, kwargs))

        module.register_forward_pre_hook(hook, with_kwargs=True)

    count("passes", sd1.unet, lambda args, kwargs: args[0])
    count("encodings", sd1.text_encoder, lambda args, kwargs: args[0])
    with Victim(sd1, None, Sight(Bright(1.0), "cat"), Sampling(3, guidance, 2)) as model:
        found = unattacked(model, CASES)
        assert sum((one.spent for one in found), Spent()) == Spent(**asked, pictures=3) == model.cost(3)
        made, spent = pictures.picked(model, ["a cat"], 2, lambda seen: not seen.hit, seed=7, tries=4)
        assert spent == model.cost(2) and len(made) == 2 and model.cost(5) == Spent(**asked, pictures=5)
        none, spent = pictures.picked(model, ["a cat"], 2, lambda seen: seen.hit, seed=7, tries=3)
        assert spent == model.cost(6) and not none and model.cost(11) == Spent(**asked, pictures=11)
        model.draw(CASES[:1], sampling=Sampling(5, 2.0, 1))
    assert model.cost(11) + model.cost(sampling=Sampling(5, 2.0, 1)) == Spent(**asked, pictures=12)


def test_tiny_models_of_both_families_can_be_attacked() -> None:
    for make in (tiny.sd1, tiny.sd2):
        with victim(make()) as model:
            assert len(model.draw(CASES)) == 3 and model.schedule(3).timesteps[0] > 600
