"""Judged pictures of many-concept edits: drawn in batches, one line each in `rows.jsonl`, never drawn twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emoji_prompts import Prompt
from emoji_rows import BATCH, whole_lines
from many_fits import NONE, Arm
from many_sets import Work, other_prompts, target_prompts

from erasekit.evaluation import drawing, judges
from erasekit.evaluation.metrics.harmonic import h_c
from erasekit.evaluation.shards import digest, versions
from erasekit.evaluation.statistics import Outcomes, wilson
from erasekit.evaluation.suites import Sampling

Z_BOTH = 2.241402727604947  # normal quantile of 97.5 %: two such intervals hold together in 95 % at least


@dataclass(frozen=True)
class Row:
    """One image: which run drew it, what was asked with which seed, what the judge found."""

    run: str
    text: str
    seed: int
    status: str
    found: list[str]


class Album:
    """Draws and judges what `rows.jsonl` does not hold yet, and appends it; kill it at any point and run it again.

    A run is known by the hash of the model, the judge, the sampling and the libraries, and for an edit also by the hash
    of what it changes: rows of another are never taken.
    """

    def __init__(self, path: Path, model_sha256: str, sampling: Sampling) -> None:
        self.path, self.sampling, self.judge = path, sampling, judges.get("emoji")
        self.made = {
            "model_sha256": model_sha256, "judge": self.judge.name, "judge_sha256": self.judge.weights_sha256,
            "sampling": asdict(sampling), "versions": versions(),
        }  # fmt: skip
        rows = (Row(**json.loads(line)) for line in whole_lines(path))
        self.rows = {(row.run, row.text, row.seed): row for row in rows}

    def run(self, arm: Arm) -> str:
        return f"{digest(self.made)[:16]}|{arm.name}|{arm.digest[:16]}"

    def missing(self, arm: Arm, prompts: Sequence[Prompt]) -> list[tuple[str, int]]:
        """Text and seed of what is still to draw; a prompt's seed is its place in the list."""
        run = self.run(arm)
        return [(p.text, i) for i, p in enumerate(prompts) if (run, p.text, i) not in self.rows]

    def read(self, arm: Arm, prompts: Sequence[Prompt]) -> list[Row]:
        """The rows of the prompts, all of which must have been drawn."""
        run = self.run(arm)
        return [self.rows[run, p.text, i] for i, p in enumerate(prompts)]

    def draw(self, pipe: Any, arm: Arm, prompts: Sequence[Prompt]) -> Iterator[int]:
        """Draws what is missing; yields the number of images after each batch."""
        run, todo = self.run(arm), self.missing(arm, prompts)
        with arm.edit.applied(pipe) if arm.edit is not None else nullcontext():
            for start in range(0, len(todo), BATCH):
                texts, seeds = map(list, zip(*todo[start : start + BATCH], strict=True))
                pixels = drawing.draw(pipe, texts, seeds, self.sampling)
                verdicts = self.judge.judge(pixels.permute(0, 3, 1, 2).float() / 255, texts)
                self._append([Row(run, text, seed, said.status, list(said.data.get("found", [])))
                              for text, seed, said in zip(texts, seeds, verdicts, strict=True)])  # fmt: skip
                yield len(texts)

    def _append(self, rows: Sequence[Row]) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        self.rows |= {(row.run, row.text, row.seed): row for row in rows}


def missing(album: Album, works: Sequence[Work], fitted: dict[int, list[Arm]]) -> int:
    """How many images are still to be drawn in all."""
    return sum(
        len(album.missing(arm, prompts(work)))
        for work in works for arm in fitted[work.count] if arm.draws for prompts in (target_prompts, other_prompts)
    )  # fmt: skip


def draw_all(pipe: Any, album: Album, works: Sequence[Work], fitted: dict[int, list[Arm]]) -> None:
    """Draws everything, the unedited model first; a counter on stderr."""
    total, done = missing(album, works, fitted), 0
    for work in works:
        for arm in fitted[work.count]:
            for prompts in (target_prompts(work), other_prompts(work)) if arm.draws else ():
                for drawn in album.draw(pipe, arm, prompts):
                    done += drawn
                    print(f"\r{done} of {total}: {work.count} targets, {arm.name}    ", end="", file=sys.stderr)
    print(file=sys.stderr)


def rates(album: Album, work: Work, arm: Arm) -> dict[str, Any]:
    """The arm's rates as plain data, or nothing as long as an image of it or of the unedited model is missing."""
    asked, others, base = target_prompts(work), other_prompts(work), Arm(NONE)
    if not arm.draws or album.missing(arm, asked) or album.missing(arm, others) or album.missing(base, others):
        return {}
    kept, before = album.read(arm, others), album.read(base, others)
    shows = [p.wanted in r.found for p, r in zip(others, kept, strict=True)]
    # An image that is no picture counts as lost, and never as erased.
    gone = [r.status == "ok" and p.wanted not in r.found for p, r in zip(asked, album.read(arm, asked), strict=True)]
    was = [p.wanted in r.found for p, r in zip(others, before, strict=True)]
    shown = [hit for hit, there in zip(shows, was, strict=True) if there]
    return {
        "efficacy": _rate(gone), "specificity": _rate(shown), "right": _rate(shows),
        "h": harmonic(Outcomes(sum(gone), len(gone)), Outcomes(sum(shows), len(shows))),
        "no_picture": sum(r.status != "ok" for r in kept),
    }  # fmt: skip


def harmonic(gone: Outcomes, right: Outcomes) -> dict[str, float]:
    """MACE's two-term H of the share erased and the share of the others named right, between its values at the lower
    and at the upper ends of both rates' 97.5 % intervals: at least 95 %, as it grows with both."""
    ends = [wilson(rate.hits, rate.valid, z=Z_BOTH) for rate in (gone, right)]
    low, high = (h_c(1 - first, second) for first, second in zip(*ends, strict=True))
    return {"value": h_c(1 - gone.hits / gone.valid, right.hits / right.valid), "low": low, "high": high}


def _rate(hits: Sequence[bool]) -> dict[str, float]:
    n, low_high = len(hits), wilson(sum(hits), len(hits))
    return {"value": sum(hits) / n if n else 0.0, "low": low_high[0], "high": low_high[1], "n": n}
