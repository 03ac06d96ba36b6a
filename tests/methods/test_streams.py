"""Streams are read in blocks and carried in place: the same edits as read whole, in less memory."""

from __future__ import annotations

import pytest
import torch
from test_erasepro import backbone, fit, gap, pipe  # noqa: F401

from erasekit.concept import EraseRequest
from erasekit.methods import _check, _streams
from erasekit.methods._streams import Stream
from erasekit.methods.erasepro import EraseProConfig, align

FIT, MANY = ["fox"], ["fox", "a fox", "photo", "the style"]


@pytest.mark.parametrize(("retain", "mode"), [(FIT, "exact"), (MANY, "exact"), (MANY, "soft")])
def test_blocks_change_no_edit_and_no_decision(backbone, monkeypatch, retain, mode):  # noqa: F811
    whole = fit(backbone, retain=retain, retain_mode=mode)
    monkeypatch.setattr(_streams, "BLOCK", 0.25)  # 64 columns
    blocks = fit(backbone, retain=retain, retain_mode=mode)
    assert blocks.self_check["warnings"] == whole.self_check["warnings"]
    assert bool(whole.self_check["warnings"]) == (retain is MANY and mode == "exact")
    assert blocks.self_check["retained_drift"] == pytest.approx(whole.self_check["retained_drift"], rel=1e-5, abs=1e-10)
    assert all(gap(b.up @ b.down, w.up @ w.down) < 1e-7 for b, w in zip(blocks.ops, whole.ops, strict=True))


def test_the_original_walks_only_what_is_read_of_it(backbone, monkeypatch):  # noqa: F811
    request = EraseRequest.build("cat", anchor="dog", retain=("fox", "a fox", "photo"))
    config = EraseProConfig(retain_mode="soft")
    whole = align(backbone, request, config)
    monkeypatch.setattr(_check, "DRIFT_COLUMNS", 1)
    found = align(backbone, request, config)
    assert (len(whole.originals), len(found.originals), len(found.source)) == (4, 2, 4)
    assert all(gap(f.up @ f.down, w.up @ w.down) < 1e-9 for f, w in zip(found.ops, whole.ops, strict=True))
    assert all(record["drift"] is not None for record in found.records)
    assert torch.equal(found.reference, found.originals[:1]), "of targets alone"
    with pytest.raises(IndexError):
        Stream(found.originals, like=found.like).at([(3, 0)])


@torch.no_grad()
def test_columns_that_gave_way_take_no_probe_from_retained_ones(backbone, monkeypatch):  # noqa: F811
    monkeypatch.setattr(_check, "DRIFT_COLUMNS", 8)
    walk = align(backbone, EraseRequest.build("cat", anchor="dog", retain=("fox",)), EraseProConfig(retain_mode="soft"))
    walk.soft += [(0, position) for position in range(20, 77)]
    kept = walk._align("a level", backbone.tower.output).kept
    assert kept is not None and kept.now.shape[1] == 16 and len(walk.probed) == 8
    assert torch.equal(kept.now[:, :8], Stream(walk.source, backbone.tower.output).at(walk.probed))


def test_a_stream_gives_columns_whole_and_in_blocks(monkeypatch):
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    places = [(row, position) for row in (2, 0) for position in range(5)]
    stream = Stream(hidden, lambda x: 2 * x, like=torch.tensor([1, 1, 0]))
    columns = stream.at(places)
    assert torch.equal(columns, 2 * torch.cat([hidden[0], hidden[1]]).T) and stream.at([]).shape == (4, 0)
    monkeypatch.setattr(_streams, "BLOCK", 0.5)
    assert [block.shape[1] for block in stream.blocks(places)] == [2] * 5
    torch.testing.assert_close(stream.moment(places), (columns @ columns.T).double())
    torch.testing.assert_close(stream.reduced(places) @ stream.reduced(places).T, stream.moment(places))


@torch.no_grad()
def test_a_tower_advances_in_place_what_a_layer_leaves(backbone):  # noqa: F811
    tower = backbone.tower
    hidden = tower.embed(backbone.tokenize(["cat", "a fox"] * 30))
    before = hidden.clone()
    after = tower.layer(hidden, 0)
    assert torch.equal(hidden, before)
    tower.advance(hidden, 0)
    assert torch.equal(hidden, after) and not torch.equal(hidden, before)
