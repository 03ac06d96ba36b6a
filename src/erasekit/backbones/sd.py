"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net whose cross-attention reads its last hidden states.

Built from a diffusers folder (only the tokenizer, the text encoder and the edited weights are read, never the VAE,
and no denoiser is built) or from a live pipeline (whose tensors are read in place and never written, without the edits
that are on it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasekit.backbones._clip import ROLES, ClipTower
from erasekit.backbones._folder import REMEDY, check_tokenizer, text_config
from erasekit.backbones._stored import align, variant_of
from erasekit.backbones._weights import FolderWeights, ModuleWeights, Weights
from erasekit.backbones.base import Site, Tokens
from erasekit.errors import ModelError, UsageError
from erasekit.layers import uncompiled
from erasekit.models import public_name, read_json

CROSS = re.compile(r"(.*\.attn2\.to_([kv]))\.weight")
GROUPS = {
    "text.qkv": ("text.q", "text.k", "text.v"),
    "cross.kv": ("cross.k", "cross.v"),
    "all": ("text.q", "text.k", "text.v", "cross.k", "cross.v"),
}


class SDBackbone:
    """The text side and the editable weights of one SD 1.x ("sd1") or SD 2.x ("sd2") model; leaves it as it was."""

    def __init__(
        self, *, model_id: str, tokenizer: Any, text: Weights, unet: Weights, configs: dict[str, Any],
        folder: Path | None = None, whole: Callable[[], Path] | None = None, live: Any = None,
    ) -> None:  # fmt: skip
        """`configs`: "text_encoder" and "unet" -> the component's configuration as a dict. `folder` or the `live`
        pipeline is where a method that trains gets the denoiser from; `whole()` is the folder with its VAE."""
        self.model_id = model_id
        self._folder = folder or Path()
        self._whole = whole or (lambda: self._folder)
        self._unet = None if live is None else uncompiled(live.unet)
        self._vae = getattr(live, "vae", None)
        self._text = uncompiled(getattr(live, "text_encoder", None))
        self._scheduler = None if live is None else dict(live.scheduler.config)
        self.family = _generation(configs["unet"])
        self.tokenizer = tokenizer
        self.tower = ClipTower(text, configs["text_encoder"])
        self.length = int(configs["text_encoder"].get("max_position_embeddings", 77))
        self._weights: dict[str, Weights] = {"text_encoder": text, "unet": unet}
        self._sites = [*_text_sites(self.tower.depth), *_cross_sites(unet.names(), self.tower.depth)]
        for site in self.sites("cross.kv"):
            unet.require(f"{site.module}.weight", (None, self.tower.width))

    @classmethod
    def from_folder(
        cls, folder: Path, *, model_id: str | None = None, whole: Callable[[], Path] | None = None
    ) -> SDBackbone:
        """Reads a diffusers folder lazily. A missing or damaged file raises `ModelError` naming it.

        `whole` gives the folder with its VAE when that is first asked for, where this one may be without (of the hub).
        """
        configs = {
            "text_encoder": text_config(folder / "text_encoder" / "config.json"),
            "unet": read_json(folder / "unet" / "config.json"),
        }
        return cls(
            model_id=model_id or folder.name,
            tokenizer=_tokenizer(folder / "tokenizer"),
            text=FolderWeights("text_encoder", folder / "text_encoder", "model"),
            unet=FolderWeights("unet", folder / "unet", "diffusion_pytorch_model"),
            configs=configs,
            folder=folder,
            whole=whole,
        )

    @classmethod
    def from_pipeline(cls, pipe: Any) -> SDBackbone:
        """Wraps a live diffusers pipeline, which stays bitwise as it is."""
        name = getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path") or type(pipe).__name__
        return cls(
            model_id=public_name(name),
            tokenizer=pipe.tokenizer,
            text=ModuleWeights("text_encoder", pipe.text_encoder),
            unet=ModuleWeights("unet", pipe.unet),
            configs={"text_encoder": pipe.text_encoder.config.to_dict(), "unet": dict(pipe.unet.config)},
            live=pipe,
        )

    @staticmethod
    def family_of(pipe: Any) -> str:
        """The family of a live pipeline, from its configuration alone."""
        return _generation(pipe.unet.config)

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Padded ids (n, 77). A prompt with more tokens raises `UsageError` naming it and its length."""
        lists = self.tokenizer(list(prompts))["input_ids"]
        for prompt, ids in zip(prompts, lists, strict=True):
            if len(ids) > self.length:
                raise UsageError(
                    f"the prompt {prompt[:60]!r} has {len(ids)} tokens, the model reads {self.length}: shorten it"
                )
        pad = self.tokenizer.pad_token_id
        rows = [ids + [pad] * (self.length - len(ids)) for ids in lists]
        return Tokens(torch.tensor(rows, dtype=torch.long), tuple(len(ids) - 1 for ids in lists))

    def token_text(self, token: int) -> str:
        """The token as a person reads it: without the end-of-word mark."""
        return str(self.tokenizer.convert_ids_to_tokens(int(token))).removesuffix("</w>")

    def concept_spans(self, prompt: str, concept: str) -> list[range]:
        """The token positions of every occurrence of `concept` as whole words, whatever case and spacing."""
        words = r"\s+".join(re.escape(word) for word in concept.split())
        offsets = self.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        found = re.finditer(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE) if words else ()
        inside = [[i for i, (a, b) in enumerate(offsets) if a < m.end() and b > m.start()] for m in found]
        return [range(hits[0], hits[-1] + 1) for hits in inside if hits]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """What the cross-attention reads in the unedited model: (n, 77, width), float32 or better."""
        return self.tower.features(self.tokenize(prompts))

    def sites(self, *groups: str) -> list[Site]:
        """Every site of the groups, in depth order; an unknown group raises `UsageError`."""
        wanted = {name for group in groups for name in GROUPS.get(group, (group,))}
        if unknown := wanted - {site.group for site in self._sites}:
            raise UsageError(f"{self.family} has no sites {', '.join(sorted(unknown))}: use {', '.join(GROUPS)}")
        return [site for site in self._sites if site.group in wanted]

    def weight(self, site: Site) -> Tensor:
        """The original weight (out, in), without the edits that are on, in the model's dtype, on the CPU. Read it only."""
        return self._weights[site.component].get(f"{site.module}.weight").cpu()

    def denoiser(self) -> Any:
        """The U-Net: the pipeline's own, or the folder's in float32, read once when it is first asked for."""
        if self._unet is None:
            self._unet = _read_unet(self._folder)
        return self._unet

    def autoencoder(self) -> Any:
        """The VAE: the pipeline's own, or the folder's in float32, read once when it is first asked for."""
        if self._vae is None:
            self._vae = _read_part(self._whole(), "vae", "diffusers", "AutoencoderKL")
        return self._vae

    def text_encoder(self) -> Any:
        """The CLIP text encoder: the pipeline's own, or the folder's in float32, read once when it is first asked for."""
        if self._text is None:
            self._text = _read_part(self._folder, "text_encoder", "transformers", "CLIPTextModel")
        return self._text

    def noise_schedule(self) -> dict[str, Any]:
        """The configuration of the scheduler that the model comes with."""
        if self._scheduler is None:
            self._scheduler = read_json(self._folder / "scheduler" / "scheduler_config.json")
        return self._scheduler

    def fingerprint(self, site: Site) -> dict[str, str]:
        """The site's weight as `edit.fingerprint` gives it."""
        from erasekit.edit import fingerprint

        return fingerprint(self.weight(site))


def _generation(unet: Mapping[str, Any]) -> str:
    """SD 1.x or 2.x, which differ in width, padding and activation; only this switch is the same in every size."""
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def _text_sites(depth: int) -> list[Site]:
    names = [(layer, role, name) for layer in range(depth) for role, name in ROLES.items()]
    return [Site("text_encoder", f"encoder.layers.{i}.self_attn.{name}", f"text.{role}", i) for i, role, name in names]


def _cross_sites(names: set[str], depth: int) -> list[Site]:
    matches = [m for m in map(CROSS.fullmatch, sorted(names)) if m]
    if not matches:
        raise ModelError("the unet has no cross-attention (attn2.to_k): use a Stable Diffusion 1.x or 2.x model")
    return [Site("unet", m[1], f"cross.{m[2]}", depth) for m in matches]


def _read_unet(folder: Path) -> Any:
    return _read_part(folder, "unet", "diffusers", "UNet2DConditionModel")


def _read_part(folder: Path, part: str, library: str, name: str) -> Any:
    """One component of a diffusers folder as a module in float32, in eval mode."""
    from importlib import import_module

    from safetensors import SafetensorError

    kind, precision = getattr(import_module(library), name), "dtype" if library == "transformers" else "torch_dtype"
    try:
        found = kind.from_pretrained(
            folder / part, **{precision: torch.float32}, variant=variant_of(folder / part), local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the {part} in {folder} ({_first(error)}): copy the model folder again"
        ) from error
    align(found)
    return found.eval()


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    check_tokenizer(folder)
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower for files that do not fit together
        raise ModelError(f"{folder} holds no readable tokenizer ({_first(error)}): {REMEDY}") from error


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
