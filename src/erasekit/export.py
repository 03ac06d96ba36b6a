"""Edits for other programs: LoRA files for diffusers (peft) and A1111 or ComfyUI (kohya), full differences for
ComfyUI, and whole diffusers folders with the edit fused.

The keys, and what each loader does with them, are measured facts: tests hold them against the loaders' own. No alpha
is written anywhere, so every loader scales by 1. A delta can be subtracted again and shows where the concept lived;
where that matters publish a folder (`save_folder`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from os import PathLike
from typing import Any

from torch import Tensor

from erasekit.algebra import balanced, bias_of, difference, is_zero, summed
from erasekit.coded_ops import Adapter
from erasekit.edit import Edit
from erasekit.errors import EditError, UsageError
from erasekit.export_keys import comfy_base, kohya_base, peft_base, text_helper
from erasekit.files import write_folder, write_whole
from erasekit.io import pack
from erasekit.ops import Dense, LinearOp, LowRank, Op, Projection

Tensors = dict[str, Tensor]
KOHYA_FAMILIES = ("sd1", "sd2", "sdxl")
# Adapters that are low-rank differences but for a part that no such file holds: ungated(op) -> (ops, what is lost).
UNGATED: dict[str, str] = {"spm": "erasekit.adapters.spm:ungated"}


def export(edit: Edit, path: str | PathLike[str], format: str) -> str:
    """Write the edit to `path` in another program's format, whole or not at all; its deltas are the edit's to
    float32 rounding. Returns what of the edit such a file cannot hold, in words; "" for nothing.

    `format`: "peft" (`pipe.load_lora_weights`), "kohya" (A1111, ComfyUI, also diffusers) or "comfy" (ComfyUI's
    full differences `.diff`, `.diff_b`, which A1111 reads too).

    Raises:
        UsageError: an unknown format.
        EditError: an op that the format cannot hold, named; an edit that changes nothing; an unwritable path.
    """
    if format == "diffusers":
        raise UsageError("a diffusers folder needs the model: use `erasekit apply EDIT --model M --out FOLDER`")
    if format not in FORMATS:
        raise UsageError(f"unknown export format {format!r}: choose {', '.join(FORMATS)}")
    plain, lost = _ungated(edit, format)
    tensors, metadata = FORMATS[format](plain)
    known = {"format": "pt", "erasekit_export": format} | ({"erasekit_not_exported": lost} if lost else {})
    write_whole(path, *pack(tensors, known | metadata))
    return lost


def save_folder(
    edit: Edit, pipe: Any, path: str | PathLike[str], *, scale: float | int = 1.0, force: bool = False
) -> None:
    """Save the pipeline with the edit fused as a diffusers folder, whole or not at all; `pipe` stays as it was.

    Raises: as `Edit.fuse`; `EditError` if `path` exists and is not an empty folder.
    """
    for op in edit.ops:
        if not isinstance(op, LinearOp):
            raise EditError(f"{op.label} is code and not a change of weights: a diffusers folder cannot hold it")
    with edit.applied(pipe, scale=scale, force=force):
        write_folder(path, pipe.save_pretrained)


def peft(edit: Edit) -> tuple[Tensors, dict[str, str]]:
    """`<component>.<module>.lora_A.weight` / `.lora_B.weight`, balanced factors, one pair a module."""
    return _pairs(edit, "peft", peft_base, "lora_A", "lora_B"), {}


def kohya(edit: Edit) -> tuple[Tensors, dict[str, str]]:
    """`lora_unet_...` / `lora_te...` with `.lora_down.weight` / `.lora_up.weight`, and the metadata A1111 shows."""
    _refuse_other_families(edit, "kohya")
    tensors = _pairs(edit, "kohya", lambda op: kohya_base(op, edit.base.family), "lora_down", "lora_up")
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if "lora_down" in name)
    return tensors, _kohya_metadata(edit, rank)


def comfy(edit: Edit) -> tuple[Tensors, dict[str, str]]:
    """`<base>.diff`, a full float32 difference of the weight, and `<base>.diff_b` for the bias."""
    _refuse_other_families(edit, "comfy")
    tensors: Tensors = {}
    for op in _linear(edit, "comfy"):
        base = comfy_base(op, edit.base.family)
        if isinstance(op, Projection):
            if op.left is not None or op.right is not None or op.bias is None:
                raise _refused(op, "comfy", "its difference depends on the model's weight; use `erasekit apply`")
        elif not is_zero(op):
            tensors[f"{base}.diff"] = difference(op).float()
        if (bias := bias_of(op)) is not None:
            key = f"{base}.diff_b"
            tensors[key] = tensors[key] + bias.float() if key in tensors else bias.float()
    return tensors, {}


FORMATS: dict[str, Callable[[Edit], tuple[Tensors, dict[str, str]]]] = {"peft": peft, "kohya": kohya, "comfy": comfy}


def _ungated(edit: Edit, format: str) -> tuple[Edit, str]:
    """The edit with low-rank ops in place of the adapters that have them, and what is lost by that, for the file."""
    ops: list[Op] = []
    notes: list[str] = []
    for op in edit.ops:
        entry = UNGATED.get(op.adapter) if isinstance(op, Adapter) else None
        if entry is None:
            ops.append(op)
            continue
        if format == "comfy":
            raise _refused(op, format, "full differences of all its modules are a model's size; export `kohya`, which "
                                       "ComfyUI reads too")  # fmt: skip
        module, _, function = entry.partition(":")
        linear, lost = getattr(import_module(module), function)(op)
        ops, notes = ops + linear, notes + [lost] * bool(lost)
    return replace(edit, ops=tuple(ops)), "; ".join(dict.fromkeys(notes))


def _pairs(edit: Edit, format: str, name: Callable[[Op], str], down: str, up: str) -> Tensors:
    """One balanced pair a module, and the zero pairs that the loaders need."""
    # The name first: where no format has one, that is what there is to say, and not another format.
    bases = {name(op): _low_rank(op, format) for op in _linear(edit, format) if not is_zero(op)}
    bases |= {name(op): op for op in text_helper(list(bases.values()), format)}
    return {
        f"{base}.{part}.weight": tensor
        for base, op in bases.items()
        for part, tensor in ((down, op.down), (up, op.up.reshape(*op.up.shape, *[1] * (op.down.ndim - 2))))
    }


def _low_rank(op: Op, format: str) -> LowRank:
    if isinstance(op, Dense):
        raise _refused(op, format, "it is a full difference; export `comfy`, or cut it with edit.compress(rank=...)")
    if not isinstance(op, LowRank):
        raise _refused(op, format, "it is no low-rank delta; use `erasekit apply`")
    return balanced(op)


def _linear(edit: Edit, format: str) -> tuple[LinearOp, ...]:
    """The ops, one a module, or the refusal that names the first that is not linear."""
    if edit.is_zero:
        raise EditError("the edit changes nothing (all its updates are zero): there is nothing to export; fit it again")
    for op in edit.ops:
        if not isinstance(op, LinearOp):
            why = "it is code and not a linear change of weights; apply it with erasekit"
            raise _refused(op, format, why)
    return summed(edit.ops)  # pyright: ignore[reportReturnType]


def _refuse_other_families(edit: Edit, format: str) -> None:
    """kohya's names are those of U-Net models here; transformers have their own, fused, layout."""
    if edit.base.family not in KOHYA_FAMILIES:
        why = f"its names are known for {', '.join(KOHYA_FAMILIES)}; export `peft`, or use `erasekit apply`"
        raise EditError(f"an edit of a {edit.base.family} model cannot be exported as {format}: {why}")
    for op in edit.ops:
        if op.component not in ("unet", "text_encoder", "text_encoder_2"):
            raise _refused(op, format, f"{op.component!r} has no such names; export `peft`, or use `erasekit apply`")


def _refused(op: Op, format: str, why: str) -> EditError:
    return EditError(f"{op.label} cannot be exported as {format}: {why}")


def _kohya_metadata(edit: Edit, rank: int) -> dict[str, str]:
    """What A1111 and sd-scripts read, strings all: it hides files whose base version it thinks is another."""
    family = edit.base.family
    version = {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}.get(family, "sd_v1")
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_output_name": f"erasekit-{edit.method}-{'-'.join(edit.targets)}"[:80],
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
    }
