"""Judged pictures as lines of a file: drawn in batches, never drawn twice, never taken for those of something else.

A file of rows is named by all that decides a picture and its verdict but the edit: the model's files, the judge, the
sampling, the libraries. A run inside it is named by all that its edit changes. So what another version of the code
fitted under the same method's name is drawn anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emoji_prompts import Prompt

import erasekit
from erasekit import models
from erasekit.edit import Edit
from erasekit.evaluation.arms import model_sha256
from erasekit.evaluation.judges import emoji
from erasekit.evaluation.sampler import sample, shots
from erasekit.evaluation.shards import digest, versions
from erasekit.evaluation.statistics import Share
from erasekit.fingerprint import bytes_sha256
from erasekit.worlds.emoji.concepts import names
from erasekit.worlds.emoji.judge import THRESHOLD

BASE, BATCH = "base", 64
Image = tuple[str, str, int]
"""A run, a text and a seed: one picture."""
Hits = dict[Image, bool]
"""What was counted of which picture: merged over targets, a picture that several of them share counts once."""


@dataclass(frozen=True)
class Row:
    """One image: who drew it, what was asked, what the judge found."""

    run: str
    text: str
    seed: int
    found: list[str]
    best: str
    style: int
    background: int

    @property
    def image(self) -> Image:
        return self.run, self.text, self.seed


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to; the half line that a killed run left is cut off, as the next would join it."""
    data = path.read_text() if path.exists() else ""
    if data and not data.endswith("\n"):
        path.write_text(data := data[: data.rfind("\n") + 1])
    return data.splitlines()


def edit_digest(edit: Edit) -> str:
    """The sha256 of all that an edit changes. Equal ones on one model draw equal pictures."""
    found = hashlib.sha256()
    for op in edit.ops:
        found.update(json.dumps(op.describe(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(op.tensors().items()):
            found.update(f"{name} {bytes_sha256(tensor)}".encode())
    return found.hexdigest()


def run_of(name: str, edit: Edit) -> str:
    """What an edit's pictures are kept under: a name to read, and what tells it from any other edit."""
    return f"{name}|{edit_digest(edit)[:16]}"


class Recorder:
    """Draws and judges what is not yet in the file of rows, and appends it; `made` says what made the rows."""

    def __init__(self, path: Path, pipe: Any, judge: Any, made: Mapping[str, Any]) -> None:
        self.path, self.pipe, self.judge, self.made = path, pipe, judge, made
        rows = (Row(**json.loads(line)) for line in whole_lines(path))
        self.rows = {row.image: row for row in rows}

    def missing(self, run: str, prompts: Iterable[Prompt], seeds: Sequence[int]) -> list[Any]:
        """The shots that are still to be drawn."""
        return [s for s in _wanted(prompts, seeds) if (run, s.prompt, s.seed) not in self.rows]

    def record(self, run: str, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Row]:
        """The rows of every prompt with every seed, drawn by the pipeline as it is now under the name `run`."""
        missing = self.missing(run, prompts, seeds)
        for start in range(0, len(missing), BATCH):
            self._draw(run, missing[start : start + BATCH])
            done = min(start + BATCH, len(missing))
            print(f"\r{run}: {done} of {len(missing)}   ", end="", file=sys.stderr, flush=True)
        return [self.rows[run, s.prompt, s.seed] for s in _wanted(prompts, seeds)]

    def _draw(self, run: str, part: list[Any]) -> None:
        sampling = self.made["sampling"]
        drawn = sample(self.pipe, part, batch=BATCH, steps=int(sampling["steps"]), guidance=sampling["guidance"])
        pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for _, image in drawn])
        verdict = self.judge(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
        rows = [_row(run, shot, verdict, i) for i, shot in enumerate(part)]
        with self.path.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        self.rows |= {row.image: row for row in rows}


def _wanted(prompts: Iterable[Prompt], seeds: Sequence[int]) -> list[Any]:
    return shots(list(dict.fromkeys(p.text for p in prompts)), seeds)


def _row(run: str, shot: Any, verdict: Any, i: int) -> Row:
    objects = verdict.objects[i]
    found = [names()[k] for k in (objects > THRESHOLD).nonzero()[:, 0].tolist()]
    style, background = int(verdict.style[i].argmax()), int(verdict.background[i].argmax())
    return Row(run, shot.prompt, shot.seed, found, names()[int(objects.argmax())], style, background)


def maker(model: str, judge: Any) -> dict[str, Any]:
    """All that decides a picture and its verdict but the edit."""
    place = models.resolve(model)
    return {
        "model_sha256": model_sha256(place), "judge": judge.name, "judge_sha256": judge.weights_sha256,
        "sampling": models.defaults(place), "versions": versions(),
    }  # fmt: skip


def recorder(model: str, folder: Path) -> Recorder:
    """The pictures of a model in `folder`, judged by the emoji judge, with those that earlier runs drew of it."""
    judge = emoji.load()
    made = maker(model, judge)
    folder.mkdir(parents=True, exist_ok=True)
    return Recorder(folder / f"rows-{digest(made)[:12]}.jsonl", erasekit.load(model), judge.world, made)


def counted(rows: Iterable[Row], right: Callable[[Row], bool]) -> Hits:
    """Whether each picture is right."""
    return {row.image: right(row) for row in rows}


def together(each: Iterable[Mapping[str, Hits]]) -> dict[str, Hits]:
    """Every measure's pictures over all targets; one that several targets share is there once."""
    merged: dict[str, Hits] = {}
    for measures in each:
        for name, hits in measures.items():
            merged.setdefault(name, {}).update(hits)
    return merged


def total(each: Sequence[Mapping[str, Hits]]) -> dict[str, Share]:
    """Every measure over all targets. A picture that several targets share, as those of the unedited model for other
    concepts, is one picture: counted for each of them, its interval would be too narrow."""
    return {name: Share(sum(hits.values()), len(hits)) for name, hits in together(each).items()}


def plain(measures: Mapping[str, Share]) -> dict[str, Any]:
    """The shares as plain data."""
    return {k: {"hits": s.hits, "images": s.trials, "share": s.value, "interval95": s.interval}
            for k, s in measures.items()}  # fmt: skip
