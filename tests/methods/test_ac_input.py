"""AC: what a user can get wrong, a full GPU, and the plan; on tiny random models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from ac_runs import QUICK, fit, state

import erasekit
from erasekit.concept import EraseRequest
from erasekit.errors import TrainingError, UsageError
from erasekit.methods._ac_students import RowsStudent
from erasekit.methods._anchors import of_folder, read_captions
from erasekit.training.parameters import select


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
    with pytest.raises(TrainingError, match=r"memory is full: lower batch \(now 2\)"):  # drawing has no gradients to recompute
        fit(sd1)
    with pytest.raises(TrainingError, match=r"memory is full: set recompute=true, lower batch \(now 2\)"):
        erasekit.plan(sd1, "cat", anchor="dog", method="ac", **QUICK)


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
    assert (plan.numbers, plan.steps) == (numbers, 3) and plan.seconds > 0
    assert re.fullmatch(r"variant cross\.kv on [1-4] images that are drawn first", plan.what)
    assert plan.memory == unet + 16 * numbers
    augmented = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"augment": True}))
    assert augmented.memory == plan.memory + vae
    monkeypatch.undo()
    single, double = (erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"regulariser": r})).memory
                      for r in (0.0, 1.0))  # fmt: skip
    fixed = unet + 16 * numbers
    assert double - fixed == pytest.approx(2 * (single - fixed), rel=0.02)  # target and anchor are one graph
    monkeypatch.setattr(RowsStudent, "encode", lambda own, prompts: read.append(encode(own, prompts)) or read[-1])
    monkeypatch.setattr("erasekit.training.plan._Kept.bytes", 0)
    long = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"images": 4000, "sampling_steps": 200}))
    assert long.seconds > 5 * plan.seconds  # drawing is counted
    rows = erasekit.plan(sd1, "cat", anchor="dog", method="ac", **(QUICK | {"variant": "embedding"}))
    assert rows.memory == unet + encoder + 16 * 32 and read[-1].requires_grad and len(read[-1]) == 2
    assert rows.numbers == 32 and state(sd1) == before
