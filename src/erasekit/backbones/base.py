"""What a method may ask of a model, whatever its family.

A backbone hides how a family tokenizes, encodes and names its modules. A closed-form method needs only the
text side and the weights that it edits, so a backbone built from a folder reads nothing else from disk.
Weights that a backbone hands out are the model's own: read them, never write them. Edits that are on a live pipeline have
no say in them, nor in what is encoded: every edit is a change of the original weights, so that edits add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, dtype


@dataclass(frozen=True)
class Site:
    """An editable weight and where it stands.

    `component` is the pipeline's attribute ("text_encoder", "unet"); `module` the module's role inside it,
    always without the `text_model.` prefix that some versions add ("encoder.layers.0.self_attn.q_proj");
    `group` the family-neutral name ("text.q", "cross.k"); `depth` orders sites from the prompt to the image
    (text layers 0..L-1, then L for every cross-attention, which all read the same text features).
    """

    component: str
    module: str
    group: str
    depth: int

    @property
    def key(self) -> str:
        """`component/module`, the name used in fingerprints, self-checks and messages."""
        return f"{self.component}/{self.module}"


@dataclass(frozen=True)
class Tokens:
    """Prompts as the text encoder reads them, padded to its full length.

    `ids` is (n, length); `ends[i]` the position of prompt i's first EOS (position 0 is BOS; everything after the
    first EOS is padding). Attention is causal: what stands at a position depends on the ids up to it alone.
    """

    ids: Tensor
    ends: tuple[int, ...]


class TextTower(Protocol):
    """A text encoder that can be walked layer by layer, so that hidden states are carried and not recomputed.

    `hidden` is (n, length, width). Nothing here changes the model: edited weights are passed in.
    """

    depth: int
    dtype: dtype  # what it computes in: the model's, float32 at least

    def embed(self, tokens: Tokens) -> Tensor:
        """The hidden states that enter layer 0."""
        ...

    def attention_input(self, hidden: Tensor, layer: int) -> Tensor:
        """What q, k and v of `layer` read: (n, length, width)."""
        ...

    def context(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> Tensor:
        """What the attention's output projection of `layer` reads: (n, length, width)."""
        ...

    def layer(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> Tensor:
        """The hidden states after `layer`, with `deltas` (role "q"/"k"/"v"/"out" -> (out, in)) added to its weights."""
        ...

    def advance(self, hidden: Tensor, layer: int, deltas: dict[str, Tensor] | None = None) -> None:
        """The same in place: `hidden` becomes the states after `layer`, a few prompts at a time, with no second copy of all."""
        ...

    def output(self, hidden: Tensor) -> Tensor:
        """What the denoiser's cross-attention reads, from the last layer's hidden states: (n, length, width)."""
        ...

    def features(self, tokens: Tokens) -> Tensor:
        """`output` after all layers, unedited: (n, length, width)."""
        ...


class Backbone(Protocol):
    """One model of one family."""

    family: str
    model_id: str
    tower: TextTower

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Padded token ids; a prompt that does not fit raises `UsageError` naming it and its length."""
        ...

    def token_text(self, token: int) -> str:
        """The token as a person reads it in a message."""
        ...

    def concept_spans(self, prompt: str, concept: str) -> list[range]:
        """The token positions of every occurrence of `concept` as whole words in `prompt`."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """What the cross-attention reads for each prompt, in the unedited model: (n, length, width) float32."""
        ...

    def sites(self, *groups: str) -> list[Site]:
        """Every site of the groups ("text.qkv", "cross.kv", "all") or single
        groups ("text.q", "text.out", "cross.v"), in depth order."""
        ...

    def weight(self, site: Site) -> Tensor:
        """The original weight (out, in), without the edits that are on, in the model's dtype and on the CPU, where all is
        solved: features that a tower gives may be on another device."""
        ...

    def denoiser(self) -> Any:
        """The live denoiser, for methods that train: read it, and leave it bitwise as it was. Edits that are on it are on it
        (`layers.unedited` computes without them)."""
        ...

    def autoencoder(self) -> Any:
        """The live autoencoder between pixels and latents: read it, and leave it bitwise as it was."""
        ...

    def text_encoder(self) -> Any:
        """The live text encoder, for methods that need its gradient: as `denoiser`."""
        ...

    def noise_schedule(self) -> dict[str, Any]:
        """The configuration of the model's own diffusers scheduler."""
        ...

    def fingerprint(self, site: Site) -> dict[str, str]:
        """The site's weight as `edit.fingerprint` gives it."""
        ...
