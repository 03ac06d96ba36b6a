"""AC: what training does to the target, the anchor and the weights, and what its edit holds; on tiny random models."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from ac_runs import QUICK, fit, opened, same, state

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit
from erasekit.errors import UsageError
from erasekit.methods._ac_batch import draw
from erasekit.methods._ac_students import own_tokens
from erasekit.methods.ac import loss
from erasekit.training.loop import Step
from erasekit.training.parameters import select


@cache
def taught(family: str, teacher: str) -> Edit:
    """An edit of the pipeline like the fixture's, trained once: an edit is never changed, and a fit leaves no trace."""
    return fit(getattr(tiny, family)(), steps=20, rate=2e-3, retain=("fox",), teacher=teacher)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_the_target_goes_to_the_anchor_on_images_that_were_not_seen(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    edit = taught(family, "student")
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


def test_a_frozen_teacher_holds_the_anchor() -> None:
    free, frozen = (taught("sd1", teacher).self_check for teacher in ("student", "frozen"))
    assert frozen["anchor_drift"] < 0.2 * free["anchor_drift"]


@pytest.mark.parametrize("variant", ["cross.kv", "attention", "full"])
def test_only_what_the_variant_says_differs(sd1, variant: str) -> None:
    before = state(sd1)
    edit = fit(sd1, variant=variant, augment=True, steps=2)
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

    options = {"variant": variant, "precision": precision, "steps": 2}
    with opened(sd1, "fox", **options) as run:
        run.bench.train(lambda step: loss(run, draw(run, step)), method="ac", checkpoint=None, progress=lambda *_: None)
        written(run.bench)
        batch = draw(run, Step(0, 1))
        with run.bench.student.active(), torch.no_grad():
            if variant == "embedding":
                student = run.bench.student.encode(["a fox in the style"])
            else:
                student = run.bench.denoise(batch.latents, batch.timesteps, run.text(batch.targets))
    fit(sd1, "fox", **options).save(tmp_path / "edit.safetensors")
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
    edit = fit(sd1, "cat fox", anchor="cat", variant="embedding", steps=4, checkpoint=tmp_path)
    assert state(sd1) == before
    (op,) = edit.ops
    assert op.site == "text_encoder/embeddings.token_embedding" and op.site in edit.base.fingerprint
    ids = own_tokens(backbone(sd1), EraseRequest.build("cat fox", anchor="cat"))
    assert ids == backbone(sd1).tokenize(["fox"]).ids[0, 1:2].tolist()
    table = sd1.text_encoder.get_input_embeddings().weight
    moved = op.delta(table).abs().sum(1).nonzero()[:, 0].tolist()
    assert moved == ids and edit.self_check["residual"] < 1
    assert same(edit, fit(sd1, "cat fox", anchor="cat", variant="embedding", steps=4))
    with pytest.raises(UsageError, match="no row of the token table can move"):
        fit(sd1, "cat", anchor="cat fox", variant="embedding")


def test_the_rows_gradient_does_not_underflow_in_a_float16_encoder() -> None:
    def gradient(half: bool) -> torch.Tensor:
        pipe = tiny.sd1()
        pipe.text_encoder.to(torch.float16 if half else torch.float32)
        with opened(pipe, variant="embedding") as run:
            own = run.bench.student
            with own.active():
                text = own.encode(["a photo of the cat"])
                assert text.dtype == torch.float32
                value = 1e-6 * (text.square() * torch.linspace(0, 1, text.shape[-1])).mean()
            return torch.autograd.grad(value, own.trained["rows"])[0]

    full, found = gradient(False), gradient(True)
    assert found.dtype == torch.float32 and float((found == 0).float().mean()) < 0.1
    assert float((found - full).norm()) < 0.2 * float(full.norm())
