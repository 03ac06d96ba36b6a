"""LoRA beside frozen weights: against weights that are written out, on linear layers and convolutions."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from erasekit.edit import Base, Edit, fingerprint
from erasekit.errors import ModelError
from erasekit.training.lora import LoRA, layers, lora
from erasekit.training.maps import maps
from erasekit.training.parameters import held


def output(unet) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=draw), torch.randn(1, 77, 32, generator=draw)
    return unet(latents.to(unet.dtype), 500, encoder_hidden_states=text.to(unet.dtype)).sample


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(unet, choice: str = "cross.kv", **options) -> LoRA:
    """A LoRA whose factors are all random."""
    found = lora(choice, draw=draws(), **options)(unet)
    with torch.no_grad():
        for name, tensor in found.trained.items():
            if name.endswith(".up"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draws(1)))
    return found


def written(unet, student: LoRA, base: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A second U-Net with the change multiplied out and written into its weights."""
    other = deepcopy(unet)
    with torch.no_grad():
        for name in student.modules:
            up, down = student.trained[f"{name}.up"], student.trained[f"{name}.down"]
            weight = other.get_parameter(f"{name}.weight")
            for o in range(len(weight)):
                for r in range(up.shape[1]):
                    weight[o] += student.scale * up[o, r] * down[r]
            weight += base.get(name, 0)
    return other


@pytest.mark.parametrize(("choice", "rank", "alpha"), [("cross.kv", 1, None), ("outside-cross.linear", 2, 3.0)])
def test_it_computes_as_if_the_change_were_written_and_is_gone_afterwards(sd1, choice, rank, alpha) -> None:
    """The second choice has convolutions of 1x1 and 3x3, with strides."""
    base = {name: torch.randn(sd1.unet.get_parameter(f"{name}.weight").shape, generator=draws(2)) * 0.05
            for name in layers(sd1.unet, choice)[::2]}  # fmt: skip
    student = moved(sd1.unet, choice, rank=rank, alpha=alpha, base=base)
    assert student.scale == (1 if alpha is None else alpha / rank)
    before = {name: (id(p), p.clone()) for name, p in sd1.unet.named_parameters()}
    with torch.no_grad():
        plain = output(sd1.unet)
        with student.active():
            found = output(sd1.unet)
        assert torch.allclose(found, output(written(sd1.unet, student, base)), atol=2e-4 * float(found.abs().max()))
        assert torch.equal(output(sd1.unet), plain) and not torch.allclose(found, plain, atol=1e-2)
    assert all(id(p) == before[name][0] and torch.equal(p, before[name][1]) for name, p in sd1.unet.named_parameters())
    assert not any(part._forward_hooks for part in sd1.unet.modules())


def test_fresh_factors_change_nothing_but_the_base(sd1) -> None:
    name = layers(sd1.unet, "cross.kv")[0]
    change = torch.full_like(sd1.unet.get_parameter(f"{name}.weight"), 0.2)
    with torch.no_grad():
        plain = output(sd1.unet)
        with lora("cross.kv", rank=2)(sd1.unet).active():
            assert torch.equal(output(sd1.unet), plain)
        student = lora("cross.kv", base={name: change})(sd1.unet)
        wanted = output(written(sd1.unet, student, {name: change}))
        with student.active():
            assert torch.equal(output(sd1.unet), wanted) and not torch.equal(wanted, plain)
    assert not any(bool(op.up.any()) for op in student.ops())


def test_gradients_are_those_of_the_product(sd1) -> None:
    """dL/dup = s dL/dW down', dL/ddown = s up' dL/dW, with dL/dW from the U-Net with written weights."""
    student = moved(sd1.unet, rank=2, alpha=4.0)
    other = written(sd1.unet, student, {})
    output(other).square().mean().backward()
    with held(sd1.unet):
        with student.active():
            output(sd1.unet).square().mean().backward()
        assert all(p.grad is None for p in sd1.unet.parameters())
    for name in student.modules:
        up, down = student.trained[f"{name}.up"], student.trained[f"{name}.down"]
        whole = other.get_parameter(f"{name}.weight").grad
        torch.testing.assert_close(up.grad, 2 * whole @ down.detach().T, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(down.grad, 2 * up.detach().T @ whole, rtol=1e-3, atol=1e-7)


def test_recomputed_activations_give_the_same_gradients(sd1) -> None:
    found = []
    for recompute in (False, True):
        with held(sd1.unet, recompute=recompute):
            student = moved(sd1.unet)
            with student.active(), maps(sd1.unet) as watched:
                value = output(sd1.unet).square().mean() + sum(m[..., 3].square().mean() for m in watched.values())
            with student.active():
                value.backward()
            found.append([tensor.grad for tensor in student.trained.values()])
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(*found, strict=True))


def test_the_ops_give_the_same_outputs_as_an_edit(sd1) -> None:
    student = moved(sd1.unet, "outside-cross.linear", rank=2, alpha=1.0)
    prints = {f"unet/{m}": fingerprint(sd1.unet.get_parameter(f"{m}.weight")) for m in student.modules}
    edit = Edit(ops=tuple(student.ops()), base=Base("tiny", "sd1", prints), method="test")
    with torch.no_grad():
        with student.active():
            found = output(sd1.unet)
        with edit.applied(sd1):
            assert torch.allclose(output(sd1.unet), found, atol=2e-4 * float(found.abs().max()))


def test_who_watches_a_layer_sees_it_with_its_lora_whoever_came_first(sd1) -> None:
    student, seen = moved(sd1.unet), []
    for first in ("maps", "student"):
        with torch.no_grad():
            if first == "maps":
                with maps(sd1.unet) as found, student.active():
                    output(sd1.unet)
            else:
                with student.active(), maps(sd1.unet) as found:
                    output(sd1.unet)
        seen.append(found)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    other = written(sd1.unet, student, {})
    with torch.no_grad(), maps(other) as plain:
        output(other)
    assert all(torch.allclose(seen[0][name], plain[name], atol=1e-4) for name in plain)


def test_half_precision_models_have_float32_factors_and_an_exception_leaves_no_trace(sd1) -> None:
    unet = sd1.unet.to(torch.bfloat16)
    own = {name: id(p) for name, p in unet.named_parameters()}
    student = moved(unet)
    assert {t.dtype for t in student.trained.values()} == {torch.float32}
    with pytest.raises(KeyboardInterrupt), student.active():
        assert output(unet).dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert {name: id(p) for name, p in unet.named_parameters()} == own
    assert not any(part._forward_hooks for part in unet.modules())


def test_a_fresh_start_depends_on_its_draw_alone(sd1) -> None:
    student, other = lora("cross.kv", rank=2, draw=draws(3))(sd1.unet), moved(sd1.unet, rank=2)
    other.restart(draws(3))
    assert all(torch.equal(tensor, other.trained[name]) for name, tensor in student.trained.items())
    downs = torch.cat([t.detach().flatten() for n, t in student.trained.items() if n.endswith("down")])
    assert float(downs.std()) == pytest.approx(0.5, rel=0.15)  # 1 / rank
    other.restart(draws(4))
    assert not torch.equal(other.trained[f"{other.modules[0]}.down"], student.trained[f"{other.modules[0]}.down"])


def test_what_cannot_have_a_lora_is_named(sd1) -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.ModuleDict({"attn1": torch.nn.LayerNorm(4)})

    with pytest.raises(ModelError, match="no layer for a LoRA"):
        layers(Bare(), "all")
    name = layers(sd1.unet, "cross.kv")[0]
    with torch.no_grad():
        sd1.unet.get_parameter(f"{name}.weight")[0, 0] = float("nan")
    with pytest.raises(ModelError, match=rf"{name}.weight contains NaN"):
        LoRA(sd1.unet, [name])
