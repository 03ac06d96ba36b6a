"""IRECE on a pipeline, against its formulas written out: bit for bit where nothing is to change, and off without a trace."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from weakref import ref

import diffusers
import edits
import pytest
import tiny
import torch
from torch import Tensor, nn

from erasekit.adapters.receler import put
from erasekit.attacks.sides import Sides
from erasekit.edit import Base, Edit, Guidance, fingerprint
from erasekit.errors import BaseMismatchError, EditError
from erasekit.fingerprint import digest
from erasekit.guidances.irece import Defence, chosen, heat, located
from erasekit.guidances.sampler import Moment
from erasekit.layers import unedited
from erasekit.training.loop import generator
from erasekit.training.maps import cross_attentions

SAMPLERS = ("DDIM", "DDPM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "PNDM")
CONFIG = {"targets": ["cat"], "tokens": [[1]], "at": [0.5], "sides": [4], "tau": 0.4, "dilate": 1, "variant": "shrink",
          "rho": 0.75, "gate": "off", "seed": 0}  # fmt: skip


def guidance(pipe, *, threshold: float = -1.0, **config) -> Guidance:
    ids = pipe.tokenizer(["cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        features = pipe.text_encoder(ids)[0]
    known = CONFIG | config
    return Guidance("irece", {"features": features, "thresholds": torch.full((1, len(known["at"])), threshold)}, known)


def edit(pipe, prints=None, **config) -> Edit:
    return Edit(
        (guidance(pipe, **config),), Base("tiny", "sd1", prints or {}), "irece", targets=("cat",), anchors=("",)
    )


def use(pipe, name: str):
    options = {"skip_prk_steps": True} if name == "PNDM" else {}
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config, **options)
    return pipe


def draw(pipe, prompts=("a cat", "a dog"), *, steps: int = 4, guidance_scale: float = 3.0, **options) -> Tensor:
    """Latents; every picture has a generator of its own."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    with torch.no_grad():
        return pipe(list(prompts), num_inference_steps=steps, guidance_scale=guidance_scale, generator=draws,
                    output_type="latent", **options).images  # fmt: skip


def clean(pipe) -> bool:
    return "prepare_latents" not in vars(pipe) and "step" not in vars(pipe.scheduler)


# -- nothing to change: bit for bit -----------------------------------------------------------------------------------


STILL = [({"rho": 0.0, "tau": -1.0}, 1), ({"tau": 1.0, "rho": 1.0}, 1), ({"tau": 1.0, "variant": "replace"}, 1),
         ({"threshold": 2.0}, 1), ({}, 0)]  # fmt: skip
"""What changes nothing, and the scale that it is put on at. The first computes with the sampler's levels; the others know no
sampler: one sampler has them all, and the rest one each beside the first."""


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_strength_or_mask_or_behind_a_shut_gate_not_a_bit_changes(sd1, sampler: str) -> None:
    use(sd1, sampler)
    plain, turn = draw(sd1), SAMPLERS.index(sampler)
    for options, scale in [STILL[0], STILL[1 + turn % 4]] if turn else STILL:
        with edit(sd1, **options).applied(sd1, scale=scale):
            assert torch.equal(draw(sd1), plain), (options, scale)
    with edit(sd1).applied(sd1):
        found = draw(sd1)
        assert not torch.equal(found, plain) and bool(torch.isfinite(found).all())
        assert torch.equal(draw(sd1), found)
    assert torch.equal(draw(sd1), plain) and clean(sd1)


def test_the_other_family_and_fp16_and_no_guidance(sd2) -> None:
    for options in ({"guidance_scale": 1.0}, {"eta": 0.5}):
        plain = draw(sd2, **options)
        with edit(sd2, rho=0.0, tau=-1.0).applied(sd2):
            assert torch.equal(draw(sd2, **options), plain)
        with edit(sd2, variant="replace").applied(sd2):
            assert not torch.equal(draw(sd2, **options), plain)


# -- everything to change: fresh noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["DDIM", "EulerDiscrete"])
def test_all_of_it_at_the_first_step_is_sampling_from_fresh_noise(sd1, sampler: str) -> None:
    use(sd1, sampler)
    start = torch.stack([torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(s))[0] for s in (0, 1)])
    with edits.edit(sd1).applied(sd1), edit(sd1, at=[0.0], rho=1.0, tau=-1.0).applied(sd1):
        found = draw(sd1)
    sd1.scheduler.set_timesteps(4)
    begun = start * sd1.scheduler.init_noise_sigma
    fresh = torch.stack([torch.randn(4, 16, 16, generator=generator(0, "irece", digest(row), 0)) for row in begun])
    scheduler = sd1.scheduler
    if sampler == "DDIM":
        factor = float((1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5)
    else:
        factor = float(scheduler.sigmas[0] / scheduler.init_noise_sigma)
    assert 0.5 < factor <= 1
    with edits.edit(sd1).applied(sd1):
        torch.testing.assert_close(found, draw(sd1, latents=factor * fresh), rtol=1e-4, atol=1e-4)


# -- where: planted maps --------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A denoiser that predicts nothing, and whose one cross-attention compares latents with the text channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Module()
        layer.to_q, layer.to_k = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        layer.heads, layer.scale = 1, 8.0
        self.down_blocks = nn.ModuleDict({"attn2": layer})
        for part in (layer.to_q, layer.to_k):
            nn.init.eye_(part.weight)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, latents, timestep, *, encoder_hidden_states, return_dict):
        layer = self.down_blocks["attn2"]
        layer.to_q(latents.flatten(2).transpose(1, 2))
        layer.to_k(encoder_hidden_states)
        return (torch.zeros_like(latents),)


def planted(variant: str) -> tuple[Tensor, Tensor, Moment, Guidance]:
    """Latents (2, 3, 6, 8) of which only the first has a hot patch; where it is, with one cell around."""
    latents = torch.zeros(2, 3, 6, 8)
    latents[:, 0] = 1.0  # the first token's channel
    latents[0, :, 1:3, 4:6] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[0:4, 3:7] = True
    moment = Moment(2, 4, 500, (0.6, 0.8), 1.0, "epsilon", ("first", "second"))
    weights = {"features": torch.eye(3)[None], "thresholds": torch.tensor([[0.01]])}
    return latents, mask, moment, Guidance("irece", weights, CONFIG | {"variant": variant, "sides": [1]})


def test_a_planted_map_gives_exactly_that_mask_and_the_formula_inside() -> None:
    for variant in ("shrink", "replace"):
        latents, mask, moment, op = planted(variant)
        found = Defence(Toy, op)(latents, moment)
        assert torch.equal(found[1], latents[1]), "attended to alike everywhere: nothing is located"
        assert torch.equal((found[0] != latents[0]).any(0), mask)
        noise = torch.randn(3, 6, 8, generator=generator(0, "irece", "first", 2))
        for channel in range(3):
            cells = latents[0, channel][mask] / 0.6  # the toy predicts no noise
            for value, old, fresh in zip(found[0, channel][mask], latents[0, channel][mask], noise[channel][mask]):
                wanted = {"shrink": (1 - 0.75**2) ** 0.5 * old + 0.75 * 0.8 * fresh,
                          "replace": 0.6 * cells.mean() + 0.8 * fresh}[variant]  # fmt: skip
                assert float(value) == pytest.approx(float(wanted), abs=1e-5)
        assert Defence(Toy, op)(latents, replace(moment, index=1)) is latents
        assert torch.equal(Defence(Toy, Guidance("irece", op.weights | {"thresholds": torch.ones(1, 1)}, op.config))(
            latents, moment), latents)  # fmt: skip


def test_a_mask_is_that_of_loops_whatever_the_order_of_heads_and_layers() -> None:
    draw = torch.Generator().manual_seed(0)
    fine, coarse = torch.rand(2, 3, 16, 5, generator=draw), torch.rand(2, 2, 4, 5, generator=draw)
    found = heat([fine, coarse], [1, 3], (8, 8))
    wanted = torch.zeros(2, 4, 4)
    for b in range(2):
        for row in range(4):
            for column in range(4):
                one = fine[b, :, 4 * row + column, [1, 3]].mean()
                two = coarse[b, :, 2 * (row // 2) + column // 2, [1, 3]].mean()
                wanted[b, row, column] = (one + two) / 2
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(heat([coarse.flip(1), fine[:, [2, 0, 1]]], [3, 1], (8, 8)), wanted)
    mask = located(found, (8, 8), tau=0.5, dilate=1)
    for b in range(2):
        scaled = (wanted[b] - wanted[b].min()) / (wanted[b].max() - wanted[b].min())
        hot = {(r, c) for r in range(8) for c in range(8) if scaled[r // 2, c // 2] > 0.5}
        near = {(r, c) for r in range(8) for c in range(8)
                if any((r + i, c + j) in hot for i in (-1, 0, 1) for j in (-1, 0, 1))}  # fmt: skip
        assert {tuple(cell) for cell in mask[b].nonzero().tolist()} == near
    assert not located(torch.ones(1, 4, 4), (8, 8), tau=0.0, dilate=1).any()


def test_layers_are_chosen_by_the_share_of_the_latents_side() -> None:
    stable = {"a": 4096, "b": 1024, "c": 256, "d": 64, "e": 256}
    assert chosen(stable, (64, 64), [4]) == {"c", "e"} and chosen(stable, (64, 64), [2, 8]) == {"b", "d"}
    assert chosen({"a": 64, "b": 16}, (8, 8), [4]) == {"b"} and chosen({"a": 6144, "b": 384}, (64, 96), [4]) == {"b"}


def test_points_of_the_way_fall_on_steps() -> None:
    def due(count: int, shares: list[float], *ignored: int) -> dict[int, int]:
        moments = [Moment(i, count, 0, (1, 0), 1, "epsilon", (), ignored) for i in range(count)]
        return {m.index: p for m in moments if (p := m.due(shares)) is not None}

    assert due(50, [0.2, 0.6]) == {10: 0, 30: 1} and due(1, [0.9]) == {0: 0} and due(10, [0, 1]) == {0: 0, 9: 1}
    assert due(3, [0.3, 0.4]) == {1: 0} and due(3, [0.3], 1) == {2: 0}


# -- the unedited weights -------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(pipe) -> Tensor:
    return pipe.unet(torch.ones(1, 4, 16, 16), 500, encoder_hidden_states=torch.ones(1, 77, 32)).sample


def test_inside_unedited_no_edit_acts_and_afterwards_all_do(sd1) -> None:
    plain, bias = predict(sd1), edits.Dense("unet", "conv_out", torch.zeros(4, 32, 3, 3), torch.ones(4))
    attention = next(iter(cross_attentions(sd1.unet).values()))
    with edits.edit(sd1).applied(sd1), edits.edit(sd1, bias).applied(sd1):
        remove = put(attention, lambda hidden: 0.5 * hidden)
        changed, before = predict(sd1), {name: id(p) for name, p in sd1.unet.named_parameters()}
        with pytest.raises(RuntimeError, match="stop"), unedited(sd1.unet):
            assert torch.equal(predict(sd1), plain)
            raise RuntimeError("stop")
        assert torch.equal(predict(sd1), changed) and not torch.equal(changed, plain)
        assert {name: id(p) for name, p in sd1.unet.named_parameters()} == before
        remove()
    sides = Sides(sd1, edits.edit(sd1))
    with sides.edited():
        changed = predict(sd1)
        assert not torch.equal(changed, plain)
        with unedited(sd1.unet):
            assert torch.equal(predict(sd1), plain)
        with sides.original(), unedited(sd1.unet):
            assert torch.equal(predict(sd1), plain)
        assert torch.equal(predict(sd1), changed)
    assert torch.equal(predict(sd1), plain)


def test_the_unedited_model_says_where_under_any_edit(sd1) -> None:
    defence = Defence(lambda: sd1.unet, guidance(sd1))
    plain, _ = defence.look(torch.ones(1, 4, 16, 16), 500, 0)
    with edits.edit(sd1).applied(sd1):
        assert torch.equal(defence.look(torch.ones(1, 4, 16, 16), 500, 0)[0], plain)


# -- on, off, with others -------------------------------------------------------------------------------------------


def test_a_run_that_breaks_off_and_edits_that_come_off_in_any_order_leave_nothing(sd1) -> None:
    plain, calls = draw(sd1), []

    def stop(pipe, i, timestep, tensors):
        raise RuntimeError("stop")

    first, second = edit(sd1, at=[0.25]).apply(sd1), edit(sd1, at=[0.5, 0.75]).apply(sd1)
    with pytest.raises(RuntimeError, match="stop"):
        draw(sd1, callback_on_step_end=stop)
    both = draw(sd1)
    first.remove()
    one = draw(sd1)
    assert not torch.equal(both, one) and not torch.equal(one, plain)
    second.remove()
    second.remove()
    assert clean(sd1) and torch.equal(draw(sd1), plain)
    own = type(sd1).prepare_latents.__get__(sd1)
    sd1.prepare_latents = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    below = sd1.prepare_latents
    with edit(sd1).applied(sd1):
        draw(sd1)
    assert vars(sd1)["prepare_latents"] is below and calls == [1] and "step" not in vars(sd1.scheduler)


def test_a_dropped_pipeline_is_freed_and_a_step_by_hand_is_plain() -> None:
    pipe = tiny.sd1()
    handle = edit(pipe).apply(pipe)
    draw(pipe)
    pipe.scheduler.set_timesteps(4)
    assert "step" not in vars(pipe.scheduler)
    gone = ref(pipe.unet)
    del pipe, handle
    gc.collect()
    assert gone() is None


def test_a_picture_does_not_depend_on_its_batch(sd1) -> None:
    with edit(sd1, tau=-1.0).applied(sd1):
        both, alone = draw(sd1, ("a cat", "a dog")), draw(sd1, ("a cat",))
    torch.testing.assert_close(both[:1], alone, rtol=1e-3, atol=1e-3)


def test_one_file_holds_an_erasing_edit_and_irece(sd1, tmp_path: Path) -> None:
    names = [f"{path}.to_k" for path in cross_attentions(sd1.unet)]
    prints = {f"unet/{name}": fingerprint(sd1.unet.get_submodule(name).weight) for name in names}
    below, above = edits.edit(sd1), edit(sd1, prints)
    both = below + above
    assert both.targets == ("cat",) and both.anchors == ("dog",) and both.method == "erasepro+irece"
    assert both.self_check["modules"] == len(below.ops) == len(both.ops) - 1
    both.save(tmp_path / "both.safetensors")
    loaded = Edit.load(tmp_path / "both.safetensors")
    with below.applied(sd1), above.applied(sd1):
        wanted = draw(sd1)
    with loaded.applied(sd1):
        assert torch.equal(draw(sd1), wanted)
    sides = Sides(sd1, loaded)
    with sides.edited():
        assert torch.equal(draw(sd1), wanted)
    assert clean(sd1)
    with pytest.raises(EditError, match="guidance op 'irece'"):
        _ = both + above
    with pytest.raises(BaseMismatchError), above.applied(tiny.sd1(seed=7)):
        pass


# -- what it cannot do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UniPCMultistep", "HeunDiscrete", "DPMSolverSinglestep"])
def test_samplers_that_would_lose_the_change_are_refused_by_name(sd1, name: str) -> None:
    own = sd1.scheduler
    use(sd1, name)
    with pytest.raises(EditError, match=rf"latents of this {name}Scheduler: set pipe.scheduler = DDIM") as error:
        edit(sd1).apply(sd1)
    assert "\n" not in str(error.value) and clean(sd1)
    sd1.scheduler = own
    with edit(sd1).applied(sd1):
        use(sd1, name)
        with pytest.raises(EditError, match=name):
            draw(sd1)
        use(sd1, "EulerDiscrete")
        draw(sd1)


def test_what_does_not_fit_is_one_line(sd1) -> None:
    op = guidance(sd1)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(sd1)
    cases = [
        (other, op, "StableDiffusionPipeline"),
        (sd1, Guidance("irece", op.weights, {k: v for k, v in op.config.items() if k != "tau"}), "lacks tau"),
        (sd1, Guidance("irece", {"features": op.weights["features"]}, op.config), "lacks thresholds"),
        (sd1, Guidance("irece", op.weights, op.config | {"at": [0.1, 0.2]}), "for each target"),
        (sd1, Guidance("irece", op.weights, op.config | {"variant": "new"}), "unknown here"),
        (sd1, Guidance("irece", op.weights | {"features": torch.ones(1, 77, 8)}, op.config), "of width 8"),
    ]
    for pipe, wrong, words in cases:
        with pytest.raises(EditError, match=words) as error:
            Edit((wrong,), Base("tiny", "sd1", {}), "irece").apply(pipe)
        assert "\n" not in str(error.value) and clean(pipe)
