"""The random control has the edit's norm at every weight, and nothing of its direction."""

from __future__ import annotations

import json
from pathlib import Path

import edits
import fakes
import pytest
import torch

from erasekit.adapters import spm
from erasekit.adapters.receler import PARTS
from erasekit.edit import Adapter, Edit, Projection
from erasekit.errors import UsageError
from erasekit.evaluation import controls
from erasekit.evaluation.suites import Prompt, load_suite
from erasekit.training.maps import cross_attentions
from erasekit.training.membranes import layers


def deltas(edit: Edit, pipe) -> dict[str, torch.Tensor]:
    """What the edit adds to each weight, from the pipeline before and with it."""
    before = edits.weights(pipe)
    with edit.applied(pipe):
        after = edits.weights(pipe)
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def test_same_norm_at_every_weight_and_another_direction(sd1) -> None:
    name = edits.KEYS[0]
    twice = edits.edit(sd1, edits.dense(sd1, "unet", name), edits.low_rank(sd1, "unet", name, rank=2, size=1.0),
                       edits.dense(sd1, "text_encoder", edits.TEXT[0], seed=5),
                       edits.dense(sd1, "text_encoder", edits.MLP[0], seed=6))  # fmt: skip
    noise = controls.random_like(twice, sd1, seed=0)
    ours, theirs = deltas(noise, sd1), deltas(twice, sd1)
    assert ours.keys() == theirs.keys() and len(ours) == 3, "two ops on one weight count as their sum"
    for weight, delta in theirs.items():
        assert float(ours[weight].norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
        cosine = float((ours[weight] * delta).sum() / delta.norm() ** 2)
        assert abs(cosine) < 0.2, "noise has nothing of the edit's direction"
    assert (noise.targets, noise.base) == (twice.targets, twice.base)


def test_a_projection_and_its_bias(sd1) -> None:
    name, width = edits.MLP[0], edits.module(sd1, "text_encoder", edits.MLP[0]).weight.shape[0]
    edit = edits.edit(sd1, Projection("text_encoder", name, left=0.9 * torch.eye(width), bias=edits.noise(width, seed=3)))
    ours, theirs = deltas(controls.random_like(edit, sd1, seed=1), sd1), deltas(edit, sd1)
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for part, delta in theirs.items():
        assert float(ours[part].norm()) == pytest.approx(float(delta.norm()), rel=1e-4)


def test_the_seed_decides_and_the_global_generator_is_left_alone(sd1) -> None:
    edit, state = edits.edit(sd1), torch.random.get_rng_state()
    first, again, other = (controls.random_like(edit, sd1, seed=seed).ops for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    same = [torch.equal(a.tensors()["delta"], b.tensors()["delta"]) for a, b in zip(first, again, strict=True)]
    assert all(same) and not torch.equal(first[0].tensors()["delta"], other[0].tensors()["delta"])


def test_the_noise_is_of_the_original_weight_also_under_another_edit(sd1) -> None:
    edit = edits.edit(sd1)
    alone = controls.random_like(edit, sd1, seed=0)
    with edit.applied(sd1):
        under = controls.random_like(edit, sd1, seed=0)
    assert all(torch.equal(a.tensors()["delta"], b.tensors()["delta"]) for a, b in zip(alone.ops, under.ops, strict=True))


def spm_op(pipe, *, rank: int = 2, gate: str = "off") -> Adapter:
    """Modules of two targets, the second much smaller."""
    found, size = {"features": edits.noise(2, 77, 32, seed=1)}, torch.tensor([1.0, 0.1]).repeat_interleave(rank)
    for i, (name, layer) in enumerate(layers(pipe.unet).items()):
        shape = layer.weight.shape
        found[f"{name}.down"] = edits.noise(2 * rank, *shape[1:], seed=2 * i + 2)
        found[f"{name}.up"] = edits.noise(shape[0], 2 * rank, seed=2 * i + 3) * size
    config = {"rank": rank, "alpha": 1.0, "gate": gate, "targets": ["cat", "dog"], "tokens": [[1], [2]]}
    return Adapter("unet", "", "spm", found, config)


def changes(op: Adapter, rank: int = 2) -> list[list[torch.Tensor]]:
    """up @ down of each layer, for each target."""
    pairs = [(op.weights[f"{m}.up"], op.weights[f"{m}.down"].flatten(1)) for m in spm.modules(op)]
    return [[up[:, at] @ down[at] for at in (slice(0, rank), slice(rank, None))] for up, down in pairs]


def predicted(pipe, edit: Edit) -> torch.Tensor:
    with torch.no_grad(), edit.applied(pipe):
        return pipe.unet(edits.noise(1, 4, 8, 8, seed=8), 10, edits.noise(1, 77, 32, seed=9)).sample


def test_noise_of_spm_has_each_targets_norm_at_each_layer_behind_the_same_gate(sd1) -> None:
    op = spm_op(sd1, gate="transport")
    edit = Edit((op,), edits.base(sd1, ()), "spm", targets=("cat", "dog"), anchors=("", ""))
    (noise,) = controls.random_like(edit, sd1, seed=0).ops
    assert controls.has_noise(edit) and noise.config == op.config
    assert torch.equal(noise.weights["features"], op.weights["features"])
    for ours, theirs in zip(changes(noise), changes(op), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-4)
            assert abs(float((a * b).sum() / b.norm() ** 2)) < 0.9
    again, other = (controls.random_like(edit, sd1, seed=seed).ops[0].weights for seed in (0, 1))
    name = f"{spm.modules(op)[0]}.up"
    assert torch.equal(again[name], noise.weights[name]) and not torch.equal(other[name], noise.weights[name])


def test_noise_of_receler_has_the_norm_of_every_part_and_acts(sd1) -> None:
    found = {}
    for i, (path, module) in enumerate(cross_attentions(sd1.unet).items()):
        d = module.to_out[0].weight.shape[0]
        shapes = ((3, d), (3,), (d, 3), (d,))
        found |= {f"{path}.{p}": edits.noise(*s, seed=4 * i + j) for j, (p, s) in enumerate(zip(PARTS, shapes, strict=True))}
    edit = Edit((Adapter("unet", "", "receler", found, {"rank": 3, "halves": "both"}),), edits.base(sd1, ()), "receler")
    noise = controls.random_like(edit, sd1, seed=0)
    for name, tensor in noise.ops[0].tensors().items():
        assert float(tensor.norm()) == pytest.approx(float(found[name].norm()), rel=1e-5)
        assert not torch.equal(tensor, found[name])
    assert not torch.equal(predicted(sd1, noise), predicted(sd1, edit))


def test_noise_of_modules_acts_beside_that_of_weights(sd1) -> None:
    """And other code is left out."""
    linear = edits.dense(sd1, "unet", edits.KEYS[0])
    edit = Edit((linear, spm_op(sd1), Adapter("unet", "conv_in", "gate")), edits.base(sd1, (linear,)), "spm")
    noise = controls.random_like(edit, sd1, seed=0)
    assert [op.kind for op in noise.ops] == ["dense", "adapter"]
    alone = controls.random_like(edits.edit(sd1, linear), sd1, seed=0)
    assert torch.equal(alone.ops[0].tensors()["delta"], noise.ops[0].tensors()["delta"])
    assert not torch.equal(predicted(sd1, noise), predicted(sd1, alone))


def test_an_edit_of_other_code_has_no_norm(sd1) -> None:
    edit = Edit((Adapter("unet", "conv_in", "gate"),), edits.base(sd1, ()), "spm")
    assert not controls.has_noise(edit)
    with pytest.raises(UsageError, match="--control none"):
        controls.random_like(edit, sd1, seed=0)


def test_models_that_never_knew(sd1_folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "emoji-never-hot-dog"
    named.symlink_to(sd1_folder)
    assert controls.never(str(named), ["cat", "hot dog"]).concept == "hot dog"
    assert controls.never(f"cat={sd1_folder}", ["cat", "dog"]).folder == sd1_folder
    assert controls.never(str(sd1_folder), ["cat"]).concept == "cat", "one target: any folder is of it"
    with pytest.raises(UsageError, match="no edit here erases"):
        controls.never(str(sd1_folder), ["cat", "dog"])
    with pytest.raises(UsageError, match="no edit here erases 'fox'"):
        controls.never(f"fox={sd1_folder}", ["cat"])
    with pytest.raises(UsageError, match="is no diffusers folder"):
        controls.never(str(tmp_path / "none"), ["cat"])


def test_a_model_that_never_knew_several_is_asked_for_none_of_the_others(tmp_path: Path) -> None:
    suite, never = load_suite("emoji/object"), controls.Never("cat", tmp_path)
    prompts = suite.prompts(["cat"])
    assert controls.fair(prompts, suite, never) == prompts, "nothing says that it was trained without more"
    other = next(p.wanted[0] for p in prompts if p.group == "unrelated")
    (tmp_path / "without.json").write_text(json.dumps({"concepts": ["cat", other], "styles": ["ink"]}))
    kept = controls.fair(prompts, suite, never)
    lost = [p for p in prompts if p not in kept]
    assert kept and lost and all(other in p.wanted or p.style == "ink" for p in lost)
    assert not any(other in p.wanted or p.style == "ink" for p in kept) and any("cat" in p.wanted for p in kept)
    many = suite.prompts(["cat", other])
    assert not any(p.target == other for p in controls.fair(many, suite, never)), "another target, however it is asked for"
    styles = load_suite("emoji/style")
    ink = controls.fair(styles.prompts(["ink style"]), styles, controls.Never("ink style", tmp_path))
    assert any(p.style == "ink" for p in ink) and not any({"cat", other} & set(p.wanted) for p in ink)


@pytest.mark.parametrize("target", ["ink style", "Ink", "Cat"])
def test_a_users_suite_may_call_them_otherwise(tmp_path: Path, target: str) -> None:
    """A suite of another world calls a target as its file does: a style with the word, a name with a capital."""
    (tmp_path / "without.json").write_text(json.dumps({"concepts": ["cat"], "styles": ["ink"]}))
    suite, never = fakes.suite(world="", concepts=()), controls.Never(target, tmp_path)
    own = Prompt("plain/1", "plain", f"a picture, {target}", target, (target,))
    cat, ink = target == "Cat", Prompt("style/1", "style", "a car in ink style", style="Ink style")
    other = Prompt("unrelated/1", "unrelated", "a cat", "", ("Cat",))
    kept = controls.fair((own, ink, other), suite, never)
    assert kept == ((own, other) if cat else (own, ink))


@pytest.mark.parametrize(("target", "labels", "known"), [
    ("pet", ["cat", "dog"], "dog"), ("pet", ["dog", "cat"], "dog"), ("dog", [], "dog"),
    ("pet", ["cat"], ""), ("cat", ["tabby", "tiger cat"], ""), ("Cat", [], ""),
])  # fmt: skip
def test_all_that_counts_as_the_target_must_be_withheld_or_the_target_itself(
    tmp_path: Path, target: str, labels: list[str], known: str
) -> None:
    (tmp_path / "without.json").write_text(json.dumps({"concepts": ["cat"], "styles": []}))
    if not known:
        assert controls.without(tmp_path, target, *labels, option="--without-model M") == {"cat"}
        return
    with pytest.raises(UsageError, match=f"^--without-model M: the model there was trained with '{known}', and without cat"):
        controls.without(tmp_path, target, *labels, option="--without-model M")


@pytest.mark.parametrize(("text", "words"), [('{"concepts": ["dog"], "styles": []}', "was trained with 'cat', and without dog"),
                                             ("[]", "does not say what"), ("{", "does not say what")])  # fmt: skip
def test_a_model_that_knows_the_concept_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "without.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        controls.fair((), load_suite("emoji/object"), controls.Never("cat", tmp_path))
