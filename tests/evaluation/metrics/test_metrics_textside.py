"""Residual and drift against hooks on the live modules of tiny pipelines, and what an exact edit must leave."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch

import erasekit
from erasekit.backbones.sd import SDBackbone
from erasekit.edit import Base, Dense, Edit
from erasekit.errors import BaseMismatchError, EditError, UsageError
from erasekit.evaluation.metrics import textside

PAIRS = [("a photo of cat", "a photo of dog"), ("the cat in style", "the dog in style"), ("cat and fox", "dog and fox")]
KEPT = ["a fox", "the photo of a fox", ""]


def live(pipe, prompts: list[str]) -> dict[str, torch.Tensor]:
    """What q, k, v, out of the text encoder and the cross-attention's k and v give, biases taken off, without BOS."""
    found: dict[str, torch.Tensor] = {}

    def record(key: str):
        def hook(module, inputs, output) -> None:
            bias = 0 if module.bias is None else module.bias
            found[key] = (output - bias)[:, 1:].double()

        return hook

    text = [
        (n, m)
        for n, m in pipe.text_encoder.named_modules()
        if n.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    cross = [(n, m) for n, m in pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
    handles = [m.register_forward_hook(record("text_encoder/" + n.removeprefix("text_model."))) for n, m in text]
    handles += [m.register_forward_hook(record("unet/" + n)) for n, m in cross]
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder(input_ids=ids).last_hidden_state
        for _, module in cross:
            module(states)
    for handle in handles:
        handle.remove()
    return found


def ratio(now: dict, aim: dict, keys) -> float:
    missed = sum(float((now[k] - aim[k]).square().sum()) for k in keys)
    return (missed / sum(float(aim[k].square().sum()) for k in keys)) ** 0.5


def test_several_edits_beside_one_walk_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.sd1()
    model, walked, real = SDBackbone.from_pipeline(pipe), [], textside._walk
    one = edits.edit(pipe)
    both = [textside.changes(model, edit) for edit in (one, 0.5 * one)]
    alone = [textside.measure(model, edit, pairs=PAIRS, kept=KEPT) for edit in (one, 0.5 * one)]
    monkeypatch.setattr(
        textside, "_walk", lambda model, deltas, *rest: walked.append(not deltas) or real(model, deltas, *rest)
    )
    assert textside.measure_each(model, both, pairs=PAIRS, kept=KEPT) == alone and alone[0] != alone[1]
    assert (len(walked), sum(walked)) == (7, 3), "targets, anchors and kept prompts once, and two of these by each edit"


@pytest.mark.parametrize("make", [tiny.sd1, tiny.sd2])
def test_against_the_live_modules(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textside, "BATCH", 2)
    pipe = make()
    extra = edits.low_rank(pipe, "text_encoder", "encoder.layers.0.self_attn.out_proj", rank=2, size=0.5)
    family = "sd1" if make is tiny.sd1 else "sd2"
    names = [edits.low_rank(pipe, "unet", n, rank=2, size=0.5) for n in edits.KEYS]
    text = [edits.low_rank(pipe, "text_encoder", n, rank=1, seed=4, size=0.5) for n in edits.TEXT]
    edit = edits.edit(pipe, *names, *text, extra, names[0], family=family)  # two ops on one site add up
    found = textside.measure(SDBackbone.from_pipeline(pipe), edit, pairs=PAIRS, kept=KEPT)
    targets, anchors = [t for t, _ in PAIRS], [a for _, a in PAIRS]
    before, aim, kept = (live(pipe, p) for p in (targets, anchors, KEPT))
    with edit.applied(pipe):
        now, moved = live(pipe, targets), live(pipe, KEPT)
    assert {s.site for s in found.sites} == {op.site for op in edit.ops}
    for site in found.sites:
        expected = [ratio(now, aim, [site.site]), ratio(before, aim, [site.site]), ratio(moved, kept, [site.site])]
        assert [site.residual, site.unedited, site.drift] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    edited, cross = [s.site for s in found.sites], [k for k in aim if k.startswith("unet/")]
    assert found.residual == pytest.approx(ratio(now, aim, edited), rel=1e-4)
    assert found.drift == pytest.approx(ratio(moved, kept, edited), rel=1e-4)
    assert found.denoiser_residual == pytest.approx(ratio(now, aim, cross), rel=1e-4)
    assert found.denoiser_unedited == pytest.approx(ratio(before, aim, cross), rel=1e-4)
    assert found.denoiser_drift == pytest.approx(ratio(moved, kept, cross), rel=1e-4) and found.skipped == ()


def test_a_zero_edit_changes_nothing(sd1) -> None:
    found = textside.measure(SDBackbone.from_pipeline(sd1), edits.edit(sd1) * 0.0, pairs=PAIRS, kept=KEPT)
    assert found.residual == found.unedited > 0 and found.drift == found.denoiser_drift == 0
    assert found.denoiser_residual == found.denoiser_unedited


def test_an_exact_edit_leaves_nothing_of_its_own_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """ErasePro, in a width that holds its columns: zero residual at the prompt it was solved for, less than without
    the edit in sentences it never saw, and no drift of a prompt retained exactly."""
    monkeypatch.setattr(tiny, "WIDTH", 256)
    pipe = tiny.sd1()
    edit, backbone = erasekit.erase(pipe, "cat", anchor="dog", retain=["fox"]), SDBackbone.from_pipeline(pipe)
    own = textside.measure(backbone, edit, pairs=[("cat", "dog")], kept=["fox"])
    held_out = textside.measure(backbone, edit, pairs=PAIRS, kept=["a photo of the style"])
    assert own.residual < 1e-4 < own.unedited and own.denoiser_residual < 1e-4 and own.drift < 1e-4
    assert 1e-3 < held_out.residual < held_out.unedited and held_out.drift > 1e-3


def test_the_model_is_only_read(sd1) -> None:
    before = edits.weights(sd1)
    textside.measure(SDBackbone.from_pipeline(sd1), edits.edit(sd1), pairs=PAIRS, kept=KEPT)
    assert edits.same(before, edits.weights(sd1))


def test_what_is_not_text_is_named_and_what_cannot_be_walked_is_refused(sd1) -> None:
    backbone = SDBackbone.from_pipeline(sd1)
    image_side = edits.dense(sd1, "unet", "conv_in")
    found = textside.measure(
        backbone, edits.edit(sd1, edits.low_rank(sd1, "unet", edits.KEYS[0], rank=1), image_side), pairs=PAIRS
    )
    assert found.skipped == ("the dense op on unet/conv_in",)
    with pytest.raises(EditError, match=r"mlp\.fc1"):
        textside.measure(backbone, edits.edit(sd1, edits.dense(sd1, "text_encoder", edits.MLP[0])), pairs=PAIRS)
    with pytest.raises(EditError, match="nothing that reads text"):
        textside.measure(backbone, edits.edit(sd1, image_side), pairs=PAIRS)
    with pytest.raises(UsageError, match="at least one pair"):
        textside.measure(backbone, edits.edit(sd1), pairs=[])


def test_another_base_is_refused(sd1) -> None:
    other = tiny.sd1(seed=9)
    with pytest.raises(BaseMismatchError, match="other weights"):
        textside.measure(SDBackbone.from_pipeline(other), edits.edit(sd1), pairs=PAIRS)


def test_the_cast_to_half_precision_is_measured(sd1) -> None:
    """A change below half of bfloat16's step is rounded away when an edit is applied, so it must not be counted."""
    sd1.text_encoder.to(torch.bfloat16)
    name = edits.TEXT[0]
    weight = edits.module(sd1, "text_encoder", name).weight
    op = Dense("text_encoder", name, weight.detach().float() * 1e-4)
    edit = Edit((op,), Base("tiny", "sd1"), "test")
    found = textside.measure(SDBackbone.from_pipeline(sd1), edit, pairs=PAIRS, kept=KEPT)
    assert found.drift == 0 and found.residual == found.unedited
