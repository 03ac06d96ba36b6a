"""How other programs name a module, and the zero pairs without which diffusers misreads text-encoder files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from erasekit.errors import EditError
from erasekit.ops import LowRank, Op

PEFT_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# The projection whose presence tells diffusers how to read a text encoder's keys, by format.
HELPER = {"peft": "q_proj", "kohya": "out_proj"}


def module_name(op: Op) -> str:
    """The module's name; of a text encoder always with `text_model.`, the only form that every loader knows."""
    plain = op.site.partition("/")[2]
    return f"text_model.{plain}" if op.component.startswith("text_encoder") else plain


def peft_base(op: Op) -> str:
    """`unet.down_blocks.0...to_k`, `text_encoder.text_model.encoder...`; `EditError` where nothing loads."""
    if op.component not in PEFT_COMPONENTS:
        why = f"no loader reads {op.component!r}; use `erasekit apply`"
        raise EditError(f"{op.label} cannot be exported as peft: {why}")
    _refuse_unloadable(op, "peft")
    return f"{op.component}.{module_name(op)}"


def kohya_base(op: Op, family: str) -> str:
    """`lora_unet_down_blocks_0...to_k`, `lora_te_text_model_encoder...` (`lora_te1_`, `lora_te2_` for SDXL)."""
    _refuse_unloadable(op, "kohya")
    return _underscored(op, family)


def comfy_base(op: Op, family: str) -> str:
    """kohya's names, by which ComfyUI knows all of the U-Net; `EditError` for what it does not know of a text encoder."""
    if _unnamed(op):
        raise EditError(f"{op.label} cannot be exported as comfy: no loader has a name for it; use `erasekit apply`")
    return _underscored(op, family)


def _underscored(op: Op, family: str) -> str:
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[op.component]
    if family == "sdxl" and op.component == "text_encoder":
        prefix = "lora_te1"
    return f"{prefix}_{module_name(op).replace('.', '_')}"


def _refuse_unloadable(op: Op, format: str) -> None:
    """Embeddings, norms and projections take no LoRA in the loaders (diffusers raises, others are silent)."""
    if _unnamed(op) or "norm" in op.module.rpartition(".")[2]:
        remedy = "use `erasekit apply`" if _unnamed(op) else "export `comfy`, or use `erasekit apply`"
        raise EditError(f"{op.label} cannot be exported as {format}: loaders take no LoRA there; {remedy}")


def _unnamed(op: Op) -> bool:
    """Whether the op is on a part of a text encoder that no loader reads from a file: all but attention and MLP."""
    return op.component.startswith("text_encoder") and not (".self_attn." in op.module or ".mlp." in op.module)


def text_helper(ops: Sequence[LowRank], format: str) -> list[LowRank]:
    """The zero rank-1 pairs that make diffusers recognise the file; they change ranks, not weights.

    kohya: an `out_proj` for each text encoder without one (else q/k/v alone raise, and q/k/v with MLP are skipped
    in silence). peft: a `q_proj` for a text encoder with MLP modules only.
    """
    helpers = []
    for component in dict.fromkeys(op.component for op in ops if op.component.startswith("text_encoder")):
        own = [op for op in ops if op.component == component]
        ends = {op.module.rpartition(".")[2] for op in own}
        if not ends & ({HELPER["kohya"]} if format == "kohya" else set(ATTENTION)):
            helpers.append(_zero_pair(own[0], HELPER[format]))
    return helpers


def _zero_pair(op: LowRank, projection: str) -> LowRank:
    """A zero pair on the attention projection of `op`'s layer; its width is read off `op`'s own shape."""
    inside, _, end = op.module.rpartition(".")
    width = op.up.shape[0] if end in (*ATTENTION, "fc2") else op.down.shape[1]
    layer = inside.rpartition(".")[0]
    module = f"{layer}.self_attn.{projection}"
    return LowRank(op.component, module, torch.zeros(width, 1), torch.zeros(1, width))
