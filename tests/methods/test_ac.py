"""AC: the oracles of its paper, resuming, and what a user can get wrong; on tiny random models."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

import erasekit
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import TrainingError, UsageError
from erasekit.methods import make_config, resolve
from erasekit.methods._ac_batch import Batch, _sized, draw, picked
from erasekit.methods._ac_run import opened_run
from erasekit.methods._ac_students import RowsStudent, bos_detached, own_tokens
from erasekit.methods._anchors import CLOSE, FAR, KINDS, of_folder, read_captions, to_draw
from erasekit.methods.ac import AC, loss
from erasekit.training import images as pictures
from erasekit.training.checkpoint import Checkpoint
from erasekit.training.loop import Step
from erasekit.training.parameters import select

QUICK = {"steps": 3, "rate": 1e-3, "sampling_steps": 2, "images": 4, "batch": 2, "augment": False}


def fit(model, targets="cat", *, anchor="dog", retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(AC, QUICK | options)
    return AC().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


class opened:
    """A run with its images, without training."""

    def __init__(self, pipe, targets="cat", *, anchor="dog", **options) -> None:
        request = EraseRequest.build(targets, anchor=anchor)
        self.run = opened_run(backbone(pipe), request, make_config(AC, QUICK | options))

    def __enter__(self):
        return self.run.__enter__().with_images(None, lambda *_: None)

    def __exit__(self, *error) -> None:
        self.run.__exit__(*error)


def state(pipe) -> dict[str, str]:
    """A digest of every tensor of the pipeline, the switches of all parameters and modules, and their hooks."""
    found: dict[str, str] = {}
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        found |= {f"{part}.{k}": hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()
                  for k, v in module.state_dict().items()}  # fmt: skip
        found |= {f"{part}.{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in module.named_parameters()}
        found |= {f"{part}.{k} mode": f"{m.training} {len(m._forward_hooks)}" for k, m in module.named_modules()}
    return found


def same(a: Edit, b: Edit) -> bool:
    one, other = ({(op.site, k): v for op in e.ops for k, v in op.tensors().items()} for e in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def gradients(run, value) -> dict[str, torch.Tensor | None]:
    names = list(run.bench.student.trained)
    return dict(zip(names, torch.autograd.grad(value, [run.bench.student.trained[n] for n in names], allow_unused=True),
                    strict=True))  # fmt: skip


def plain(pipe, batch: Batch, prompts: list[str]) -> torch.Tensor:
    """One forward pass for each sample, of the pipeline as it is."""
    text = backbone(pipe).encode(prompts)
    with torch.no_grad():
        return torch.cat([pipe.unet(batch.latents[i : i + 1], int(t), encoder_hidden_states=text[i : i + 1]).sample
                          for i, t in enumerate(batch.timesteps)])  # fmt: skip


# -- the objective ------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = make_config(AC, {})
    assert (config.steps, config.batch, config.rate, config.variant) == (100, 8, 1.6e-5, "cross.kv")
    assert config.rate == pytest.approx(2e-6 * 4 * 2) and (config.decay, config.clip) == (0.01, 1.0)
    assert (config.loss, config.teacher, config.images, config.regulariser) == ("model", "student", 1000, 0)
    method, preset = resolve("ac:style")
    assert not make_config(method, dict(preset.values)).augments and config.augments and preset.anchor == "painting"
    memory = make_config(method, dict(resolve("ac:memorised")[1].values))
    assert (memory.steps, memory.variant, memory.kind) == (400, "full", "memorised") and not memory.augments
    assert memory.rate == pytest.approx(5e-7 * 2 * 2) and memory.regulariser > 0
    nudity = make_config(method, dict(resolve("ac:nudity")[1].values))
    assert (nudity.steps, nudity.variant, nudity.batch) == (400, "attention", 4)
    assert nudity.rate == pytest.approx(4e-6 * 4 * 2) and nudity.regulariser == 1


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize(("kind", "teacher"), [("model", "student"), ("model", "frozen"), ("noise", "student")])
@pytest.mark.parametrize("regulariser", [0.0, 0.5])
def test_the_loss_is_the_papers_sample_by_sample(
    family: str, kind: str, teacher: str, regulariser: float, request
) -> None:
    """Against single forward passes and plain sums, also under masks, and where the student has moved."""
    pipe = request.getfixturevalue(family)
    with opened(pipe, loss=kind, teacher=teacher, regulariser=regulariser) as run:
        batch = draw(run, Step(0, 0))
        mask = torch.zeros(2, 1, 16, 16)
        mask[0, :, 2:9, 3:5], mask[1, :, :, 4:] = 1, 1
        batch = replace(batch, mask=mask)
        with torch.no_grad():
            for tensor in run.bench.student.trained.values():
                tensor.mul_(1.1)
        value = float(loss(run, batch).detach())
        with run.bench.student.active():
            target, anchor = plain(pipe, batch, batch.targets), plain(pipe, batch, batch.captions)
        frozen = plain(pipe, batch, batch.captions)
    naive = 0.0
    for i in range(2):
        wanted = batch.truth if kind == "noise" else frozen if teacher == "frozen" else anchor
        inside = [(c, y, x) for c in range(4) for y, x in mask[i, 0].nonzero().tolist()]
        naive += sum(float((target - wanted)[(i, *at)]) ** 2 for at in inside) / len(inside) / 2
        naive += regulariser * sum(float((anchor - batch.truth)[(i, *at)]) ** 2 for at in inside) / len(inside) / 2
    assert value == pytest.approx(naive, rel=2e-4)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_latents_are_noised_to_exactly_their_timestep_and_truth_is_what_the_model_predicts(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    levels = pipe.scheduler.alphas_cumprod.double()
    times: set[int] = set()
    with opened(pipe, batch=4, steps=8) as run:
        for index in range(8):
            batch, again = draw(run, Step(0, index)), draw(run, Step(0, index))
            assert torch.equal(batch.latents, again.latents) and batch.targets == again.targets
            times |= set(batch.timesteps.tolist())
            noise = run.bench.noise(Step(0, index).generator("noise"))
            for i, t in enumerate(batch.timesteps.tolist()):
                a, s = float(levels[t].sqrt()), float((1 - levels[t]).sqrt())
                clean = (batch.latents[i] - s * noise[i]) / a
                assert min(float((clean - image).abs().max()) for image in run.images) < 1e-3 * float(run.images.abs().max())
                wanted = noise[i] if family == "sd1" else a * noise[i] - s * clean
                torch.testing.assert_close(batch.truth[i], wanted, rtol=1e-3, atol=1e-3)
    assert len(times) > 24 and max(times) > 700 and min(times) < 300  # each sample has its own


def test_the_same_caption_twice_gives_no_loss_and_no_gradient(sd1) -> None:
    for options in ({}, {"teacher": "frozen"}):
        with opened(sd1, **options) as run:
            batch = draw(run, Step(0, 0))
            value = loss(run, replace(batch, targets=batch.captions))
            assert float(value.detach()) == 0
            assert all(g is None or not bool(g.any()) for g in gradients(run, value).values())
            assert float(loss(run, batch).detach()) > 1e-9


def test_a_full_mask_is_the_plain_mean_and_what_is_outside_counts_for_nothing(sd1) -> None:
    from erasekit.training.losses import squared_error

    draws = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(1, 4, 8, 8, generator=draws) for _ in range(2))
    assert float(squared_error(found, wanted, torch.ones(1, 1, 8, 8))) == pytest.approx(
        float((found - wanted).square().mean()))  # fmt: skip
    padded = [torch.cat([x, 1e3 * torch.randn(1, 4, 8, 8, generator=draws)], 3) for x in (found, wanted)]
    mask = torch.cat([torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)], 3)
    assert float(squared_error(*padded, mask)) == pytest.approx(float((found - wanted).square().mean()))


def test_the_first_token_keeps_its_values_and_passes_no_gradient(sd1) -> None:
    latents, one = torch.randn(1, 4, 16, 16), torch.randn(1, 1, 32)
    names = select(sd1.unet, "cross.kv")
    tensors = [sd1.unet.get_parameter(name) for name in names]
    for text, bare in ((one, True), (torch.randn(1, 3, 32), False)):
        before = sd1.unet(latents, 500, encoder_hidden_states=text).sample
        with bos_detached(sd1.unet):
            during = sd1.unet(latents, 500, encoder_hidden_states=text).sample
        assert torch.equal(before, during)
        found = torch.autograd.grad(during.square().sum(), tensors, allow_unused=True)
        assert bare == all(g is None or not bool(g.any()) for g in found)
    own = torch.autograd.grad(before.square().sum(), tensors)
    assert any(not torch.allclose(a, b) for a, b in zip(own, found, strict=True))  # the row does matter
    assert not any(m._forward_hooks for m in sd1.unet.modules())


def test_the_runs_own_gradient_leaves_the_first_token_out(sd1) -> None:
    """The student's gradient is that of a network whose keys and values of BOS come from frozen copies."""
    with opened(sd1) as run:
        batch = draw(run, Step(0, 0))
        found = gradients(run, loss(run, batch))
        with run.bench.student.active():
            text = run.text(batch.targets)
            values = torch.nn.functional.mse_loss(run.bench.denoise(batch.latents, batch.timesteps, text),
                                                  plain(sd1, batch, batch.captions))  # fmt: skip
        own = gradients(run, values)
        for module in {name.rpartition(".")[0] for name in found}:
            part, name = sd1.unet.get_submodule(module), f"{module}.weight"
            frozen, trained = part.weight.detach(), run.bench.student.trained[name]

            def split(inputs, frozen=frozen, trained=trained):
                return torch.cat([inputs[:, :1] @ frozen.T, inputs[:, 1:] @ trained.T], 1)

            part.forward = split
        try:
            naive = gradients(run, torch.nn.functional.mse_loss(
                run.bench.denoise(batch.latents, batch.timesteps, text), plain(sd1, batch, batch.captions)))  # fmt: skip
        finally:
            for module in {name.rpartition(".")[0] for name in found}:
                del sd1.unet.get_submodule(module).forward
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, naive[name], rtol=1e-3, atol=1e-7)
    assert torch.allclose(own[name], found[name])  # active() cuts whatever is computed in it


def test_the_teacher_carries_no_gradient(sd1) -> None:
    """The analytic gradient is the difference quotient of the loss with the anchor's output held fixed."""
    sd1.unet.double()
    with opened(sd1, batch=1) as run:
        batch = draw(run, Step(0, 0))
        batch = replace(batch, latents=batch.latents.double())
        name = next(iter(run.bench.student.trained))
        tensor = run.bench.student.trained[name]
        gradient = gradients(run, loss(run, batch))[name]
        fixed = run.wanted(batch)
        direction = gradient / gradient.norm()

        def at(move: float, *, follow: bool = False) -> float:
            with torch.no_grad():
                tensor.add_(move * direction)
                # With BOS in it, the value moves more than the gradient says: hold its rows as they were.
                with run.bench.student.active(), held_bos(sd1.unet, name, tensor - move * direction):
                    found = run.predict(batch, batch.targets)
                    wanted = run.predict(batch, batch.captions) if follow else fixed
                tensor.sub_(move * direction)
                return float((found - wanted).square().mean())

        assert (at(1e-4) - at(-1e-4)) / 2e-4 == pytest.approx(float(gradient.norm()), rel=1e-3)
        moving = (at(1e-4, follow=True) - at(-1e-4, follow=True)) / 2e-4
        assert moving != pytest.approx(float(gradient.norm()), rel=1e-2)


class held_bos:
    """Inside, one projection's first row is what other weights give."""

    def __init__(self, unet, name: str, weight: torch.Tensor) -> None:
        self.part, self.weight = unet.get_submodule(name.rpartition(".")[0]), weight.detach().clone()

    def __enter__(self) -> None:
        def hook(module, inputs, output):
            return torch.cat([inputs[0][:, :1] @ self.weight.T, output[:, 1:]], 1)

        self.handle = self.part.register_forward_hook(hook)

    def __exit__(self, *error) -> None:
        self.handle.remove()


def test_the_teacher_is_the_student_as_it_is_now_or_the_frozen_model(sd1) -> None:
    found = {}
    for teacher in ("student", "frozen"):
        with opened(sd1, teacher=teacher) as run:
            batch = draw(run, Step(0, 0))
            with torch.no_grad():
                for tensor in run.bench.student.trained.values():
                    tensor.mul_(1.3)
            found[teacher] = run.wanted(batch)
            frozen = plain(sd1, batch, batch.captions)
            with run.bench.student.active():
                current = plain(sd1, batch, batch.captions)
    torch.testing.assert_close(found["student"], current, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["frozen"], frozen, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(frozen, current, rtol=1e-3, atol=1e-4)


# -- captions -----------------------------------------------------------------------------------------------------


def test_captions_of_each_kind_are_those_of_the_note() -> None:
    request = EraseRequest.build("grumpy cat", anchor="cat")
    gallery = to_draw(request, "object", ["A Cat, near a cat", "the {} sleeps", "a dog"], 4)
    assert [item.caption for item in gallery.items[0]] == ["A cat, near a cat", "the cat sleeps"] * 2
    assert [item.targets for item in gallery.items[0]][:2] == [("A grumpy cat, near a grumpy cat",), ("the grumpy cat sleeps",)]
    assert gallery.dropped == 1 and gallery.drawn == (("A cat, near a cat", ""), ("the cat sleeps", "")) * 2
    style = to_draw(EraseRequest.build("monet", anchor="painting"), "style", ["painting of a river"], 1).items[0][0]
    assert style.targets == ("painting of a river, in the style of monet", *["in monet's style, painting of a river"] * 2)
    worded = to_draw(EraseRequest.build("Ink style", anchor="painting"), "style", ["painting of a river"], 1).items[0][0]
    assert worded.targets[:2] == ("painting of a river, in the style of Ink", "in Ink's style, painting of a river")
    bare = to_draw(EraseRequest.build("nudity", anchor=""), "nudity", [], 2)
    assert bare.drawn[0] == ("a person on a beach", "nudity")
    assert bare.items[0][0].targets == ("nudity, a person on a beach", "in nudity style, a person on a beach",
                                        "a person on a beach, nudity")  # fmt: skip
    memory = to_draw(EraseRequest.build("the caption", anchor="its paraphrase"), "memorised", [], 2)
    assert memory.items[0][1] == (1, "its paraphrase", ("the caption",))
    assert all(len(set(kind.captions)) == len(kind.captions) for kind in KINDS.values())


def test_targets_share_the_images_of_their_anchor_and_are_all_drawn(sd1) -> None:
    request = EraseRequest.build(["x", "y", "z"], anchor=["cat", "cat", "dog"])
    gallery = to_draw(request, "object", [], 5)
    assert len(gallery.drawn) == 10
    assert [[item.image for item in items] for items in gallery.items] == [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]]
    assert len(to_draw(request, "nudity", [], 5).drawn) == 15  # the target is its own negative prompt
    with opened(sd1, ["x", "y"], anchor=["cat", "dog"], batch=8) as run:
        batch = draw(run, Step(0, 0))
    assert {t for t in "xy" if any(f" {t} " in f" {target} " for target in batch.targets)} == {"x", "y"}


def test_only_images_that_some_step_learns_from_are_drawn(sd1) -> None:
    with opened(sd1, images=500, steps=4, accumulate=2) as run:
        seen = [draw(run, Step(0, index, part)) for index in range(4) for part in range(2)]
        assert len(run.images) == len(run.used) == len(run.rows) <= 4 * 2 * 2
        images = {item.image: item.caption for item in run.gallery.items[0]}
        assert {caption for batch in seen for caption in batch.captions} == {images[number] for number in run.used}


def test_a_style_has_its_forms_one_to_two(sd1) -> None:
    with opened(sd1, "x", anchor="photo", kind="style", batch=200) as run:
        targets = draw(run, Step(0, 0)).targets
    assert 40 < sum("in the style of x" in target for target in targets) < 95
    assert all(("in the style of x" in t) != t.startswith("in x's style, photo of") for t in targets)


def test_each_sample_has_its_own_augmentation_and_the_targets_caption_alone_says_so(sd1) -> None:
    levels, seen = sd1.scheduler.alphas_cumprod.double(), set()
    with opened(sd1, augment=True, batch=16, steps=1) as run:
        step = Step(0, 0)
        batch, chance = draw(run, step), step.generator("augmentation")
        noise = run.bench.noise(step.generator("noise"))
        for i, (item, target) in enumerate(picked(run, step.generator("items"))):
            image = pictures.decoded(run.vae, run.images[run.rows[item.image]][None])[0]
            one, level = pictures.augmented(image, 2, chance), levels[batch.timesteps[i]]
            clean = pictures.encoded(run.vae, one.image[None])[0]
            wanted = (level.sqrt() * clean + (1 - level).sqrt() * noise[i]).float()
            torch.testing.assert_close(batch.latents[i], wanted, rtol=1e-3, atol=1e-3)
            said = FAR if one.scale < 0.6 else CLOSE if one.scale > 1 else ("{}",)
            assert batch.targets[i] in [form.replace("{}", target) for form in said]
            assert torch.equal(batch.mask[i], one.mask) and batch.captions[i] == item.caption
            seen.add(said)
    assert len(seen) == 3
    draws = torch.Generator().manual_seed(0)
    found = {scale: {_sized("c", scale, draws) for _ in range(20)} for scale in (0.599, 0.6, 1.0, 1.001)}
    assert found[0.599] == {"a far away c", "very small c"} and found[0.6] == found[1.0] == {"c"}
    assert found[1.001] == {"zoomed in c", "close up c"}


# -- what training does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_target_goes_to_the_anchor_on_images_that_were_not_seen(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    edit = fit(pipe, steps=30, rate=2e-3, retain=("fox",))
    check = edit.self_check
    assert check["residual"] < 0.6 and check["retained_drift"] > 0 and len(check["training"]["loss"]) == 20
    assert any("does not hold on" in said for said in check["warnings"])
    with opened(pipe, images=40, steps=8) as run:  # four of them were learned from
        clean = torch.stack([run.images[row] for number, row in run.rows.items() if number >= QUICK["images"]][:4])
    noise, level = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(9)), pipe.scheduler.alphas_cumprod[500]
    latents = level.sqrt() * clean + (1 - level).sqrt() * noise
    text = backbone(pipe).encode(["a photo of cat", "a photo of dog"])

    def gap() -> float:
        with torch.no_grad():
            cat, dog = (pipe.unet(latents, 500, encoder_hidden_states=row.expand(4, -1, -1)).sample for row in text)
        return float((cat - dog).norm())

    before = gap()
    with edit.applied(pipe):
        assert gap() < 0.7 * before


def test_a_frozen_teacher_holds_the_anchor(sd1) -> None:
    options = {"steps": 25, "rate": 2e-3}
    free, frozen = (fit(sd1, **options, **more).self_check for more in ({}, {"teacher": "frozen"}))
    assert frozen["anchor_drift"] < free["anchor_drift"]


@pytest.mark.parametrize("variant", ["cross.kv", "attention", "full"])
def test_only_what_the_variant_says_differs(sd1, variant: str) -> None:
    before = state(sd1)
    edit = fit(sd1, variant=variant, augment=True)
    assert state(sd1) == before
    names = set(select(sd1.unet, {"full": "all"}.get(variant, variant)))
    assert {f"{op.module}.{'weight' if key == 'delta' else key}" for op in edit.ops for key in op.tensors()} == names
    assert {op.component for op in edit.ops} == {"unet"}


def test_the_default_is_32_matrices_of_stable_diffusion_v1() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    names = select(unet, "cross.kv")
    assert len(names) == 32 and sum(unet.get_parameter(name).numel() for name in names) == 19_169_280


@pytest.mark.parametrize(
    ("variant", "precision"), [("cross.kv", "model"), ("embedding", "model"), ("embedding", "bfloat16")]
)
def test_the_saved_edit_gives_the_students_outputs_to_the_bit(sd1, variant: str, precision: str, tmp_path: Path) -> None:
    from erasekit.methods._ac_students import written

    with opened(sd1, "fox", variant=variant, precision=precision) as run:
        run.bench.train(lambda step: loss(run, draw(run, step)), method="ac", checkpoint=None, progress=lambda *_: None)
        written(run.bench)
        batch = draw(run, Step(0, 2))
        with run.bench.student.active(), torch.no_grad():
            if variant == "embedding":
                student = run.bench.student.encode(["a fox in the style"])
            else:
                student = run.bench.denoise(batch.latents, batch.timesteps, run.text(batch.targets))
    fit(sd1, "fox", variant=variant, precision=precision).save(tmp_path / "edit.safetensors")
    fresh = tiny.sd1()
    text = backbone(fresh).encode(batch.targets)
    ids = backbone(fresh).tokenize(["a fox in the style"]).ids
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with Edit.load(tmp_path / "edit.safetensors").applied(fresh), torch.no_grad(), cast:
        found = fresh.text_encoder(ids)[0] if variant == "embedding" else fresh.unet(
            batch.latents, batch.timesteps, encoder_hidden_states=text).sample  # fmt: skip
    assert torch.equal(found, student)


def test_the_embedding_moves_the_targets_own_rows_alone(sd1, tmp_path: Path) -> None:
    before = state(sd1)
    edit = fit(sd1, "cat fox", anchor="cat", variant="embedding", steps=10, checkpoint=tmp_path)
    assert state(sd1) == before
    (op,) = edit.ops
    assert op.site == "text_encoder/embeddings.token_embedding" and op.site in edit.base.fingerprint
    ids = own_tokens(backbone(sd1), EraseRequest.build("cat fox", anchor="cat"))
    assert ids == backbone(sd1).tokenize(["fox"]).ids[0, 1:2].tolist()
    table = sd1.text_encoder.get_input_embeddings().weight
    moved = op.delta(table).abs().sum(1).nonzero()[:, 0].tolist()
    assert moved == ids and edit.self_check["residual"] < 1
    assert same(edit, fit(sd1, "cat fox", anchor="cat", variant="embedding", steps=10))
    with pytest.raises(UsageError, match="no row of the token table can move"):
        fit(sd1, "cat", anchor="cat fox", variant="embedding")


# -- ending and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"augment": True, "regulariser": 0.2}, {"variant": "embedding"}])
def test_a_killed_run_goes_on_to_the_same_edit(sd1, tmp_path: Path, options: dict) -> None:
    options = {"steps": 5, "save_every": 2, "targets": ["cat", "fox"]} | options
    before, said = state(sd1), []

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("training") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    assert state(sd1) == before
    resumed = fit(sd1, **options, checkpoint=tmp_path, progress=lambda *report: said.append(report[2]))
    assert not any("drawing" in what for what in said)  # the images were kept
    whole = fit(sd1, **options)
    assert same(resumed, whole) and resumed.self_check == whole.self_check
    for other in ({"targets": ["cat", "a"]}, {"seed": 1}, {"anchor": "photo"}, {"loss": "noise"}, {"images": 3}):
        with pytest.raises(TrainingError, match="another run"):
            fit(sd1, **(options | other), checkpoint=tmp_path)
    sibling = tiny.sd1()
    sibling.unet = tiny.sd1(seed=7).unet  # of which nothing is trained where rows of the token table are
    with pytest.raises(TrainingError, match="another run"):
        fit(sibling, **options, checkpoint=tmp_path)


def test_a_checkpoint_of_another_run_is_refused_before_images_are_drawn(sd1, tmp_path: Path) -> None:
    said: list[str] = []
    Checkpoint.at(tmp_path, {"method": "esd"}).save({"trained.x": torch.zeros(1)}, [0.0])
    with pytest.raises(TrainingError, match="another run"):
        fit(sd1, checkpoint=tmp_path, progress=lambda *report: said.append(report[2]))
    assert not said


def test_a_folder_of_images_with_captions_is_learned_from_and_belongs_to_the_run(sd1, tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (50, 40), (ord(name), 90, 10)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("the dog in a photo")
    (folder / "b.txt").write_text("a fox")
    with opened(sd1, folder=str(folder)) as run:
        assert [item.caption for item in run.gallery.items[0]] == ["the dog in a photo", "a photo of dog"]
        assert [item.targets for item in run.gallery.items[0]] == [("the cat in a photo",), ("a photo of cat",)]
        assert run.images.shape == (3, 4, 16, 16)
    before = state(sd1)
    edit = fit(sd1, folder=str(folder), checkpoint=tmp_path / "run")
    assert state(sd1) == before and edit.parameters["folder"] == "dogs"
    assert any("not used: 1" in said for said in edit.self_check["warnings"])
    (folder / "c.txt").write_text("another dog")
    with pytest.raises(TrainingError, match="another run"):
        fit(sd1, folder=str(folder), checkpoint=tmp_path / "run")
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match="holds no image"):
        fit(sd1, folder=str(folder))


def test_what_is_asked_in_a_wrong_way_is_one_clear_line(sd1, tmp_path: Path) -> None:
    before = state(sd1)
    empty, odd, other = tmp_path / "empty.txt", tmp_path / "odd.txt", tmp_path / "other.txt"
    empty.write_text("\n \n")
    odd.write_bytes(b"\xff\xfe\xff")
    other.write_text("a fox\n")
    for options, named in [({"steps": 0}, "steps"), ({"variant": "y"}, "variant"), ({"loss": "y"}, "loss"),
                           ({"kind": "y"}, "kind"), ({"teacher": "y"}, "teacher"), ({"images": 0}, "images"),
                           ({"regulariser": -1.0}, "regulariser"), ({"augment": "maybe"}, "augment"),
                           ({"prompts": str(tmp_path / "none")}, "cannot be read"), ({"prompts": str(empty)}, "are empty"),
                           ({"prompts": str(odd)}, "no UTF-8"), ({"prompts": str(other)}, "no caption names the anchor"),
                           ({"folder": str(tmp_path)}, "holds no image"), ({"folder": str(tmp_path / "n")}, "cannot be read"),
                           ({"prompts": str(other), "folder": str(tmp_path)}, "prompts and folder exclude"),
                           ({"kind": "memorised", "anchor": ""}, "needs paraphrases")]:  # fmt: skip
        with pytest.raises(UsageError, match=named) as error:
            erasekit.erase(sd1, "cat", method="ac", **({"anchor": "dog"} | options))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="tokens"):
        fit(sd1, "x " * 70)
    with pytest.raises(UsageError, match="no caption names the anchor ''"):
        of_folder(EraseRequest.build("cat", anchor=""), "object", ["a dog"])
    assert read_captions(other) == ("a fox",) and state(sd1) == before
    with pytest.raises(TrainingError, match="lower the rate"):
        fit(sd1, rate=1e3, steps=30, clip=0.0, variant="full")
    assert state(sd1) == before


def test_any_caption_of_too_many_tokens_is_refused_before_images_are_drawn(sd1, tmp_path: Path) -> None:
    prompts = tmp_path / "captions.txt"
    options = QUICK | {"anchor": "dog", "method": "ac", "prompts": str(prompts)}
    prompts.write_text(f"a dog {'photo ' * 40}\na dog {'x' * 80}\n")  # fewer letters in the second, but more tokens
    with pytest.raises(UsageError, match="tokens"):
        erasekit.plan(sd1, "cat", **options)
    prompts.write_text(f"a dog {'x' * 68}\n")
    assert erasekit.plan(sd1, "cat", **options).steps == 3
    with pytest.raises(UsageError, match=r"'a far away a cat x+' has 8\d tokens"):
        erasekit.plan(sd1, "cat", **(options | {"augment": True}))


def test_a_full_gpu_is_one_line_also_where_images_are_drawn_and_a_run_is_planned(sd1, monkeypatch) -> None:
    def full(*args, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(sd1.unet, "forward", full)
    for run in (lambda: fit(sd1), lambda: erasekit.plan(sd1, "cat", anchor="dog", method="ac", **QUICK)):
        with pytest.raises(TrainingError, match=r"memory is full: set recompute=true, lower batch \(now 2\)"):
            run()


def test_no_anchor_is_said_to_be_a_poor_one(sd1) -> None:
    assert any("no anchor was named" in said for said in fit(sd1, anchor="").self_check["warnings"])
    assert not any("no anchor" in said for said in fit(sd1, steps=1).self_check["warnings"])


def test_the_plan_counts_what_would_be_trained_and_changes_nothing(sd1, monkeypatch) -> None:
    before, encode, read = state(sd1), RowsStudent.encode, []
    monkeypatch.setattr("erasekit.training.plan._Kept.bytes", 0)  # activations aside, memory is known exactly
    monkeypatch.setattr(RowsStudent, "encode", lambda own, prompts: read.append(encode(own, prompts)) or read[-1])
    unet, vae, encoder = (sum(p.numel() * p.element_size() for p in part.parameters())
                          for part in (sd1.unet, sd1.vae, sd1.text_encoder))  # fmt: skip
    plan = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **QUICK)
    numbers = sum(sd1.unet.get_parameter(name).numel() for name in select(sd1.unet, "cross.kv"))
    assert (plan.numbers, plan.steps, plan.what) == (numbers, 3, "variant cross.kv") and plan.seconds > 0
    assert plan.memory == unet + 16 * numbers
    augmented = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"augment": True}))
    assert augmented.memory == plan.memory + vae
    long = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"images": 4000, "sampling_steps": 200}))
    assert long.seconds > 5 * plan.seconds  # drawing is counted
    rows = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"variant": "embedding"}))
    assert rows.memory == unet + encoder + 16 * 32 and read[-1].requires_grad and len(read[-1]) == 2
    assert rows.numbers == 32 and state(sd1) == before
