"""SPM's modules and their gate on a pipeline: the oracles of its paper, on random modules beside tiny random models."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import edits
import pytest
import tiny
import torch
from torch import Tensor, nn

from erasekit.adapters import spm
from erasekit.attacks.sides import Sides
from erasekit.backbones import backbone
from erasekit.edit import Adapter, Base, Edit, LowRank, fingerprint
from erasekit.errors import BaseMismatchError, EditError
from erasekit.methods._spm_edit import tokens
from erasekit.training.membranes import layers


def handmade(pipe, targets=("cat",), *, rank=1, alpha=1.0, gate="transport", size=0.1, family="sd1") -> Edit:
    """An SPM edit with random modules, as a fit makes them."""
    places, n = layers(pipe.unet), len(targets) * rank
    factors = {}
    for i, (name, layer) in enumerate(places.items()):
        factors[f"{name}.down"] = edits.noise(n, *layer.weight.shape[1:], seed=2 * i, size=size)
        factors[f"{name}.up"] = edits.noise(layer.weight.shape[0], n, seed=2 * i + 1, size=size)
    ids = [sorted(own) for own in tokens(backbone(pipe), tuple(targets))]
    config = {"rank": rank, "alpha": alpha, "gate": gate, "targets": list(targets), "tokens": ids}
    features = backbone(pipe).encode(list(targets)).half()
    prints = {f"unet/{name}": fingerprint(layer.weight) for name, layer in places.items()}
    op = Adapter("unet", "", "spm", factors | {"features": features}, config)
    return Edit((op,), Base("tiny", family, prints), "spm", targets=tuple(targets), anchors=("",) * len(targets))


def alone(edit: Edit, i: int) -> Edit:
    """The edit of one target of several (rank 1)."""
    (op,) = edit.ops
    cut = {"down": lambda t: t[i : i + 1], "up": lambda t: t[:, i : i + 1], "features": lambda t: t[i : i + 1]}
    own = {name: cut[name.rpartition(".")[2]](tensor) for name, tensor in op.weights.items()}
    config = op.config | {"targets": op.config["targets"][i : i + 1], "tokens": op.config["tokens"][i : i + 1]}
    return replace(edit, ops=(Adapter("unet", "", "spm", own, config),))


def merged(edit: Edit, gammas) -> Edit:
    """The weights that a plain loop over modules and targets gives for these gammas (rank 1)."""
    (op,) = edit.ops
    ops = [LowRank("unet", name, op.weights[f"{name}.up"] * torch.tensor(gammas), op.weights[f"{name}.down"])
           for name in spm.modules(op)]  # fmt: skip
    return replace(edit, ops=tuple(ops))


def rows(pipe, prompts) -> tuple[Tensor, list[set[int]]]:
    """What the pipeline's text encoder makes of prompts, and their own tokens."""
    ids = pipe.tokenizer(list(prompts), padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return pipe.text_encoder(ids)[0], [set(pipe.tokenizer(prompt)["input_ids"][1:-1]) for prompt in prompts]


def cosine(pipe, prompt: str, target: str) -> float:
    text, _ = rows(pipe, [prompt, target])
    one, other = text.double().flatten(1)
    return float(one @ other / (one @ one).sqrt() / (other @ other).sqrt())


def gamma(pipe, prompt: str, target: str) -> float:
    _, (own, wanted) = rows(pipe, [prompt, target])
    return max(cosine(pipe, prompt, target), len(own & wanted) / len(wanted))


@contextmanager
def on(pipe, edit: Edit, **options):
    """The stack of modules of an edit that is on the pipeline."""
    stack, handles = spm.put(pipe, edit.ops[0], **options)
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def predict(pipe, text: Tensor, latents: Tensor | None = None) -> Tensor:
    latents = edits.noise(len(text), 4, 16, 16, seed=5, size=1) if latents is None else latents
    with torch.no_grad():
        return pipe.unet(latents, 500, encoder_hidden_states=text).sample


# -- the modules ----------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 4, 6)),
    "conv 1x1": (nn.Conv2d(6, 5, 1), (3, 6, 8, 8)),
    "conv 3x3": (nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
}


def module(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A layer, its input, and n modules of rank 1."""
    layer, shape = LAYERS[name]
    return layer, edits.noise(*shape, seed=1, size=1), edits.noise(n, *layer.weight.shape[1:], seed=2, size=1), edits.noise(
        5, n, seed=3, size=1
    )


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_merged_weight_gives_the_same_output_sample_by_sample(name: str) -> None:
    layer, x, down, up = module(name, 2)
    gates = torch.tensor([[1.0, 0.0], [0.3, 0.8], [0.0, 0.0]])
    found = layer(x) + spm.residual(layer, x, down, up, gates)
    kept = layer.weight.clone()
    for i, row in enumerate(gates):
        for j, value in enumerate(row):
            layer.weight += value * torch.outer(up[:, j], down[j].flatten()).reshape(kept.shape)
        assert torch.allclose(found[i : i + 1], layer(x[i : i + 1]), atol=1e-5)
        layer.weight.copy_(kept)
    assert torch.equal(found[2], layer(x)[2])


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_affine_in_gamma_and_residuals_are_summed(name: str) -> None:
    layer, x, down, up = module(name, 2)

    def of(*gammas: float, mix: Tensor | None = None) -> Tensor:
        return spm.residual(layer, x, down, up, torch.tensor([gammas]), mix)

    first, second = (spm.residual(layer, x, down[i : i + 1], up[:, i : i + 1]) for i in (0, 1))
    assert torch.allclose(of(1, 0), first, atol=1e-6) and torch.equal(of(0.5, 0), of(1, 0) / 2)
    assert torch.allclose(of(1, 1), first + second, atol=1e-5)
    assert torch.allclose(of(0.2, 0.7), 0.2 * first + 0.7 * second, atol=1e-5)
    # The released composition scales both factors and adds them before use.
    mix = torch.ones(2, 2)
    assert torch.allclose(of(0.5, 0, mix=mix), first / 4, atol=1e-6)
    product = spm.residual(layer, x, (0.2 * down[0] + 0.7 * down[1])[None], (0.2 * up[:, 0] + 0.7 * up[:, 1])[:, None])
    assert torch.allclose(of(0.2, 0.7, mix=mix), product, atol=1e-5)
    assert not torch.allclose(of(1, 1, mix=mix), first + second, atol=1e-3)


def test_sd14_has_192_modules_and_423936_numbers() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # the other defaults are those of SD v1.4
    found = layers(unet)
    assert len(found) == 192 and unet.config.block_out_channels == (320, 640, 1280, 1280)
    assert sum(layer.weight[0].numel() + len(layer.weight) for layer in found.values()) == 423_936


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_without_a_gate_the_edit_is_a_lora(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    edit = handmade(pipe, ("cat", "fox"), rank=2, alpha=3.0, gate="off", family=family)
    plain, lost = spm.ungated(edit.ops[0])
    text, _ = rows(pipe, ["dog", "cat"])
    base = predict(pipe, text)
    with edit.applied(pipe, scale=0.5):
        found = predict(pipe, text)
    with replace(edit, ops=tuple(plain)).applied(pipe, scale=0.5):
        wanted = predict(pipe, text)
    assert lost == "" and edits.relative(found, wanted) < 1e-5 and edits.relative(base, wanted) > 1e-3
    with edit.applied(pipe, scale=0):
        assert torch.equal(predict(pipe, text), base)


def test_the_released_composition_acts_and_is_exported_with_products_across_targets(sd1) -> None:
    edit = handmade(sd1, ("cat", "fox"), gate="released")
    (op,) = edit.ops
    plain, lost = spm.ungated(op)
    for prompt in ("a dog", "cat and fox"):
        text, _ = rows(sd1, [prompt])
        gammas = torch.tensor([gamma(sd1, prompt, target) for target in ("cat", "fox")])
        one = []
        for name in spm.modules(op):
            up, down = op.weights[f"{name}.up"], op.weights[f"{name}.down"]
            down = torch.einsum("i,i...->...", gammas, down)[None]
            one.append(LowRank("unet", name, up @ gammas[:, None], down))
        with edit.applied(sd1):
            rows(sd1, [prompt])  # the text encoder says what the row is
            found = predict(sd1, text)
        with replace(edit, ops=tuple(one)).applied(sd1):
            assert edits.relative(found, predict(sd1, text)) < 1e-4
    assert gammas.tolist() == [1, 1] and "gamma is 1" in lost
    with replace(edit, ops=tuple(plain)).applied(sd1):
        assert edits.relative(found, predict(sd1, text)) < 1e-4


def test_beside_a_loaded_lora_both_add_up(sd1) -> None:
    """Its convolutions, too, which are none by their class."""
    from peft import LoraConfig

    edit, (text, _) = handmade(sd1, gate="off"), rows(sd1, ["dog"])
    base = predict(sd1, text)
    sd1.unet.add_adapter(LoraConfig(r=2, target_modules=["proj_in", "to_k"], init_lora_weights=False))
    lora = predict(sd1, text)
    with edit.applied(sd1):
        found = predict(sd1, text)
    with merged(edit, [1.0]).applied(sd1):
        wanted = predict(sd1, text)
    assert edits.relative(found, wanted) < 1e-4
    assert edits.relative(base, lora) > 1e-3 and edits.relative(lora, wanted) > 1e-3


def test_gradients_flow_after_a_pass_in_inference_mode(sd1) -> None:
    edit, (text, _) = handmade(sd1), rows(sd1, ["dog"])
    sd1.unet.double()  # the modules are cast
    latents, text = edits.noise(1, 4, 16, 16, seed=5, size=1).double(), text.double()
    with edit.applied(sd1):
        with torch.inference_mode():
            seen = sd1.unet(latents, 500, encoder_hidden_states=text).sample
        again = sd1.unet(latents.requires_grad_(), 500, encoder_hidden_states=text).sample
        (gradient,) = torch.autograd.grad(again.square().sum(), latents)
    assert bool(gradient.any()) and torch.allclose(seen.clone(), again.detach())


# -- the gate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_gamma_is_the_papers(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    edit = handmade(pipe, ("cat", "fox in style", "!"), family=family)
    prompts = ["cat", "a photo of the cat", "cat the of photo a", "style fox in", "in a photo", "dog", ""]
    with on(pipe, edit) as stack:
        text, _ = rows(pipe, prompts)
        predict(pipe, text)
        found = stack.gates
    for i, prompt in enumerate(prompts):
        for j, target in enumerate(("cat", "fox in style")):
            assert float(found[i, j]) == pytest.approx(gamma(pipe, prompt, target), abs=1e-5)
    assert found[:3, 0].tolist() == [1, 1, 1] and found[3, 1] == 1  # in any order, whatever the cosine
    assert cosine(pipe, "cat the of photo a", "cat") < 0.99 and cosine(pipe, "style fox in", "fox in style") < 0.999
    assert float(found[4, 1]) >= 1 / 3 and (found[5:, 0] < 1).all()
    assert float(found[6, 2]) < 1  # neither start nor end nor padding counts as a token of the target


@pytest.mark.parametrize("batch", [["a photo of the cat"], ["dog", "a cat", "fox"]])
def test_images_are_those_of_weights_merged_with_each_prompts_gamma(sd1, batch: list[str]) -> None:
    """Both halves of a guided run take the gamma of the conditional one, each sample its own."""
    edit = handmade(sd1, ("cat", "fox"))
    noise = edits.noise(len(batch), 4, 16, 16, seed=9, size=1)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    with edit.applied(sd1):
        found = sd1(batch, latents=noise, **options).images
    for i, prompt in enumerate(batch):
        with merged(edit, [gamma(sd1, prompt, "cat"), gamma(sd1, prompt, "fox")]).applied(sd1):
            wanted = sd1(prompt, latents=noise[i : i + 1], **options).images
        assert edits.relative(found[i : i + 1], wanted) < 1e-4
    assert edits.relative(sd1(batch, latents=noise, **options).images, found) > 1e-3


def test_images_of_one_prompt_share_its_gamma_whatever_the_negative_prompt(sd1) -> None:
    edit, prompts, negatives = handmade(sd1, ("cat", "fox")), ["a photo of the cat", "dog"], ["fox", "cat"]
    noise = edits.noise(4, 4, 16, 16, seed=9, size=1)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    with edit.applied(sd1):
        found = sd1(prompts, negative_prompt=negatives, num_images_per_prompt=2, latents=noise, **options).images
    for i in range(4):
        prompt, negative = prompts[i // 2], negatives[i // 2]
        with merged(edit, [gamma(sd1, prompt, "cat"), gamma(sd1, prompt, "fox")]).applied(sd1):
            wanted = sd1(prompt, negative_prompt=negative, latents=noise[i : i + 1], **options).images
        assert edits.relative(found[i : i + 1], wanted) < 1e-4


def test_a_gate_that_is_put_on_again_knows_what_was_encoded_before(sd1) -> None:
    sides = Sides(sd1, handmade(sd1))
    with sides.edited():
        text, _ = rows(sd1, ["the cat in a photo"])
        found = predict(sd1, text)
        with sides.original():
            plain = predict(sd1, text)
        assert torch.equal(predict(sd1, text), found) and not torch.equal(plain, found)


def test_features_from_elsewhere_are_known_by_the_cosine_alone(sd1) -> None:
    edit = handmade(sd1)
    text, _ = rows(sd1, ["the cat in a photo"])  # before the edit is on
    with on(sd1, edit) as stack:
        predict(sd1, text)
        assert float(stack.gates[0, 0]) == pytest.approx(cosine(sd1, "the cat in a photo", "cat"), abs=1e-5)
        assert float(stack.gates[0, 0]) < 1
        rows(sd1, ["the cat in a photo"])  # now the text encoder says what these rows are
        predict(sd1, text)
        assert float(stack.gates[0, 0]) == 1
        text.mul_(-1)  # in place: another text in the same tensor
        predict(sd1, text)
        assert float(stack.gates[0, 0]) == 0


def test_a_text_that_is_rounded_on_its_way_to_the_unet_is_still_known(sd1) -> None:
    """As under autocast, or between parts of different precision."""
    with on(sd1, handmade(sd1)) as stack:
        text, _ = rows(sd1, ["the cat in a photo"])
        for dtype in (torch.bfloat16, torch.float32):
            predict(sd1, text.to(dtype).float())
            assert float(stack.gates[0, 0]) == 1
        predict(sd1, text + 0.1)
        assert float(stack.gates[0, 0]) < 1


def test_rows_are_gated_each_for_itself_without_guidance(sd1) -> None:
    edit = handmade(sd1)
    one = edits.noise(1, 4, 16, 16, seed=9, size=1)
    with on(sd1, edit) as stack:
        text, _ = rows(sd1, ["", "cat"])
        predict(sd1, text, one.repeat(2, 1, 1, 1))
        assert float(stack.gates[0, 0]) < 1 == float(stack.gates[1, 0])  # no guided call of the pipeline: two prompts
        tiny.image(sd1, "cat")
        assert stack.gates.tolist() == [[1], [1]]
        predict(sd1, text, one.repeat(2, 1, 1, 1))
        assert stack.gates.tolist() == [[1], [1]]
        predict(sd1, text)  # the same text
        assert float(stack.gates[0, 0]) < 1  # other latents in the two halves: no guidance
        sd1("dog", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        assert stack.gates.shape == (1, 1) and float(stack.gates) < 1


def test_texts_of_several_spans_take_the_nearest_and_others_are_refused(sd1) -> None:
    edit = handmade(sd1)
    text, _ = rows(sd1, ["dog", "cat"])
    with on(sd1, edit) as stack:
        predict(sd1, text.flatten(0, 1)[None])
        assert float(stack.gates) == pytest.approx(1, abs=1e-5)
        with pytest.raises(EditError, match=r"gated by text of shape \(77, 32\), the model is given \(50, 32\)"):
            predict(sd1, text[:1, :50])


def test_half_precision_knows_its_rows_too(sd1) -> None:
    edit = handmade(sd1)
    sd1.to(dtype=torch.bfloat16)
    with on(sd1, edit) as stack:
        image = tiny.image(sd1, "the cat in a photo", latent=True)
        assert stack.gates.tolist() == [[1], [1]] and torch.isfinite(image).all()


# -- on and off -----------------------------------------------------------------------------------------------------


def test_edits_inside_one_another_add_up_and_come_off_in_any_order(sd1) -> None:
    edit = handmade(sd1, ("cat", "fox"))
    with edit.applied(sd1):
        wanted = tiny.image(sd1, "a dog", latent=True)
    base, before = tiny.image(sd1, "a dog", latent=True), edits.weights(sd1)
    first, second = alone(edit, 0).apply(sd1), alone(edit, 1).apply(sd1)
    assert edits.relative(tiny.image(sd1, "a dog", latent=True), wanted) < 1e-4
    first.remove()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(tiny.image(sd1, "a dog", latent=True), wanted)
    second.remove()
    assert torch.equal(tiny.image(sd1, "a dog", latent=True), base) and edits.same(edits.weights(sd1), before)
    parts = [*sd1.unet.modules(), *sd1.text_encoder.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_a_file_of_one_base_acts_alike_on_a_sibling(sd1, tmp_path) -> None:
    handmade(sd1, gate="off").save(tmp_path / "spm.safetensors")
    edit, sibling = Edit.load(tmp_path / "spm.safetensors"), tiny.sd1(seed=7)
    with pytest.raises(BaseMismatchError, match="force=True"):
        edit.apply(sibling)
    for name, layer in layers(sd1.unet).items():
        other, wide = sibling.unet.get_submodule(name), layer.weight.shape[1]
        x = edits.noise(2, wide, 4, 4, seed=1, size=1) if layer.weight.ndim == 4 else edits.noise(2, 4, wide, seed=1, size=1)
        with torch.no_grad():
            plain = layer(x), other(x)
            with edit.applied(sd1), edit.applied(sibling, force=True):
                moved = layer(x), other(x)
        assert torch.allclose(moved[0] - plain[0], moved[1] - plain[1], atol=1e-5)
        assert not torch.equal(*plain) and not torch.equal(moved[0], plain[0])


def test_what_does_not_fit_is_one_clear_line_and_leaves_the_model(sd1, sd2) -> None:
    edit = handmade(sd1)
    (op,) = edit.ops
    later = Adapter("unet", "", "spm", op.weights, op.config | {"gate": "later"})
    with pytest.raises(EditError, match="the spm adapter op on unet has the gate 'later', unknown"):
        replace(edit, ops=(later,)).apply(sd1)
    with pytest.raises(EditError, match=r"no unet/\S+proj_in of shape .* use a model of the edit's own shapes") as error:
        edit.apply(sd2, force=True)
    assert "\n" not in str(error.value)
    for part in ("rank", "alpha", "gate", "targets", "tokens", "features", "up", "down"):
        weights = {name: tensor for name, tensor in op.weights.items() if not name.endswith(part)}
        damaged = Adapter("unet", "", "spm", weights, {name: v for name, v in op.config.items() if name != part})
        for use in (replace(edit, ops=(damaged,)).apply, lambda pipe, damaged=damaged: spm.ungated(damaged)):
            with pytest.raises(EditError, match=f"the spm adapter op on unet lacks .*{part}.* damaged, fit it again"):
                use(sd1)
    assert not any(part._forward_hooks for pipe in (sd1, sd2) for part in pipe.unet.modules())
