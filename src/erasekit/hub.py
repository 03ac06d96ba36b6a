"""Models of the hub: only the parts that its index names and a call asks for are fetched, each in one precision."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from erasekit.backbones import _folder, _stored, require_supported
from erasekit.errors import ModelError
from erasekit.models import INDEX, UNREAD, checked

BESIDE = [INDEX, "defaults.json"]
FILES = ["*.json", "*.txt", "*.model", "model*.safetensors", "diffusion_pytorch_model*.safetensors"]
"""What is read of a part."""
OTHERS = ["*.non_ema*", "*.bf16*"]
HALF = "*.fp16*"


def fetch(name: str, *, without: Collection[str]) -> Path:
    """The folder, in the hub's cache, of a model without these parts: of each other one its plain weights are there, and
    where it has none those in fp16.

    Raises `ModelError` where they cannot be fetched, or where a part has neither; `UsageError` for a pipeline of an
    unsupported class, of which nothing but the index is fetched.
    """
    index = checked(downloaded(name, [INDEX]))
    require_supported(_folder.pipeline_class(index))
    # The hub's * crosses folders: a part's own name keeps a copy of it in another folder out.
    named = [f"{part.name}/{file}" for part in _stored.parts(index, without=without) for file in FILES]
    folder = downloaded(name, [*BESIDE, *named], [*OTHERS, HALF])
    if any(part.name in without and _stored.variant_alone(part) for part in _stored.parts(folder)):
        # Left there by another program. It would decide what is read of every part, and not so once `load` has it plain.
        return fetch(name, without=UNREAD)
    if halves := _stored.without_plain(folder, without=without):
        downloaded(name, [f"{part.name}/{HALF}{end}" for part in halves for end in (".safetensors", ".json")], OTHERS)
    _require_weights(name, folder, without)
    return folder


def _require_weights(name: str, folder: Path, without: Collection[str]) -> None:
    lacking = _stored.without_plain(folder, without={*without, *UNREAD})
    if gone := [part.name for part in lacking if not _stored.variant_alone(part)]:
        raise ModelError(f"the hub's {name!r} has no weights of {', '.join(gone)} as safetensors, plain or fp16: choose one "
                         "that has, or give the folder that diffusers' save_pretrained writes of it")  # fmt: skip


def downloaded(
    name: str,
    allowed: Sequence[str],
    skipped: Sequence[str] = (),
    *,
    what: str = "model",
    folder: str = "diffusers folder",
) -> Path:
    """The hub's snapshot of the files that these patterns name; whatever ends it, a lost connection too, is a `ModelError`
    of one line that asks for a local `folder` instead."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(allowed), ignore_patterns=list(skipped)))
    # HTTPError is that of the hub's own client, which changes; its store of large files raises RuntimeError.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot download {what} {name!r} ({reason}): check the id and the network, or give a local "
                         f"{folder}") from error  # fmt: skip
