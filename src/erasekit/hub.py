"""Models of the hub: only the parts that are asked for are fetched, each in one precision."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from erasekit.backbones import _stored
from erasekit.errors import ModelError
from erasekit.models import INDEX, UNREAD, checked

FILES = [INDEX, "defaults.json", "*/*.json", "*/*.txt", "*/*.model", "*/model*.safetensors",
         "*/diffusion_pytorch_model*.safetensors"]  # fmt: skip
OTHERS = ["*.non_ema*", "*.bf16*"]
HALF = "*.fp16*"


def fetch(name: str, *, without: Collection[str]) -> Path:
    """The folder, in the hub's cache, of a model without these parts: of each other one its plain weights are there, and
    where it has none those in fp16.

    Raises `ModelError` where they cannot be fetched, or where a part has neither.
    """
    folder = checked(_snapshot(name, FILES, [*OTHERS, HALF, *(f"{part}/*" for part in without)]))
    if any(part.name in without and _stored.variant_alone(part) for part in _stored.parts(folder)):
        # Left there by another program. It would decide what is read of every part, and not so once `load` has it plain.
        return fetch(name, without=UNREAD)
    if halves := _stored.without_plain(folder, without=without):
        _snapshot(name, [f"{part.name}/{HALF}{end}" for part in halves for end in (".safetensors", ".json")], OTHERS)
    _require_weights(name, folder, without)
    return folder


def _require_weights(name: str, folder: Path, without: Collection[str]) -> None:
    lacking = _stored.without_plain(folder, without={*without, *UNREAD})
    if gone := [part.name for part in lacking if not _stored.variant_alone(part)]:
        raise ModelError(f"the hub's {name!r} has no weights of {', '.join(gone)} as safetensors, plain or fp16: choose one "
                         "that has, or give the folder that diffusers' save_pretrained writes of it")  # fmt: skip


def _snapshot(name: str, allowed: list[str], skipped: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=allowed, ignore_patterns=skipped))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot download model {name!r} ({reason}): check the id and the network, or give a local "
                         "diffusers folder") from error  # fmt: skip
