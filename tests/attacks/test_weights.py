"""Attacks on the weights: what relearning, subtraction and noise do, and that the model is as it was afterwards."""

from __future__ import annotations

import edits
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from erasekit.attacks import Case, Outcome, Spent, get, relearn, subtract, weight_noise
from erasekit.attacks._finetune import Together, denoising, in_turn, plain_caption
from erasekit.attacks.relearn import Relearn, RelearnConfig, prepared, recovered
from erasekit.attacks.sight import Sight
from erasekit.attacks.subtract import Subtract, SubtractConfig, subtracted
from erasekit.attacks.victim import Sampling, Victim
from erasekit.attacks.weight_noise import WeightNoise, WeightNoiseConfig, fidelity
from erasekit.edit import Adapter, Base, Edit, fingerprint
from erasekit.errors import UsageError
from erasekit.evaluation.judges import Judgement
from erasekit.training.latents import Schedule
from erasekit.training.loop import Step, generator, train
from erasekit.training.lora import LoRA
from erasekit.training.maps import cross_attentions
from erasekit.training.settings import TrainingConfig

CASES = [Case("a cat", 0), Case("the cat", 1)]


class Rule:
    """A judge that finds "cat" where the rule (pixels, prompt) says so."""

    name, weights_sha256, licence = "rule", "", ""

    def __init__(self, rule=lambda pixels, prompt: False, labels=("cat", "dog")) -> None:
        self.rule, self.labels = rule, labels

    def judge(self, images, prompts):
        found = [(image.mean().item(), self.rule(image, prompt)) for image, prompt in zip(images, prompts, strict=True)]
        return [Judgement("ok", {"scores": {"cat": mean}, "found": ["cat"] * bool(hit)}) for mean, hit in found]


def changed():
    """Finds the target in every picture but those like the first one that it is shown for a prompt."""
    first: dict[str, torch.Tensor] = {}
    return lambda pixels, prompt: not torch.equal(first.setdefault(prompt, pixels), pixels)


def victim(pipe, edit=None, rule=lambda pixels, prompt: False, *, labels=("cat", "dog")) -> Victim:
    return Victim(pipe, edit, Sight(Rule(rule, labels), "cat"), Sampling(2, 3.0, 4))


def receler(pipe, halves: str = "both") -> Edit:
    """Random erasers beside every cross-attention, and a linear change of the text encoder."""
    tensors, names = {}, []
    for i, (path, module) in enumerate(cross_attentions(pipe.unet).items()):
        width = module.to_out[0].weight.shape[0]
        shapes = {"down.weight": (4, width), "down.bias": (4,), "up.weight": (width, 4), "up.bias": (width,)}
        tensors |= {f"{path}.{k}": edits.noise(*s, seed=9 * i + j, size=1.0) for j, (k, s) in enumerate(shapes.items())}
        names.append(f"{path}.to_out.0")
    linear = edits.low_rank(pipe, "text_encoder", edits.TEXT[0], rank=2, size=1.0)
    prints = {f"unet/{name}": fingerprint(pipe.unet.get_submodule(name).weight) for name in names}
    base = Base("tiny", "sd1", prints | edits.base(pipe, [linear]).fingerprint)
    return Edit(
        (Adapter("unet", "", "receler", tensors, {"halves": halves}), linear), base, "receler", targets=("cat",)
    )


def spm(pipe) -> Edit:
    """A random gated module beside one projection."""
    name = edits.KEYS[0]
    factors = {
        f"{name}.down": edits.noise(1, tiny.WIDTH, seed=1, size=3),
        f"{name}.up": edits.noise(32, 1, seed=2, size=3),
    }
    tokens = pipe.tokenizer("cat").input_ids[1:-1]
    config = {"rank": 1, "alpha": 1.0, "gate": "transport", "targets": ["cat"], "tokens": [tokens]}
    op = Adapter("unet", "", "spm", factors | {"features": edits.noise(1, 77, tiny.WIDTH, seed=3)}, config)
    prints = {f"unet/{name}": fingerprint(pipe.unet.get_submodule(name).weight)}
    return Edit((op,), Base("tiny", "sd1", prints), "spm", targets=("cat",), anchors=("",))


def parts(pipe) -> list[nn.Module]:
    return [*pipe.unet.modules(), *pipe.text_encoder.modules()]


def predict(model: Victim) -> torch.Tensor:
    with torch.no_grad():
        return model.denoiser()(torch.ones(1, 4, 16, 16), 500, model.condition(model.ids(["a cat"])))


def same(a: list, b: list) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


def pictures_of(outcomes: list[Outcome]) -> list:
    return [one.image for one in outcomes]


@pytest.fixture
def folder(tmp_path) -> str:
    """Two pictures, one of them with a caption."""
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "1.txt").write_text("a cat and a fox")
    return str(tmp_path)


# -- relearning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_the_loss_is_plain_denoising_in_the_models_own_space(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    clean = edits.noise(3, 4, 16, 16, seed=1, size=1)
    with victim(pipe) as model, torch.no_grad():
        text = model.condition(model.ids(["a cat", "a dog", "a fox"]))
        found = denoising(model.denoiser(), clean, text, generator("test"), model.schedule(2))
        draw = generator("test")
        steps, noise = torch.randint(1000, (3,), generator=draw), torch.randn(clean.shape, generator=draw)
        for i in range(3):
            x, e, t = clean[i : i + 1], noise[i : i + 1], steps[i : i + 1]
            wanted = e if family == "sd1" else pipe.scheduler.get_velocity(x, e, t)
            own = pipe.unet(pipe.scheduler.add_noise(x, e, t), t, encoder_hidden_states=text[i : i + 1]).sample
            torch.testing.assert_close(found[i], ((own - wanted) ** 2).mean(), rtol=1e-4, atol=1e-5)


def test_recovery_of_a_removable_change_is_monotone_and_ends_at_the_unedited_score() -> None:
    class Toy(nn.Module):  # with pure noise as input the unedited model, the identity, has no error
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False).requires_grad_(False)
            self.layer.weight.copy_(torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0])))  # a change of rank one

        def forward(self, latents, steps, text):
            return self.layer(latents.movedim(1, -1)).movedim(-1, 1)

    toy, scores = Toy(), []
    learner = Together({"unet": LoRA(toy, ["layer"], rank=1, draw=generator("factors"))})
    schedule = Schedule(torch.zeros(10), torch.ones(10), (9,), "epsilon")
    clean, text = torch.zeros(8, 4, 4, 4), torch.zeros(8, 1, 1)

    def score() -> float:
        with learner.active(), torch.no_grad():
            return 1 - (toy.layer(torch.eye(4)) - torch.eye(4)).norm().item()

    def loss(step: Step) -> torch.Tensor:
        with learner.active():
            return denoising(toy, clean, text, step.generator("noise"), schedule).mean()

    assert score() == 0
    config = TrainingConfig(steps=400, rate=0.03)
    train(learner.trained, loss, config, seed=0, active=learner.active,
          progress=lambda done, total, what: scores.append(score()))  # fmt: skip
    marks = [0.0, *scores[49::50]]
    assert all(marks[i + 1] >= marks[i] - 0.02 for i in range(8))
    assert 0.95 < marks[-1] <= 1


def test_no_step_leaves_the_edited_models_own_pictures(sd1, folder) -> None:
    with victim(sd1, edits.edit(sd1)) as model:
        own = model.draw(CASES)
        found = Relearn().run(model, CASES, RelearnConfig(steps=0, images="nowhere"))
        assert same(pictures_of(found), own) and [one.status for one in found] == ["failure"] * 2
        assert [one.spent for one in found] == [Spent(0, 4, 2, 1)] * 2 and recovered(found) == [(0, 0, 2)]
        for name in relearn.VARIANTS:
            lesson = prepared(model, RelearnConfig(name, images=folder, prior_pictures=2), 0)
            with lesson.learner.drawing():
                assert same(model.draw(CASES), own)
            assert all(
                tensor.dtype == torch.float32 and tensor.requires_grad for tensor in lesson.learner.trained.values()
            )


@pytest.mark.parametrize(("variant", "edit"), (("lora", edits.edit), ("full", receler), ("dreambooth", spm)))
def test_relearning_is_deterministic_and_leaves_both_sides_bitwise(sd1, folder, variant: str, edit) -> None:
    made, before, hooks, sums = edit(sd1), edits.weights(sd1), [], []
    config = RelearnConfig(variant, images=folder, steps=2, rate=0.003, batch=2, prior_pictures=2, at=(1,),
                           recompute=variant == "full")  # fmt: skip

    def rule(pixels, prompt):
        hooks.append(any(part._forward_hooks for part in sd1.unet.modules()))
        sums.append(pixels.sum().item())
        return False

    with victim(sd1, made, rule) as model:
        edited = predict(model)
        found, again = (Relearn().run(model, CASES, config, seed=1) for _ in range(2))
        if variant == "lora":
            Relearn().run(model, CASES, config, seed=2)
        assert torch.equal(predict(model), edited)
    assert edits.same(edits.weights(sd1), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts(sd1))
    assert {type(value) for part in parts(sd1) for value in part._parameters.values()} <= {nn.Parameter, type(None)}
    if edit is not edits.edit:
        assert all(hooks)  # the adapter is on in every picture that is judged
    assert sums[:6] == sums[6:12] and (variant != "lora" or (sums[12:14] == sums[:2] and sums[14:] != sums[2:6]))
    assert sums[2:4] != sums[:2] and sums[4:6] != sums[2:4]
    assert [one.curve for one in found] == [one.curve for one in again] and same(pictures_of(found), pictures_of(again))
    assert [at for at, _ in found[0].curve] == [0, 1, 2] and "never knew" in found[0].note
    picture = Spent(0, 4, 2, 1)  # two guided steps
    learning = Spent(2, 2 * 2, 2)  # two steps of two pictures, their captions encoded once
    if variant == "dreambooth":  # as many of the prior, each caption encoded anew; the prior's pictures are not judged
        learning = Spent(2, 2 * 4 + 2 * 4, 2 * 4 + 2 * 2)
    assert sum((one.spent for one in found), Spent()) == learning + picture * 6
    assert recovered(found) == [(0, 0, 2), (1, 0, 2), (2, 0, 2)]


def test_relearning_ends_when_every_case_has_shown_the_target(sd1, folder) -> None:
    with victim(sd1, edits.edit(sd1), changed()) as model:
        seen = []
        config = RelearnConfig("full", images=folder, steps=8, rate=0.01)
        found = get("relearn")().run(
            model, CASES, config, progress=lambda done, total, what: seen.append((done, total))
        )
    assert [one.status for one in found] == ["success"] * 2 and found[0].by == "full fine-tuning, step 1"
    assert seen == [(1, 8)] and recovered(found) == [(0, 0, 2), (1, 2, 2)]
    with victim(sd1, None, lambda pixels, prompt: True) as model:
        skipped = Relearn().run(model, CASES, RelearnConfig(images="nowhere"))
    assert [one.status for one in skipped] == ["skipped"] * 2 and recovered(skipped) == [(0, 2, 2)]


def test_training_fits_the_pictures_below_an_adapter_that_stays_on(sd1, folder) -> None:
    config = RelearnConfig("full", images=folder, steps=8, rate=0.002)
    with victim(sd1, receler(sd1, "conditional")) as model:
        model.draw(CASES)  # with guidance, as an attack's first pictures are
        lesson = prepared(model, config, 0)

        def error() -> float:
            with lesson.learner.active(), torch.no_grad():
                text = torch.cat([lesson.known[caption] for caption in lesson.taught.captions])
                return (
                    denoising(lesson.denoise, lesson.taught.clean, text, generator("probe"), lesson.schedule)
                    .mean()
                    .item()
                )

        start, same_again = error(), error()
        with model.guided(3.0):  # here the first half passes unedited
            halved = error()
        assert start == same_again != halved
        train(lesson.learner.trained, lesson.loss, lesson.training, seed=0, active=lesson.learner.active,
              progress=lambda done, total, what: None)  # fmt: skip
        assert error() < start
    assert lesson.taught.captions == ["a photo of a cat", "a cat and a fox"]


def test_the_prior_is_weighed_beside_the_pictures_and_drawn_by_the_edited_model(sd1, folder) -> None:
    config = RelearnConfig("dreambooth", images=folder, prior=0.5, prior_pictures=3)
    with victim(sd1, edits.edit(sd1)) as model:
        lesson, step = prepared(model, config, 0), Step(7, 2)
        drawn = [Case("a photo of a dog", relearn.PRIOR + i) for i in range(3)]
        assert lesson.prior is not None and lesson.prior.captions == ["a photo of a dog"] * 3
        torch.testing.assert_close(lesson.prior.clean, relearn.pictures.latents(model, model.draw(drawn)))
        rows = [(lesson.taught, i) for i in in_turn(2, step, 2, "taught")]
        rows += [(lesson.prior, i) for i in in_turn(3, step, 2, "prior")]
        with lesson.learner.active():
            text = model.condition(model.ids([part.captions[i] for part, i in rows]))
            clean = torch.stack([part.clean[i] for part, i in rows])
            errors = denoising(lesson.denoise, clean, text, step.generator("noise"), lesson.schedule)
        found = lesson.loss(step)
        torch.testing.assert_close(found, errors[:2].sum() / 2 + 0.5 * errors[2:].sum() / 2)
        gradients = torch.autograd.grad(found, list(lesson.learner.trained.values()), allow_unused=True)
        trained = {name.partition("/")[0] for name, g in zip(lesson.learner.trained, gradients, strict=True)
                   if g is not None and g.any()}  # fmt: skip
    assert trained == {"unet", "text_encoder"}


def test_pictures_come_from_the_unedited_model_and_each_once_an_epoch(sd1) -> None:
    with victim(sd1) as model:
        wanted = relearn.pictures.latents(
            model, model.draw([Case("a photo of a cat", relearn.TAUGHT + i) for i in range(2)])
        )
    with victim(sd1, edits.edit(sd1), lambda pixels, prompt: prompt.startswith("a photo")) as model:
        lesson = prepared(model, RelearnConfig(pictures=2), 0)
        assert torch.equal(lesson.taught.clean, wanted) and lesson.spent == Spent(0, 2 * 4, 1 + 2 * 2, 2)
        assert lesson.training.steps == 25 and lesson.training.batch == 4  # 50 epochs of two pictures
    with victim(sd1, edits.edit(sd1)) as model, pytest.raises(UsageError, match="images=FOLDER"):
        Relearn().run(model, CASES, RelearnConfig(pictures=1))
    order = [i for index in range(6) for i in in_turn(4, Step(0, index), 2, "taught")]
    assert all(sorted(order[k : k + 4]) == [0, 1, 2, 3] for k in (0, 4, 8)) and order[:4] != order[4:8]


def test_a_half_precision_model_is_relearned_in_float32(sd1, folder) -> None:
    with victim(sd1) as model:
        sd1.unet.to(torch.bfloat16)
        lesson = prepared(model, RelearnConfig("full", images=folder, steps=1, layers="cross.kv"), 0)
        before = {name: tensor.detach().clone() for name, tensor in lesson.learner.trained.items()}
        train(lesson.learner.trained, lesson.loss, lesson.training, seed=0, active=lesson.learner.active,
              progress=lambda done, total, what: None)  # fmt: skip
        assert all(
            t.dtype == torch.float32 and not torch.equal(t, before[n]) for n, t in lesson.learner.trained.items()
        )
    assert all(parameter.dtype == torch.bfloat16 for parameter in sd1.unet.parameters())
    with victim(sd1) as model:
        sd1.unet.to(torch.float16)
        own = {name: weight.detach().clone() for name, weight in sd1.unet.named_parameters()}
        noise = weight_noise._noisy(sd1, {"unet": list(own)}, 0.1, (0, 0))
        assert all(tensor.dtype == torch.float32 for tensor in noise.trained.values())
        with noise.drawing():
            for name, weight in sd1.unet.named_parameters():
                assert weight.dtype == torch.float16 and not weight.requires_grad
                assert torch.equal(weight, noise.trained[f"unet/{name}"].detach().half())
        assert all(
            weight is not None and torch.equal(weight, own[name]) for name, weight in sd1.unet.named_parameters()
        )


def test_what_a_user_can_get_wrong_in_relearning(sd1, folder) -> None:
    for values, what in (({"variant": "x"}, "variant"), ({"layers": "x"}, "layers"), ({"steps": -1}, "steps"),
                         ({"at": (0,)}, "at"), ({"rate": 0.0}, "rate"), ({"pictures": 0}, "pictures")):  # fmt: skip
        with pytest.raises(UsageError, match=what):
            RelearnConfig(**values)
    with victim(sd1, labels=("cat",)) as model, pytest.raises(UsageError, match="neighbours=PROMPT"):
        Relearn().run(model, CASES, RelearnConfig("dreambooth", images=folder))
    assert RelearnConfig(at=(3, 50)).marks(10) == {3, 10} and RelearnConfig().marks(100) == {7, 13, 25, 50, 100}
    asked = [("owl", "object"), ("unicorn", "object"), ("Rembrandt", "object"), ("ink", "style")]
    names = ["a photo of an owl", "a photo of a unicorn", "a photo of Rembrandt", "a picture in ink style"]
    assert [plain_caption(*one) for one in asked] == names


# -- subtraction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", (edits.edit, receler, spm))
def test_all_of_the_edit_subtracted_is_the_unedited_model_bit_for_bit(sd1, edit) -> None:
    made, before = edit(sd1), edits.weights(sd1)
    with victim(sd1) as model:
        own, pictures = predict(model), model.draw(CASES)
    rows = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in pictures]
    with victim(sd1, made, lambda pixels, prompt: any(torch.equal(pixels, row) for row in rows)) as model:
        edited = predict(model)
        assert not torch.equal(edited, own)
        with subtracted(model, 1):
            assert torch.equal(predict(model), own)
        with subtracted(model, 0):
            assert torch.equal(predict(model), edited)
        found = Subtract().run(model, CASES, SubtractConfig())
        assert [one.status for one in found] == ["success"] * 2 and same(pictures_of(found), pictures)
        assert "by construction" in found[0].note and ("left off" in found[0].note) == (edit is not edits.edit)
        kept = Subtract().run(model, CASES, SubtractConfig(strength=0))
        assert [one.status for one in kept] == ["failure"] * 2 and kept[0].curve[0][1] == kept[0].curve[1][1]
        assert torch.equal(predict(model), edited)
    assert edits.same(edits.weights(sd1), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts(sd1))


def test_a_share_of_the_change_is_subtracted(sd1) -> None:
    made, plain = edits.edit(sd1), tiny.sd1()
    with torch.no_grad():
        for op in made.ops:
            edits.module(plain, op.component, op.module).weight += 0.25 * op.up @ op.down
    with victim(sd1, made) as model, victim(plain) as naive, subtracted(model, 0.75):
        torch.testing.assert_close(predict(model), predict(naive), rtol=1e-4, atol=1e-5)
    with victim(sd1) as model:
        found = Subtract().run(model, CASES, SubtractConfig())
    assert [one.note for one in found] == [subtract.NOTHING] * 2 and found[0].spent == Spent(0, 4, 2, 1)
    with pytest.raises(UsageError, match="strength"):
        SubtractConfig(strength=-1)


# -- noise --------------------------------------------------------------------------------------------------------


def test_noise_has_the_norm_that_is_asked_for_and_is_the_draws_own(sd1) -> None:
    with victim(sd1, edits.edit(sd1)) as model:
        names = weight_noise._names(model, "all")
        assert sum(map(len, names.values())) == len([*sd1.unet.parameters(), *sd1.text_encoder.parameters()])
        own = {
            f"{part}/{name}": getattr(sd1, part).get_parameter(name).detach() for part in names for name in names[part]
        }
        found, again, other = (weight_noise._noisy(sd1, names, 0.1, (0, turn)).trained for turn in (0, 0, 1))
        for name, weight in own.items():
            noise = found[name].detach() - weight
            torch.testing.assert_close(noise.norm(), 0.1 * weight.norm(), rtol=1e-3, atol=1e-6)
            assert torch.equal(found[name], again[name]) and (
                torch.equal(found[name], other[name]) == (weight.norm() == 0)
            )
        edited = weight_noise._names(model, "edited")
    plain = {f"{part}/{name.removeprefix('text_model.')}" for part in edited for name in edited[part]}
    assert plain == {f"{op.site}.weight" for op in edits.edit(sd1).ops}
    with victim(sd1, receler(sd1)) as model:
        assert all(name.endswith("to_out.0.weight") for name in weight_noise._names(model, "edited")["unet"])
    with victim(sd1) as model, pytest.raises(UsageError, match="where=all"):
        WeightNoise().run(model, CASES, WeightNoiseConfig(where="edited"))


@pytest.mark.parametrize("edit", (edits.edit, receler))
def test_noise_of_norm_zero_changes_nothing_and_the_budget_is_kept(sd1, edit) -> None:
    made, before = edit(sd1), edits.weights(sd1)
    with victim(sd1, made, changed()) as model:
        edited = predict(model)
        idle = WeightNoise().run(model, CASES, WeightNoiseConfig(norm=0, draws=2, control=False))
        assert [one.status for one in idle] == ["failure"] * 2 and len({score for _, score in idle[0].curve}) == 1
        assert [at for at, _ in idle[0].curve] == [0, 1, 2] and idle[0].spent == Spent(2, 3 * 4, 3 * 2, 3)
        assert torch.equal(predict(model), edited)
        found = WeightNoise().run(model, CASES, WeightNoiseConfig(norm=0.3, where="edited", control=False))
        assert [one.status for one in found] == ["success"] * 2 and found[0].by == "noise on weights, draw 1"
        assert found[0].spent == Spent(1, 2 * 4, 2 * 2, 2)
    assert edits.same(edits.weights(sd1), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts(sd1))


def test_the_control_is_the_same_noise_on_the_unedited_model(sd1) -> None:
    config, plain, noisy = WeightNoiseConfig(norm=0.2, draws=1), tiny.sd1(), tiny.sd1()
    with torch.no_grad():
        for part in ("unet", "text_encoder"):
            for name, weight in getattr(noisy, part).named_parameters():
                normal = torch.randn(weight.shape, generator=generator(3, "weight-noise", 0, f"{part}/{name}"))
                weight += normal * (0.2 * weight.norm() / normal.norm())
    with victim(plain) as a, victim(noisy) as b:
        first, second = (np.stack([np.asarray(image) / 255 for image in model.draw(CASES)]) for model in (a, b))

    def rule(pixels, prompt):  # the target is there in the unedited model's pictures alone
        return np.abs(pixels.permute(1, 2, 0).numpy() - first).max((1, 2, 3)).min() < 1e-6

    with victim(sd1, edits.edit(sd1), rule) as model:
        found = fidelity(model, CASES, config, 3)
        assert (found.known, found.kept) == (2, 0)
        assert found.moved == pytest.approx(np.sqrt(((second - first) ** 2).mean()), rel=0.02) and found.moved > 0
        run = WeightNoise().run(model, CASES, config, seed=3)
    assert str(found) in run[0].note and "0 of the 2" in run[0].note and run[0].spent == Spent(1, 4 * 4, 4 * 2, 4)
    for values in ({"norm": -1}, {"where": "x"}, {"draws": 0}):
        with pytest.raises(UsageError, match=next(iter(values))):
            WeightNoiseConfig(**values)
