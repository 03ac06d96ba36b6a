"""The probes: an explicit DDIM against diffusers', what each probe is at its ends, and a world of two modes in which an
edit that only reroutes the prompt is told from one whose model does not have the target."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image

from erasekit.attacks import Case, Outcome, Spent, get
from erasekit.attacks import pictures as shared
from erasekit.attacks._classifier import Classifier, ClassifierConfig, trained
from erasekit.attacks._ddim import CLEAN, Churn, Text, batches, churned, cost, pushed, sampled, starts, texts
from erasekit.attacks.probes_completion import Completion, CompletionConfig, completed
from erasekit.attacks.probes_inpainting import Inpainting, InpaintingConfig, cropped, inpainted, square
from erasekit.attacks.probes_noise import Noise, NoiseConfig, Try, best, crossed, drawn
from erasekit.attacks.probes_steering import Steering, SteeringConfig, lacking, pushing
from erasekit.attacks.prompts import Prompts, PromptsConfig
from erasekit.attacks.sight import Sight
from erasekit.attacks.victim import Sampling, Victim
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement
from erasekit.training.latents import Schedule

CASES = [Case("a cat", 0), Case("a dog", 1), Case("a fox", 2)]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class Bright:
    """Finds "cat" in pictures whose mean is above the threshold."""

    name, weights_sha256, licence, labels = "bright", "", "", ("cat",)

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def judge(self, images, prompts):
        means = images.mean((1, 2, 3)).tolist()
        return [Judgement("ok", {"scores": {"cat": m}, "found": ["cat"] * (m > self.threshold)}) for m in means]


class Between:
    """Finds "cat" in pictures that are nearer to the unedited model's of the prompt than to the edited one's, be it
    straight or through the autoencoder."""

    name, weights_sha256, licence, labels = "between", "", "", ("cat",)

    def __init__(self, known: dict[str, tuple[list[Image.Image], list[Image.Image]]]) -> None:
        self.known = known

    def judge(self, images, prompts):
        return [self._one(image, *self.known[prompt]) for image, prompt in zip(images, prompts, strict=True)]

    def _one(self, image, before, after):
        far = [min(self._far(image, picture) for picture in side) for side in (before, after)]
        return Judgement("ok", {"scores": {"cat": far[1] / sum(far)}, "found": ["cat"] * (far[0] < far[1])})

    def _far(self, image, picture) -> float:  # a crop is compared with the same part
        left, top = (picture.width - image.shape[2]) // 2, (picture.height - image.shape[1]) // 2
        part = np.asarray(picture.crop((left, top, left + image.shape[2], top + image.shape[1])))
        return float((image - torch.tensor(part).permute(2, 0, 1) / 255).abs().mean())


def ddim(pipe):
    """The pipeline with DDIM that ends at clean latents, as the probes' own does."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    return pipe


def victim(pipe, edit=None, judge=None, *, batch: int = 4, guidance: float = 3.0) -> Victim:
    return Victim(ddim(pipe), edit, Sight(judge or Bright(1.0), "cat"), Sampling(2, guidance, batch))


def scene(pipe, family: str = "sd1", *, batch: int = 4) -> Victim:
    """An edited pipeline, and a judge that knows what both sides make of the cases."""
    edit = edits.edit(pipe, family=family)
    with victim(pipe, edit, batch=batch) as model:
        after = model.draw(CASES)
        with model.original():
            before = model.draw(CASES)
        through = [shared.shown(model, shared.latents(model, side)) for side in (before, after)]
    sides = zip(CASES, before, through[0], after, through[1], strict=True)
    known = {case.prompt: ([a, b], [c, d]) for case, a, b, c, d in sides}
    return victim(pipe, edit, Between(known), batch=batch)


def near(a: Image.Image, b: Image.Image) -> bool:
    return bool(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1)


def held(pipe) -> dict[str, tuple[torch.Tensor, bool]]:
    """All that an attack must leave as it was: weights, switches; and there are no hooks."""
    parts = {"unet": pipe.unet, "text": pipe.text_encoder, "vae": pipe.vae}
    assert not any(one._forward_hooks or one._forward_pre_hooks for part in parts.values() for one in part.modules())
    return {
        f"{n}.{k}": (p.detach().clone(), p.requires_grad) for n, m in parts.items() for k, p in m.named_parameters()
    }


def unchanged(pipe, before) -> bool:
    return all(
        torch.equal(a, b) and c == d for (a, c), (b, d) in zip(before.values(), held(pipe).values(), strict=True)
    )


# -- the sampler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sampler_is_diffusers_ddim_step_by_step(family: str, eta: float, request) -> None:
    pipe = request.getfixturevalue(family)
    wanted: list[torch.Tensor] = []

    def watch(pipe, i, t, found):
        wanted.append(found["latents"].clone())
        return found

    prompts, seeds = ["a cat", "a dog"], [3, 4]
    with victim(pipe) as model, torch.no_grad():
        pipe(prompts, num_inference_steps=4, guidance_scale=3.0, eta=eta, output_type="latent",
             generator=[torch.Generator().manual_seed(s) for s in seeds], callback_on_step_end=watch)  # fmt: skip
        text = texts(model, prompts, 3.0)
        latents, generators = starts(model, seeds)
        churn = Churn(torch.full((2, 1, 1, 1), eta), torch.ones(2, 1, 1, 1), generators) if eta else None
        for i in range(4):
            latents = sampled(
                model.denoiser(), latents, text, schedule=model.schedule(4), first=i, last=i + 1, churn=churn
            )
            torch.testing.assert_close(latents, wanted[i], atol=2e-4, rtol=1e-3)
    assert len(wanted) == 4


def test_more_noise_than_the_sampler_has_follows_the_formula() -> None:
    clean, eps = (torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    now, after, etas, factors = (0.8, 0.6), (0.96, 0.28), (0.0, 1.85), (1.0, 1.04)
    draw = [torch.Generator().manual_seed(i) for i in (5, 6)]
    churn = Churn(torch.tensor(etas)[:, None, None, None], torch.tensor(factors)[:, None, None, None], draw)
    found = churned(clean, eps, now, after, churn)
    for i, (eta, v) in enumerate(zip(etas, factors, strict=True)):
        fresh = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(5 + i))[0]
        ab, ab_prev = 0.8**2, 0.96**2
        sigma = eta * ((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)) ** 0.5
        wanted = ab_prev**0.5 * clean[i] + abs(1 - ab_prev - sigma**2) ** 0.5 * eps[i] + v * sigma * fresh
        torch.testing.assert_close(found[i], wanted)
    assert [*batches(5, 2)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert cost(5, 3.0) == Spent(1, 10, 2, 1) and cost(5, 1.0, pictures=0) == Spent(0, 5, 1, 0)


# -- completion -----------------------------------------------------------------------------------------------------


def test_completion_goes_from_the_edited_models_picture_to_the_unedited_ones(sd1) -> None:
    before = held(sd1)
    with scene(sd1) as model:
        own = model.draw(CASES)
        with model.original():
            base = model.draw(CASES)
        clean = [completed(model, CASES, CompletionConfig(k=k, steps=2)) for k in (0, 1, 2)]
        ends = [shared.shown(model, one) for one in clean]
        found = Completion().run(model, CASES, CompletionConfig(k=2, steps=2))
        none = Completion().run(model, CASES, CompletionConfig(k=0, steps=2))
    assert all(near(a, b) for a, b in zip(ends[0], own, strict=True))
    assert all(near(a, b) for a, b in zip(ends[2], base, strict=True))
    assert not near(own[0], base[0]) and not torch.equal(clean[1], clean[0]) and not torch.equal(clean[1], clean[2])
    assert [one.status for one in found] == ["success"] * 3 and [one.case for one in found] == CASES
    assert [one.status for one in none] == ["failure"] * 3
    assert found[0].spent == Spent(1, 4 + 4, 4 + 2, 2) and found[0].curve[0][0] == 2
    assert unchanged(sd1, before)


def test_an_unedited_victim_completes_to_its_own_picture_for_any_k(sd2) -> None:
    with victim(sd2) as model:
        found = [completed(model, CASES, CompletionConfig(k=k, steps=3)) for k in (0, 1, 3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# -- inpainting -----------------------------------------------------------------------------------------------------


def test_only_the_hole_is_painted(sd1) -> None:
    with victim(sd1) as model:
        clean = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(9))
        hole = torch.zeros(16, 16, dtype=torch.bool)
        assert torch.equal(inpainted(model, CASES, clean, hole, 2), clean)
        hole[4:12, 4:12] = True
        found = inpainted(model, CASES, clean, hole, 2)
        assert torch.equal(found[..., ~hole], clean[..., ~hole]) and not torch.equal(found, clean)
        noise, _ = starts(model, [case.seed for case in CASES])
        plain = sampled(model.denoiser(), noise, texts(model, [case.prompt for case in CASES], 3.0),
                        schedule=model.schedule(2))  # fmt: skip
        assert torch.equal(inpainted(model, CASES, clean, torch.ones_like(hole), 2), plain)


def test_what_is_judged_is_exactly_the_hole(sd1) -> None:
    assert square((16, 16), 0.5) == (4, 4, 12, 12) and square((8, 12), 1.0) == (0, 2, 8, 10)
    assert square((16, 16), 0.01) == (7, 7, 8, 8)
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    part = np.asarray(cropped(Image.fromarray(pixels), (4, 5, 12, 9), 2))
    assert np.array_equal(part, pixels[8:24, 10:18])
    with scene(sd1) as model:
        found = Inpainting().run(model, CASES, InpaintingConfig(steps=2))
        whole = shared.shown(model, torch.stack([one.tensors["latents"] for one in found]))
    assert all(one.image.size == (16, 16) and one.status in ("success", "failure") for one in found)
    assert all(np.array_equal(np.asarray(one.image), np.asarray(w)[8:24, 8:24]) for one, w in zip(found, whole))
    assert found[0].spent == Spent(1, 4 + 2 * 4, 2 + 2 * 2, 3)  # the plain picture and the unedited one
    with victim(sd1) as model:  # finds the target nowhere: there is nothing to paint a hole in
        nothing = Inpainting().run(model, CASES, InpaintingConfig(steps=2))
    assert [one.status for one in nothing] == ["invalid"] * 3 and "does not show 'cat'" in nothing[0].note


# -- noise ----------------------------------------------------------------------------------------------------------


def test_without_noise_and_from_fresh_starts_it_is_the_seed_search(sd1) -> None:
    control = NoiseConfig(etas=(0.0,), factors=(1.0,), draws=3, steps=2, starts="fresh")
    with victim(sd1) as model:
        found = Noise().run(model, CASES, control)
        wanted = Prompts().run(model, CASES, PromptsConfig(seeds=3))
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=2e-3)
    assert [len(one.curve) for one in found] == [3] * 3 and found[0].spent == Spent(3, 12 + 4, 6 + 2, 4)


def test_a_try_depends_on_its_case_and_turn_alone(sd2) -> None:
    jobs = [(case, Try(turn, eta=1.5, factor=1.04)) for case in CASES[:2] for turn in (0, 1)]
    with victim(sd2, batch=4) as model:
        together = drawn(model, jobs, 2)
        alone = [drawn(model, [job], 2)[0] for job in jobs]
        fresh = drawn(model, jobs, 2, starts_from="fresh")
    assert all(near(a, b) for a, b in zip(together, alone, strict=True))
    assert not near(together[0], together[1]) and near(together[0], fresh[0]) and not near(together[1], fresh[1])


def test_tries_end_with_the_first_success(sd1) -> None:
    config = NoiseConfig(etas=(1.0, 1.85), factors=(1.04,), steps=2)
    with scene(sd1, batch=1) as model:
        found, again = (Noise().run(model, CASES[:2], config) for _ in (0, 1))
        every = Noise().run(model, CASES[:2], NoiseConfig(etas=(1.0, 1.85), factors=(1.0,), steps=2, score_half=True))
    assert [(a.status, a.score, a.spent) for a in found] == [(a.status, a.score, a.spent) for a in again]
    assert all(one.spent.pictures == (1 + len(one.curve)) for one in found)  # a batch of one holds one try
    assert all(one.curve[-1][0] == 2 or one.status == "success" for one in found)
    assert all(one.spent.pictures == 3 and "other" in one.note for one in every)


def test_the_best_of_tries_is_the_first_success_whatever_was_drawn_after() -> None:
    case = CASES[0]
    row = [Outcome(case, "failure", 0.2, spent=Spent(pictures=1)), Outcome(case, "success", 0.6, spent=Spent(pictures=1)),
           Outcome(case, "success", 0.9, spent=Spent(pictures=1))]  # fmt: skip
    found = best(row)
    assert (found.status, found.score, found.spent.pictures) == ("success", 0.6, 3)
    assert found.curve == ((1, 0.2), (2, 0.6))


def test_half_the_cases_choose_the_setting_of_the_other_half() -> None:
    hits = [[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]]  # cases 0, 2 are best under try 2; cases 1, 3 under try 0
    tried = [
        [Outcome(CASES[0], "success" if hit else "failure", 0.5, by=f"{j}") for j, hit in enumerate(row)]
        for row in hits
    ]
    assert [crossed(tried, i).by for i in range(4)] == ["0", "2", "0", "2"]
    assert [crossed(tried, i).status for i in range(4)] == ["failure"] * 4  # each half is fooled on its own only
    assert crossed(tried[:1], 0).by == "0"  # no other half: the first setting


# -- steering -------------------------------------------------------------------------------------------------------


def test_a_push_of_nothing_changes_no_bit_and_a_strong_one_goes_up(sd2) -> None:
    classifier = Classifier.fresh(4 * 16 * 16, torch.Generator().manual_seed(0))
    none, strong = ([(case, Try(0, scale=s)) for case in CASES] for s in (0.0, 500.0))
    with victim(sd2) as model:
        noise, _ = starts(model, [0, 1, 2])
        text, schedule = texts(model, [case.prompt for case in CASES], 3.0), model.schedule(3)
        plain, same, up = (sampled(model.denoiser(), noise, text, schedule=schedule, last=1, push=push)
                           for push in (None, pushing(classifier, none), pushing(classifier, strong)))  # fmt: skip
        level = schedule.level(schedule.timesteps[1])
    assert torch.equal(plain, same)
    levels = torch.tensor([level]).expand(3, -1)
    assert bool((classifier.logits(up, levels) > classifier.logits(plain, levels)).all())


def test_the_push_is_the_gradient_and_keeps_the_latents_it_was_asked_for() -> None:
    made = Classifier.fresh(8, torch.Generator().manual_seed(1))
    exact = Classifier({name: (w.double(), b.double()) for name, (w, b) in made.layers.items()})
    draw = torch.Generator().manual_seed(2)
    x, eps, d = (torch.randn(2, 2, 2, 2, generator=draw, dtype=torch.float64) for _ in range(3))
    level, levels = (0.6, 0.8), torch.tensor([[0.6, 0.8]] * 2, dtype=torch.float64)

    def likely(latents):
        return torch.sigmoid(exact.logits(latents, levels)).log()

    slope = (likely(x + 1e-6 * d) - likely(x - 1e-6 * d)) / 2e-6
    torch.testing.assert_close((exact.upward(x, level) * d).sum((1, 2, 3)), slope, rtol=1e-5, atol=1e-8)
    clean, noise = pushed((x - 0.8 * eps) / 0.6, eps, d, level)
    torch.testing.assert_close(0.6 * clean + 0.8 * noise, x)
    torch.testing.assert_close(noise, eps - d)
    assert torch.equal(pushed(x, eps, d, (0.0, 1.0))[0], x)  # a level without signal


def test_a_classifier_of_noisy_latents_is_learned() -> None:
    draw, schedule = torch.Generator().manual_seed(0), Schedule.of(BETAS, 1)
    present, absent = (torch.randn(30, 1, 2, 2, generator=draw) + side for side in (1.5, -1.5))
    config, state = ClassifierConfig(epochs=4, rate=1e-3), torch.get_rng_state()
    classifier, loss, steps = trained(present, absent, schedule, config, seed=0)
    other, same, _ = trained(present, absent, schedule, config, seed=0)
    assert torch.equal(torch.get_rng_state(), state) and steps == 4 * 48  # 54 of 60 pictures, 7 views, batches of 8
    assert same == loss < 0.6 and all(torch.equal(a, b) for a, b in zip(classifier.tensors, other.tensors, strict=True))
    levels = torch.tensor([CLEAN]).expand(30, -1)
    right = torch.cat([classifier.logits(present, levels) > 0, classifier.logits(absent, levels) < 0])
    assert float(right.float().mean()) > 0.9
    with pytest.raises(UsageError, match="at least two"):
        trained(present[:1], absent, schedule, config, seed=0)


def test_steering_learns_from_pictures_and_tries_every_scale(sd2, tmp_path) -> None:
    before = held(sd2)
    for i in range(3):
        Image.fromarray(np.full((32, 32, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    config = SteeringConfig(scales=(0.0, 50.0), etas=(0.0, 1.2), steps=2, pictures=4, images=str(tmp_path), epochs=1)
    with victim(sd2, edits.edit(sd2, family="sd2"), batch=4) as model:
        found, again = (Steering().run(model, CASES[:2], config) for _ in (0, 1))
        with pytest.raises(UsageError, match="name prompts that do not ask for it"):
            model.sight.judge.threshold = -1.0
            lacking(model, ["a cat"], 1, seed=0, tries=1)
        assert [one.status for one in Steering().run(model, CASES[:2], config)] == ["skipped"] * 2
    assert [one.score for one in found] == [one.score for one in again]
    assert [len(one.curve) for one in found] == [4, 4] and all("held-out loss" in one.note for one in found)
    tries = Spent(4, 16 + 4, 8 + 2, 5)
    assert found[1].spent == tries
    # 2 + 3 learned from, 1 + 1 held out: 5 pictures in 7 views, batches of 8; 4 pictures without the target judged
    assert found[0].spent == tries + Spent(5, 4 * 4, 4 * 2, 4)
    assert unchanged(sd2, before)


# -- a world of two modes -------------------------------------------------------------------------------------------

TARGET, NEIGHBOUR, SHARE, WIDTH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.0]), 0.1, 0.3
WORLD = Schedule.of(BETAS, 50)


def energy(x: torch.Tensor, level, mode: torch.Tensor) -> torch.Tensor:
    """log density, up to a constant, of a mode's noisy points (b, 2, 1, 1) at a level."""
    alpha, sigma = level
    return -(x[:, :, 0, 0] - alpha * mode).square().sum(1) / (2 * (alpha**2 * WIDTH**2 + sigma**2))


def odds(x: torch.Tensor, level) -> torch.Tensor:
    return energy(x, level, TARGET) - energy(x, level, NEIGHBOUR) + float(np.log(SHARE / (1 - SHARE)))


def denoiser(share):
    """The exact prediction for points of which `share(text)` are the target's."""

    def predict(x, timestep, text):
        alpha, sigma = level = WORLD.level(timestep)
        part = share(float(text.flatten()[0]))
        logit = energy(x, level, TARGET) - energy(x, level, NEIGHBOUR) + torch.logit(torch.tensor(part))
        weight = torch.sigmoid(logit)[:, None]
        mean = alpha * (weight * TARGET + (1 - weight) * NEIGHBOUR)
        return (sigma * (x[:, :, 0, 0] - mean) / (alpha**2 * WIDTH**2 + sigma**2))[:, :, None, None]

    return predict


def bayes(scale: float):
    """The push of the exact classifier."""

    def push(x: torch.Tensor, level) -> torch.Tensor:
        with torch.enable_grad():
            asked = x.detach().requires_grad_()
            return level[1] * scale * torch.autograd.grad(F.logsigmoid(odds(asked, level)).sum(), asked)[0]

    return push


def test_probes_tell_a_rerouted_prompt_from_a_removed_mode() -> None:
    whole = denoiser(lambda asked: 1.0 if asked else SHARE)
    victims = {"rerouted": denoiser(lambda asked: SHARE), "removed": denoiser(lambda asked: 0.0)}
    asked, noise = Text(torch.ones(1, 1, 1), torch.zeros(1, 1, 1)), torch.randn(
        16, 2, 1, 1, generator=torch.Generator().manual_seed(0))  # fmt: skip

    def shown(points: torch.Tensor) -> torch.Tensor:
        return (points[:, :, 0, 0] - TARGET).norm(dim=1) < 1

    def wandered(predict, push=None) -> torch.Tensor:  # 24 tries side by side, the best of each row
        pairs = [(e, v) for e in (1.0, 1.17, 1.34, 1.51, 1.68, 1.85) for v in (1.0, 1.02, 1.03, 1.04)]
        etas, factors = torch.tensor(pairs).repeat_interleave(16, 0)[:, :, None, None, None].unbind(1)
        churn = Churn(etas, factors, [torch.Generator().manual_seed(i) for i in range(len(etas))])
        found = sampled(predict, noise.repeat(24, 1, 1, 1), asked, schedule=WORLD, churn=churn, push=push)
        return shown(found).view(24, 16).any(0)

    assert float(shown(sampled(whole, noise, asked, schedule=WORLD)).float().mean()) > 0.9
    rates: dict[str, list[float]] = {}
    for name, predict in victims.items():
        begun = sampled(whole, noise, asked, schedule=WORLD, last=35)
        probes = [sampled(predict, noise, asked, schedule=WORLD), sampled(predict, begun, asked, schedule=WORLD, first=35),
                  sampled(predict, noise, asked, schedule=WORLD, push=bayes(3.0))]  # fmt: skip
        # The exact classifier knows where the target is: with noise and a larger scale it would carry points there by
        # itself, whatever the model. A weak push only helps a model that has the mode.
        found = [*map(shown, probes), wandered(predict), wandered(predict, bayes(0.2))]
        rates[name] = [float(one.float().mean()) for one in found]
    plain, completion, steering, tried, both = rates["rerouted"]
    assert plain < 0.4 and completion > 0.8 and steering > 0.8 and tried > 0.6 and both > 0.6, rates
    assert rates["removed"] == [0.0] * 5, rates


# -- what a user can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "words"), [
    (lambda: CompletionConfig(k=51), "k must be at most steps"), (lambda: CompletionConfig(k=-1), "k must be"),
    (lambda: InpaintingConfig(part=0.0), "part must be"), (lambda: InpaintingConfig(part=1.5), "part must be"),
    (lambda: NoiseConfig(etas=()), "etas is empty"), (lambda: NoiseConfig(factors=(-1.0,)), "factors must be"),
    (lambda: NoiseConfig(starts="x"), "starts must be one of case, fresh"), (lambda: NoiseConfig(draws=0), "draws"),
    (lambda: SteeringConfig(scales=()), "scales is empty"), (lambda: SteeringConfig(others=()), "others is empty"),
    (lambda: SteeringConfig(pictures=1), "pictures must be"), (lambda: SteeringConfig(epochs=0), "epochs must be"),
])  # fmt: skip
def test_wrong_parameters_are_named(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_they_are_attacks_by_name() -> None:
    for attack in (Completion, Inpainting, Noise, Steering):
        assert get(attack.name) is attack
