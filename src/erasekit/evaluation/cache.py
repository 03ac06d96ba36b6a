"""Finished shards on disk, and the unedited model's, which all edits of one model share.

A store is a folder with `images/` and `shards/`, and `measured/` for what was found by comparing images when all were
drawn. A shard counts as finished when its rows are there and every image has the hash that its row states; everything else
is done again, so that a kill, a full disk or a truncated image costs one shard and never a wrong number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasekit.errors import EditError, EraseKitError
from erasekit.evaluation import drawing, rows
from erasekit.evaluation.rows import Row
from erasekit.evaluation.shards import Item, Shard, slug
from erasekit.evaluation.worker import Done
from erasekit.files import write_whole

MARK = "baseline.json"
DEFAULT = ".erasekit-baseline"


@dataclass(frozen=True)
class Store:
    """A folder of finished shards."""

    folder: Path

    def finished(self, shard: Shard, key: str) -> list[Row] | None:
        """The shard's rows, if it was judged under `key` and every image is intact; None otherwise."""
        try:
            found = rows.decode(self._rows(key).read_bytes())
        except (OSError, EraseKitError):  # none yet, or damaged: it is done again
            return None
        wanted = [(item.prompt.id, item.seed, item.image) for item in shard.items]
        if [(row.prompt, row.seed, row.image) for row in found] != wanted:
            return None
        return found if all(_hash(self.folder / row.image) == row.sha256 for row in found) else None

    def pngs(self, shard: Shard) -> tuple[bytes, ...]:
        """The shard's images, if all were drawn and are intact (they need only be judged); otherwise none."""
        found = []
        for item in shard.items:
            data = _read(self.folder / item.image)
            if data is None or drawing.label_of(data) != shard.label(item):
                return ()
            found.append(data)
        return tuple(found)

    def save(self, shard: Shard, done: Done) -> None:
        """Write images, then time, then rows, each file whole; `EraseKitError` in one line where there is no room."""
        made = [_row(shard, item, png, verdicts)
                for item, png, verdicts in zip(shard.items, done.pngs, done.judgements, strict=True)]  # fmt: skip
        for row, png in zip(made, done.pngs, strict=True):
            if _hash(self.folder / row.image) != row.sha256:
                self._write(self.folder / row.image, png)
        self._write(self._rows(done.key).with_suffix(".seconds"), f"{done.seconds:.3f}\n".encode())
        self._write(self._rows(done.key), rows.encode(made))

    def take(self, other: Store, key: str, found: list[Row]) -> None:
        """Copy a finished shard of another store into this one (linked where the disk can, so that it costs no room)."""
        for row in found:
            place = self.folder / row.image
            if _hash(place) != row.sha256:
                self._link(other.folder / row.image, place)
        self._write(self._rows(key).with_suffix(".seconds"), f"{other.seconds(key):.3f}\n".encode())
        self._write(self._rows(key), rows.encode(found))

    def seconds(self, key: str) -> float:
        """How long the shard took; 0 if that is not known."""
        try:
            return float(self._rows(key).with_suffix(".seconds").read_text())
        except (OSError, ValueError):
            return 0.0

    def kept(self, of: str) -> Any:
        """What was measured under `of`, the digest of all that decides it; None where nothing was, or it is damaged."""
        data = _read(self._measured(of))
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def keep(self, of: str, value: Any) -> None:
        """Write JSON data for `kept`, whole; `EraseKitError` in one line where there is no room."""
        self._write(self._measured(of), (json.dumps(value, ensure_ascii=False) + "\n").encode())

    def _measured(self, of: str) -> Path:
        return self.folder / "measured" / f"{of[:32]}.json"

    def _rows(self, key: str) -> Path:
        return self.folder / "shards" / f"{key[:32]}.jsonl"

    def _link(self, source: Path, place: Path) -> None:
        data = _read(source)
        with contextlib.suppress(OSError):  # another disk, or one without links: copied below
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            os.link(source, place)
            return
        self._write(place, data or b"")

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data, swept=True)  # by the runner, once: a folder of every image is long to look through
        except EditError as error:
            reason = str(error).removesuffix("; choose another place")
            raise EraseKitError(f"{reason}: make room or give another --out, then run the same command again; what is "
                                "finished is kept") from error  # fmt: skip


def baseline(folder: Path | None, out: Path, model: Mapping[str, Any]) -> Path:
    """The folder of the unedited model's images: `folder`, or one beside `out` that is named after the model's hash.

    Raises `EraseKitError` where it holds the images of another model.
    """
    root = folder or out.resolve().parent / DEFAULT / model["sha256"][:16]
    mark = root / MARK
    data = _read(mark)
    if data is None:
        write_whole(mark, (rows.canonical(dict(model)) + "\n").encode())
        return root
    known = _known(data)
    if known.get("sha256") != model["sha256"]:
        raise EraseKitError(f"the baseline in {root} was drawn by another model ({_name(known)}, and this is "
                            f"{_name(model)}): give another --baseline folder")  # fmt: skip
    return root


def suite_store(root: Path, name: str, digest: str) -> Store:
    """The baseline's store for one suite, apart from every other version of it."""
    return Store(root / f"{slug(name)}-{digest[:12]}")


def _known(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(model: Mapping[str, Any]) -> str:
    return f"{model.get('id', 'unknown')}, {str(model.get('sha256', '?'))[:12]}"


def _row(shard: Shard, item: Item, png: bytes, verdicts: dict[str, dict[str, Any]]) -> Row:
    prompt = item.prompt
    return Row(
        arm=shard.arm, prompt=prompt.id, group=prompt.group, text=prompt.text, target=prompt.target,
        wanted=list(prompt.wanted), style=prompt.style, background=prompt.background, seed=item.seed, image=item.image,
        sha256=hashlib.sha256(png).hexdigest(), status=rows.worst(v["status"] for v in verdicts.values()),
        judgements=verdicts,
    )  # fmt: skip


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _hash(path: Path) -> str | None:
    data = _read(path)
    return None if data is None else hashlib.sha256(data).hexdigest()
