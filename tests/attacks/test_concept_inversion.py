"""Concept Inversion and its black-box twin against independent computations: losses, gradients, where the word stands."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import edits
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

from erasekit.attacks import Case, Outcome, get
from erasekit.attacks._inversion import InversionConfig, shares
from erasekit.attacks._inversion_learn import Batch, Learner, Lesson, Variant, pixels, posterior
from erasekit.attacks._inversion_word import TEMPLATES, Word
from erasekit.attacks.base import Spent
from erasekit.attacks.concept_inversion import (
    ConceptInversion,
    ConceptInversionConfig,
    chain,
    negative_prompt_loss,
    safe_guidance,
    variant,
)
from erasekit.attacks.ladder import Climbed, Rung
from erasekit.attacks.sight import Sight
from erasekit.attacks.textual_inversion import TextualInversion
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import TrainingError, UsageError
from erasekit.evaluation.judges import Judgement
from erasekit.training.latents import Schedule

CASES = [Case("a cat", 0), Case("a dog", 1), Case("the fox and a CAT", 2)]
SHORT = {"steps": 3, "batch": 2, "check": (), "templates": ("a photo of a {}", "the {}")}


class Later:
    """A judge that sees the target from its n-th call on."""

    name, weights_sha256, licence, labels = "later", "", "", ("cat", "dog")

    def __init__(self, first: float) -> None:
        self.first, self.calls = first, 0

    def judge(self, images, prompts):
        self.calls += 1
        hit = self.calls > self.first
        return [Judgement("ok", {"scores": {"cat": float(hit)}, "found": ["cat"] * hit})] * len(images)


def victim(pipe, edit=None, *, first: float = math.inf, target: str = "cat", **sight) -> Victim:
    return Victim(pipe, edit, Sight(Later(first), target, **sight), Sampling(2, 3.0, 4))


@pytest.fixture
def folder(tmp_path):
    for i in range(2):
        noise = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
    return str(tmp_path)


def lesson(model: Victim, config, made: Variant | None = None, *, dtype=torch.float32, seed: int = 0) -> Lesson:
    word = Word(model, config)
    mean, std = torch.randn(2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(7)).to(dtype)
    text = word.laid([word.in_template(template) for template in word.templates])
    return Lesson(model, config, made or Variant(), text, (mean, 0.1 * std.abs()), seed)


# -- the word -----------------------------------------------------------------------------------------------------


def test_the_word_stands_for_every_whole_name_of_the_target(sd1) -> None:
    with victim(sd1, target="cat", labels=("cat", "dog")) as model:
        word = Word(model, InversionConfig(num_vectors=2))
        contents = [word.in_prompt(prompt) for prompt in ("a cat and a CAT", "the dog")]
        text = word.laid([found for found in contents if found])
        ids = model.ids(["a photo photo and a photo photo", "the photo photo"])  # "photo" is the word it starts from
        assert torch.equal(text.ids, ids)
        assert text.at.tolist() == [[2, 3, 6, 7], [2, 3, 2, 2]] and text.row.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
        assert word.in_prompt("a wildcat") is None and word.in_prompt("a fox") is None
        assert word.in_prompt("a " * 90 + "cat") is None  # cut off: the model does not read it
        assert word.laid([word.in_template("a photo of the {} and a fox")]).at.tolist() == [[5, 6]]
        same = model.condition(model.ids(["a photo of the photo"]))
        one = Word(model, InversionConfig())
        placed = one.laid([one.in_template("a photo of the {}")])
        assert torch.equal(model.condition(placed.ids, one.start()[placed.row], placed.at), same)


def test_a_word_starts_from_one_token_that_is_not_the_targets(sd1) -> None:
    with victim(sd1) as model:
        assert model.pipe.tokenizer.decode([Word(model, InversionConfig()).token]) == "photo"
        for wrong, why in (
            ("cat", "target's own"),
            ("zebra", "not one token"),
            ("photo of", "not one"),
            ("é", "not one"),
        ):
            with pytest.raises(UsageError, match=why):
                Word(model, InversionConfig(initial=wrong))
        with pytest.raises(UsageError, match="too long"):
            word = Word(model, InversionConfig())
            word.in_template("a " * 90 + "{}")
    assert {kind: len(set(found)) for kind, found in TEMPLATES.items()} == {"object": 27, "style": 19, "person": 2}


# -- the losses ---------------------------------------------------------------------------------------------------


def test_against_a_negative_prompt_the_word_s_itself_costs_g_minus_one_squared() -> None:
    safety, empty = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    apart = float((safety - empty).square().mean())
    for g in (1.0, 7.5):
        found = float(negative_prompt_loss(safety, safety, empty, guidance=g))
        assert found == pytest.approx((g - 1) ** 2 * apart, rel=1e-5, abs=1e-9)
    answer = safety + (empty + 7.5 * (safety - empty) - safety) / 7.5
    assert float(negative_prompt_loss(answer, safety, empty, guidance=7.5)) < 1e-10


def test_sld_is_its_formula_number_by_number_and_plain_guidance_where_it_is_off() -> None:
    v, s, o, m = torch.randn(4, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    how = {"scale": 0.8, "threshold": 0.3, "momentum_scale": 0.5, "decay": 0.7}
    towards, momentum = safe_guidance(v, s, o, m, **how)
    for i, (a, b, c, n) in enumerate(zip(*(x.flatten().tolist() for x in (v, s, o, m)), strict=True)):
        mu = 0.0 if a - b >= 0.3 else min(1.0, 0.8 * abs(a - b))
        gamma = mu * (b - c) + 0.5 * n
        assert float(towards.flatten()[i]) == pytest.approx(a - c - gamma, abs=1e-5)
        assert float(momentum.flatten()[i]) == pytest.approx(0.7 * n + 0.3 * gamma, abs=1e-5)
    off, _ = safe_guidance(v, s, o, m, scale=0.0, threshold=1.0, momentum_scale=0.0, decay=0.7)
    assert torch.equal(off, v - o)


def test_a_chain_is_distinct_timesteps_of_one_range_noisiest_first() -> None:
    found = chain(5, 8)(400, 1000, torch.Generator().manual_seed(0))
    assert found.shape == (400, 5) and bool((found[:, :-1] > found[:, 1:]).all())
    assert int((found[:, 0] - found[:, -1]).max()) == 7 and 0 <= int(found.min()) < 20 and 980 < int(found.max()) < 999


def test_the_sld_loss_unrolls_the_chain_and_takes_its_end(sd1) -> None:
    config = ConceptInversionConfig(against="sld", sld_range=9, sld_count=3, **SHORT)
    with victim(sd1) as model:
        one = lesson(model, config, variant(model, config))
        batch, schedule = one.batch(0), one.schedule
        v, s, o = (model.condition(model.ids([p])).expand(2, -1, -1) for p in ("a photo", "cat", ""))
        m = torch.zeros_like(batch.clean)
        for i in range(3):
            t = batch.timesteps[:, i]
            alpha, sigma = (x[t].float().view(2, 1, 1, 1) for x in (schedule.alphas, schedule.sigmas))
            z = alpha * batch.clean + sigma * batch.noise
            ev, es, eo = (sd1.unet(z, t, encoder_hidden_states=text).sample for text in (v, s, o))
            mu = (5000 * (ev - es).abs()).clamp(max=1) * ((ev - es) < 1)
            gamma = mu * (es - eo) + 0.5 * m
            m = 0.7 * m + 0.3 * gamma
        naive = F.mse_loss(eo + 7.5 * (ev - eo - gamma), eo + 7.5 * (es - eo))
        assert float(one.variant.loss(one.predict, schedule, batch, v)) == pytest.approx(float(naive), rel=1e-4)


@pytest.mark.parametrize(("make", "against"), [(tiny.sd2, "weights"), (tiny.sd1, "negative-prompt"), (tiny.sd1, "sld")])
def test_gradients_agree_with_finite_differences(make, against: str) -> None:
    pipe = make()
    for part in (pipe.unet, pipe.text_encoder):
        part.double()
    config = ConceptInversionConfig(against=against, num_vectors=2, sld_range=6, sld_count=2, **SHORT)
    with victim(pipe) as model:
        one = lesson(model, config, variant(model, config), dtype=torch.float64)
        rows = Word(model, config).start().clone().requires_grad_()
        way, h = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 1e-6
        high, low = (one((rows + sign * h * way).detach().requires_grad_(), 0)[0] for sign in (1, -1))
        _, gradient = one(rows, 0)
    assert gradient.dtype == torch.float64
    assert float((gradient * way).sum()) == pytest.approx((high - low) / (2 * h), rel=1e-3)


# -- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.sd1, tiny.sd2])
def test_it_is_textual_inversion_with_a_row_in_the_vocabulary(make) -> None:
    pipe, config = make(), ConceptInversionConfig(**SHORT | {"batch": 3})
    with victim(pipe) as model:
        one, word = lesson(model, config), Word(model, config)
        learner = Learner(word.start(), one, rate=config.rate, decay=config.decay)
        learner.until(3, lambda step, loss: None)
        split = lesson(model, ConceptInversionConfig(**SHORT | {"batch": 3}, passes=2))
        assert split(word.start().requires_grad_(), 0)[0] == pytest.approx(learner.losses[0], rel=1e-5)

        encoder, old = copy.deepcopy(pipe.text_encoder), pipe.text_encoder.get_input_embeddings().weight
        new = len(old)
        table = encoder.resize_token_embeddings(new + 1, mean_resizing=False).weight
        with torch.no_grad():
            table[new] = table[word.token]
        table.requires_grad_()
        adam = torch.optim.AdamW([table], lr=0.08, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        ids = one.text.ids.scatter(1, one.text.at, new)
        for step in range(3):
            batch = one.batch(step)
            t = batch.timesteps[:, 0]
            alpha, sigma = (x[t].float().view(3, 1, 1, 1) for x in (one.schedule.alphas, one.schedule.sigmas))
            eps = pipe.scheduler.config.prediction_type == "epsilon"
            wanted = batch.noise if eps else alpha * batch.noise - sigma * batch.clean
            z = alpha * batch.clean + sigma * batch.noise
            loss = F.mse_loss(pipe.unet(z, t, encoder_hidden_states=encoder(ids[batch.sentences])[0]).sample, wanted)
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                table[:new] = old
            assert learner.losses[step] == pytest.approx(float(loss.detach()), rel=1e-4)
    torch.testing.assert_close(learner.rows[0], table[new], rtol=1e-3, atol=2e-3)


def test_on_a_linear_denoiser_it_finds_the_least_squares_word() -> None:
    draw = torch.Generator().manual_seed(0)
    a, schedule = torch.randn(12, 5, generator=draw), Schedule.of(dict(tiny.scheduler("epsilon").config), 10)
    clean, noise = torch.randn(2, 6, 3, 2, 2, generator=draw)
    batch = Batch(clean, noise, torch.randint(1000, (6, 1), generator=draw), torch.zeros(6, dtype=torch.long))
    z, _, _ = batch.at(schedule)

    def predict(latents, timesteps, text):
        return (text @ a.T).view(-1, 3, 2, 2) + 0.3 * latents

    def slope(rows, step):
        loss = Variant().loss(predict, schedule, batch, rows.expand(6, -1))
        return float(loss.detach()), torch.autograd.grad(loss, rows)[0]

    learner = Learner(torch.zeros(1, 5), slope, rate=0.01, decay=0.0)
    learner.until(600, lambda step, loss: None)
    best = torch.linalg.lstsq(a.repeat(6, 1), (noise - 0.3 * z).reshape(-1, 1)).solution[:, 0]
    torch.testing.assert_close(learner.rows[0].detach(), best, rtol=1e-2, atol=1e-3)
    with pytest.raises(TrainingError, match="not a number at step 1: lower the rate"):
        Learner(torch.zeros(1, 5), lambda rows, step: (math.nan, torch.zeros(1, 5)), rate=1, decay=0).until(
            1, lambda step, loss: None
        )


@pytest.mark.parametrize("how", ["float16 encoder", "bfloat16 model", "autocast"])
def test_what_is_learned_on_a_model_of_lower_precision_is_float32(sd1, how: str) -> None:
    config = ConceptInversionConfig(precision="bfloat16" if how == "autocast" else "model", **SHORT)
    with victim(sd1) as model:
        _, full = lesson(model, ConceptInversionConfig(**SHORT))(Word(model, config).start().requires_grad_(), 0)
    if how != "autocast":
        sd1.text_encoder.to(getattr(torch, how.split()[0]))
        sd1.unet.to(torch.bfloat16 if how == "bfloat16 model" else torch.float32)
    with victim(sd1) as model:
        rows = Learner(Word(model, config).start(), lambda rows, step: (0.0, rows), rate=1, decay=0).rows
        _, found = lesson(model, config)(rows, 0)
    assert rows.dtype == found.dtype == torch.float32
    assert float(F.cosine_similarity(found.flatten(), full.flatten(), dim=0)) > 0.9


def test_pictures_are_sampled_from_their_posterior_and_that_of_their_mirror_images(sd1, folder) -> None:
    with victim(sd1) as model, torch.no_grad():
        config = ConceptInversionConfig(images=folder, **SHORT)
        clean, nothing = pixels(model, config, sorted(Path(folder).iterdir()), "a {}", 0)
        mean, std = posterior(model, torch.cat([clean, clean.flip(-1)]))
        own = [sd1.vae.encode(x).latent_dist for x in (clean, clean.flip(-1))]
        scale = sd1.vae.config.scaling_factor
        torch.testing.assert_close(mean, scale * torch.cat([x.mean for x in own]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, scale * torch.cat([x.std for x in own]), rtol=1e-4, atol=1e-5)
        one = lesson(model, config)
        one.mean, one.std = torch.arange(4.0)[:, None, None, None].expand(4, 4, 16, 16), torch.zeros(4, 4, 16, 16)
        seen = {float(x) for step in range(20) for x in one.batch(step).clean.flatten(1)[:, 0]}
        assert seen == {0.0, 1.0, 2.0, 3.0}
        assert torch.equal(one.batch(1).noise, one.batch(1).noise) and not torch.equal(
            one.batch(1).noise, one.batch(2).noise
        )
    with victim(sd1, first=0) as model:
        made, spent = pixels(model, ConceptInversionConfig(pictures=3, **SHORT), [], "a photo of a {}", 0)
    assert (nothing, spent) == (Spent(), Spent(0, 3 * 2 * 2, 3 * 2, 3))
    assert made.shape == (3, 3, 32, 32) and -1 <= float(made.min()) < float(made.max()) <= 1


# -- the attacks --------------------------------------------------------------------------------------------------


def test_without_an_edit_both_find_the_same_word_and_with_one_the_white_box_sees_it(sd1, folder) -> None:
    edit = edits.edit(sd1)
    before = edits.weights(sd1)
    switches = [(id(p), p.requires_grad) for p in sd1.text_encoder.parameters()]

    def rows(attack, config, edit):
        with victim(sd1, edit) as model:
            table, version = model.table.clone(), model.table._version
            found = attack().run(model, CASES, config(images=folder, **SHORT), seed=1)
            assert torch.equal(model.table, table) and model.table._version == version
        assert [one.case for one in found] == CASES and [one.status for one in found] == ["failure"] * 3
        return found[0].tensors["rows"], found

    plain, outcomes = rows(ConceptInversion, ConceptInversionConfig, None)
    again, _ = rows(ConceptInversion, ConceptInversionConfig, None)
    black, _ = rows(TextualInversion, InversionConfig, edit)
    white, _ = rows(ConceptInversion, ConceptInversionConfig, edit)
    assert torch.equal(plain, again) and torch.equal(plain, black) and not torch.equal(plain, white)
    assert edits.same(before, edits.weights(sd1)) and not sd1.text_encoder.get_input_embeddings()._forward_hooks
    assert switches == [(id(p), p.requires_grad) for p in sd1.text_encoder.parameters()]
    total = sum((one.spent for one in outcomes), Spent())
    assert (total.steps, total.passes, total.pictures) == (3, 6 + 6 * 4, 6) and 3 <= total.encodings - 6 * 2 <= 6


def test_the_curve_ends_where_the_target_is_back(sd1, folder) -> None:
    how = SHORT | {"check": (1, 9), "check_cases": 2, "images": folder, "num_vectors": 2}
    for stop_at, last in ((0.5, 1), (0.0, 3)):  # the third case is drawn at the end alone
        with victim(sd1, first=1) as model:
            found = ConceptInversion().run(model, CASES, ConceptInversionConfig(stop_at=stop_at, **how))
        assert [one.status for one in found] == ["success"] * 3
        assert [one.curve for one in found] == [((1, 1.0),), ((1, 1.0),), ((last, 1.0),)]
        assert Climbed(Rung("x", "concept-inversion"), tuple(found)).fell == 1
        assert found[0].by == "a learned word in the prompt" and found[1].by == "a learned word in 'a photo of a {}'"
        assert found[0].tensors["rows"].shape == (2, tiny.WIDTH)
    with victim(sd1, first=0) as model:  # the target is there already: nothing is learned, no picture made
        found = ConceptInversion().run(model, CASES, ConceptInversionConfig())
    assert [(one.status, one.spent) for one in found] == [("skipped", Spent(0, 4, 2, 1))] * 3
    assert shares(Spent(5, 2, 0, 3), 2) == [Spent(3, 1, 0, 2), Spent(2, 1, 0, 1)]


class Once(Later):
    """A judge that sees the target in its n-th call alone, and whose scores fall."""

    def judge(self, images, prompts):
        self.calls += 1
        hit = self.calls == self.first
        return [Judgement("ok", {"scores": {"cat": 1 / self.calls}, "found": ["cat"] * hit})] * len(images)


def test_a_case_that_was_shown_at_a_check_stays_shown(sd1, folder) -> None:
    how = SHORT | {"check": (1, 2), "check_cases": 2, "images": folder, "templates": ("a photo of a {}",)}

    def learned(first: int) -> list[Outcome]:
        with Victim(sd1, None, Sight(Once(first), "cat"), Sampling(2, 3.0, 4)) as model:
            return TextualInversion().run(model, CASES, InversionConfig(**how))

    found = learned(3)  # after the plain pictures and the first check
    assert [one.status for one in found] == ["success", "success", "failure"]
    assert [one.curve for one in found] == [((1, 1 / 2), (2, 1 / 3))] * 2 + [((3, 1 / 4),)]
    assert Climbed(Rung("x", "textual-inversion"), tuple(found)).fell == 2
    assert [one.spent.pictures for one in found] == [3, 3, 2]  # none is drawn again once it was shown
    rows = [one.tensors["rows"] for one in found]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])  # the word that showed it
    never = learned(99)
    assert [at for at, _ in never[0].curve] == [1, 2, 3] and torch.equal(never[0].tensors["rows"], never[2].tensors["rows"])
    assert torch.equal(never[0].tensors["rows"], rows[2])


def test_the_scripts_budgets_and_what_a_user_can_get_wrong(sd1, tmp_path) -> None:
    assert get("concept-inversion") is ConceptInversion and get("textual-inversion") is TextualInversion
    found = {a: (c.steps, c.batch, c.rate) for a in ("weights", "sld") for c in [ConceptInversionConfig(against=a)]}
    assert found == {"weights": (5000, 16, 5e-3 * 4 * 4), "sld": (1000, 4, 5e-3 * 4)}
    assert InversionConfig().rate == 0.08 and ConceptInversionConfig(against="sld", steps=7).steps == 7
    wrong = {"against": "x", "stop_at": 1.5, "templates": ("cat",), "sld_count": 91, "steps": -1, "rate": math.nan,
             "num_vectors": 0, "kind": "car", "precision": "half", "check": (0,)}  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(UsageError, match="must" if name != "templates" else "once"):
            ConceptInversionConfig(**{name: value})
    with victim(sd1, edits.edit(sd1)) as model:
        with pytest.raises(UsageError, match="use against=weights"):
            ConceptInversion().run(model, CASES, ConceptInversionConfig(against="sld"))
        with pytest.raises(UsageError, match=r"no image .*: give one that does, or leave images out: the unedited model"):
            TextualInversion().run(model, CASES, InversionConfig(images=str(tmp_path)))
        with pytest.raises(UsageError, match="images=FOLDER"):
            TextualInversion().run(model, CASES, InversionConfig(pictures=1))
