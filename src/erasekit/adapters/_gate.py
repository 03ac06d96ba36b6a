"""The gate of SPM (facilitated transport, arXiv 2312.16145): how far the modules of each target open, by the text that the
U-Net reads.

    gamma = max( cos(flat E(p), flat E(e)), |T(p) n T(e)| / |T(e)| )

E (length, width) are the features of the prompt p and of the target e, T their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from erasekit.coded_ops import Adapter
from erasekit.errors import EditError
from erasekit.fingerprint import digest

if TYPE_CHECKING:
    from erasekit.adapters.spm import Stack

FEATURES = "features"
REMEMBERED = 4096  # rows of text whose tokens are known, the latest ones

# What a text encoder put out while a gate was on it: a row's digest -> its tokens. A gate that is taken off and put on
# again still knows the text that was encoded before. Weak: an encoder that is dropped takes its rows along.
_known: WeakKeyDictionary[nn.Module, dict[str, frozenset[int]]] = WeakKeyDictionary()


def similarity(text: Float[Tensor, "b length width"], features: Float[Tensor, "n span width"]) -> Float[Tensor, "b n"]:
    """The cosine of the flattened features of each row with each target's, float32; of a text of several spans (long
    prompts) the largest."""
    rows = text.detach().float().unflatten(1, (-1, features.shape[1])).flatten(2)
    own = F.normalize(features.to(rows).flatten(1), dim=-1)
    return (F.normalize(rows, dim=-1) @ own.T).amax(1)


def overlap(found: Sequence[frozenset[int]], targets: Sequence[frozenset[int]]) -> Float[Tensor, "b n"]:
    """The share of each target's tokens that each prompt has, whatever their order; 0 for a target without tokens."""
    return torch.tensor([[len(row & own) / max(len(own), 1) for own in targets] for row in found])


def permeability(
    text: Tensor, features: Tensor, found: Sequence[frozenset[int]], tokens: Sequence[Sequence[int]]
) -> Tensor:
    """gamma (b, n): the larger of similarity and overlap, in [0, 1]. `found`: the tokens of each row, empty if unknown."""
    shared = overlap(found, [frozenset(own) for own in tokens]).to(text.device)
    return torch.maximum(similarity(text, features), shared).clamp(0, 1)


@dataclass(frozen=True)
class _Seen:
    """The text that the gates were last found for, and whether its halves were those of one guided call."""

    text: ref[Tensor]
    version: int
    guided: bool


class Gate:
    """Sets the gammas of a stack before each pass of the U-Net, from the text that it is given.

    A row that the pipeline's text encoder has put out while a gate was on is known by its tokens too; any other (given
    as `prompt_embeds` from elsewhere, or taken with `clip_skip`) by the cosine alone. No gradient flows through gamma.
    """

    def __init__(self, pipe: Any, op: Adapter, stack: Stack) -> None:
        self.pipe, self.stack, self.label = ref(pipe), stack, op.label
        self.features = op.weights[FEATURES].float()
        self.tokens: list[list[int]] = op.config["tokens"]
        encoder = getattr(pipe, "text_encoder", None)
        self._rows = _known.setdefault(encoder, {}) if isinstance(encoder, nn.Module) else {}
        self._seen: _Seen | None = None

    @torch.no_grad()
    def remember(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the text encoder: which tokens gave which rows."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            return
        for tokens, row in zip(ids.tolist(), output[0], strict=True):
            key = self._key(row)
            self._rows.pop(key, None)  # the latest are last
            self._rows[key] = frozenset(tokens)
        for key in list(self._rows)[:-REMEMBERED]:
            del self._rows[key]
        self._seen = None

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the U-Net: the gammas of its rows, found anew for another text only."""
        text = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        if not isinstance(text, Tensor):
            return
        guided = bool(getattr(self.pipe(), "do_classifier_free_guidance", False))
        guided = guided and _halves(kwargs.get("sample", args[0] if args else None))
        version = -1 if text.is_inference() else text._version
        seen = self._seen
        if seen and seen.text() is text and seen.version == version >= 0 and seen.guided == guided:
            return
        with torch.inference_mode(False), torch.no_grad():  # also where a later pass asks for gradients
            gates = self.gammas(text)
            self.stack.gates = gates.chunk(2)[1].repeat(2, 1) if guided else gates
        self._seen = _Seen(ref(text), version, guided)

    def gammas(self, text: Tensor) -> Tensor:
        """gamma (b, n) of each row of text (b, length, width)."""
        if text.shape[1] % self.features.shape[1] or text.shape[2] != self.features.shape[2]:
            raise EditError(f"{self.label} is gated by text of shape {(*self.features.shape[1:],)}, the model is given "
                            f"{(*text.shape[1:],)}: pad the prompt's features, or fit the edit with gate=off")  # fmt: skip
        if self.features.device != text.device:
            self.features = self.features.to(text.device)
        found = (
            [self._rows.get(self._key(row), frozenset()) for row in text] if self._rows else [frozenset()] * len(text)
        )
        return permeability(text, self.features, found, self.tokens)

    def _key(self, row: Tensor) -> str:
        """One word for a row of text, as the U-Net is given it, whether or not it is rounded for autocast on the way."""
        return digest(row.to(self.stack.unet.dtype).to(torch.bfloat16))


def _halves(latents: Any) -> bool:
    """Whether the batch is the same latents twice, as a guided pipeline gives them."""
    return isinstance(latents, Tensor) and len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))
