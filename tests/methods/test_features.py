"""Features cut short are the same features."""

from __future__ import annotations

import pytest
import torch
from test_erasepro import wide

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.methods._align import Walk
from erasekit.methods._cross import silent
from erasekit.methods._features import encoded, last_subject
from erasekit.methods.erasepro import EraseProConfig, align

PROMPTS = ["cat", "a photo of a red fox", "", "dog", "a dog beside a cat"]


def test_last_subject_rows_are_those_of_whole_prompts(sd1) -> None:
    model = backbone(sd1)
    whole = torch.stack([rows[last] for rows, last in encoded(model, PROMPTS, whole=True)], 1)
    found = last_subject(model, PROMPTS, progress=silent, what="")
    assert found.dtype == torch.float64 and found.shape == whole.shape
    torch.testing.assert_close(found.float(), whole, rtol=1e-4, atol=1e-5)


def test_shared_beginnings_and_repeats_in_any_order(sd1) -> None:
    model = backbone(sd1)
    names = ["a fox", "cat dog", "a cat", "the cat", "cat fox", "a fox", "cat", "the dog", "a dog"]
    found = last_subject(model, names, progress=silent, what="")
    with torch.no_grad():
        for name, column in zip(names, found.T, strict=True):  # the encoder itself, one prompt at a time
            ids = torch.tensor([sd1.tokenizer(name)["input_ids"]])
            expected = sd1.text_encoder(ids).last_hidden_state[0, -2]
            torch.testing.assert_close(column.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anchors", ["dog", ("dog", "photo")])
@pytest.mark.parametrize("mode", ["none", "soft", "exact"])
def test_what_a_target_shares_with_its_anchor_is_not_walked_again(monkeypatch, anchors, mode) -> None:
    """An exact fit's streams are what the edited encoder makes of the prompts, walked whole."""
    plain, followed = Walk._follow, []
    monkeypatch.setattr(Walk, "_follow", lambda walk, *rest: (followed.append(rest[0]), plain(walk, *rest))[1])
    model = backbone(wide(torch.float32))
    request = EraseRequest.build(("cat", "style"), anchor=anchors, retain=() if mode == "none" else ("a fox", "fox"))
    walk = align(model, request, EraseProConfig(retain_mode=mode))
    assert followed == list(range(model.tower.depth))
    ops = {op.module: op for op in walk.ops}
    hidden, wanted = model.tower.embed(walk.plan.source), model.tower.embed(walk.plan.reference)
    for layer in range(model.tower.depth):
        sites = [site for site in model.sites("text.qkv") if site.depth == layer and site.module in ops]
        deltas = {site.group[-1]: ops[site.module].delta(model.weight(site)) for site in sites}
        hidden, wanted = model.tower.layer(hidden, layer, deltas), model.tower.layer(wanted, layer)
    assert len(ops) > 3
    torch.testing.assert_close(walk.source, hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walk.reference, wanted[: walk.count], rtol=1e-4, atol=1e-5)


def test_what_was_not_met_is_walked(monkeypatch) -> None:
    monkeypatch.setattr(Walk, "_follow", lambda *_: pytest.fail("the constraints were not met"))
    model, request = backbone(wide(torch.float32)), EraseRequest.build("cat", anchor="dog")
    unmet = ({"ridge": 1e-2}, {"positions": "concept"}, {"sites": "kv"}, {"sites": "deep"}, {"compensate": True})
    for changed in unmet:
        align(model, request, EraseProConfig(**changed, layers=1))


def test_progress_counts_every_prompt_once(sd1) -> None:
    seen: list[tuple[int, int]] = []
    last_subject(backbone(sd1), PROMPTS, progress=lambda done, total, what: seen.append((done, total)), what="x")
    assert seen[0] == (0, 5) and all(total == 5 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] < 5
