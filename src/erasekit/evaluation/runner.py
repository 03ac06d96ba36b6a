"""The runner: plan, shards, rows, aggregates. Kill it at any point and run it again: it goes on where it was.

A suite's folder holds `images/`, `shards/` and `measured/` (finished work), and at the end `run.json`, `texts.json`,
`rows.jsonl` (one line an image), `results.json`, `report.html`, `timing.json` and `measures.json` (what edits change in
sentences; where weights or real images were given for it, what compares pixels or sets). All but the times and the page
that shows them are the same bytes whether the run was interrupted or not, and however many workers there were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit import models
from erasekit.errors import EraseKitError, UsageError
from erasekit.evaluation import (
    aggregate,
    arms,
    cache,
    earlier,
    head,
    judges,
    ladders,
    measures,
    real,
    real_measures,
    rows,
    shards,
    text_changes,
)
from erasekit.evaluation.arms import Arm, Loaded
from erasekit.evaluation.cache import Store
from erasekit.evaluation.executors import Executor, Local
from erasekit.evaluation.page_view import Tried
from erasekit.evaluation.plan import Plan
from erasekit.evaluation.real import Real
from erasekit.evaluation.rows import Row
from erasekit.evaluation.shards import Shard
from erasekit.evaluation.worker import Task
from erasekit.files import check_writable, sweep, write_whole

if TYPE_CHECKING:
    from erasekit.evaluation.judges import Judge
    from erasekit.evaluation.suites import Suite

Progress = Callable[[int, int, str], None]
TIMING = "timing.json"


@dataclass(frozen=True)
class Piece:
    """A shard with the key of its rows, the arm that draws it, and where its finished work lies."""

    shard: Shard
    key: str
    arm: Arm
    store: Store


@dataclass(frozen=True)
class Job:
    """One suite of a plan: its arms, its pieces in canonical order, and the folder of its results."""

    suite: Suite
    folder: Path
    arms: list[Arm]
    judges: list[Judge]
    pieces: list[Piece]
    model: dict[str, str]
    published: dict[str, Any]
    tools: measures.Tools
    tried: tuple[Tried, ...] = ()
    plan_sha256: str = ""
    real: Real | None = None


def evaluate(plan: Plan, out: Path, *, executor: Executor | None = None, baseline: Path | None = None,
             command: str = "", progress: Progress | None = None, attacks: Sequence[Path] = ()) -> list[Path]:  # fmt: skip
    """Measure every edit of the plan on every suite; the paths of the `results.json` files, one a suite.

    With one suite the results lie in `out`, with several in a folder of `out` each. What was finished by an earlier
    call is not done again; results that this run would not give again are not replaced, nor what weights or `attacks` gave
    to an earlier one. `baseline`: where the unedited model's images are kept for other runs. `progress` is called with
    (images done, images in all, "images"), in the same way for what is measured when all are drawn, and while edits are
    fitted with (steps done, steps in all, "fitting: NAME, ..."). `attacks`: folders of `erasekit attack` on
    these edits, whose lines go into the results and whose ladders onto the page; one of another edit or model is refused
    before anything is drawn. What is wrong with the run is said before anything is fitted, as far as the requests tell.
    Raises `EraseKitError` in one line; finished shards are kept.
    """
    from erasekit.evaluation.suites import load_suite

    tried = ladders.read(attacks)
    suites = [load_suite(name, prompts=plan.prompts_of(name)) for name in plan.suites]
    places = _places(suites, out)
    referees = {spec: judges.get(spec) for suite in suites for spec in suite.judges}  # what is missing shows up now
    tools = measures.tools(plan)
    real_measures.check(plan.real, referees.values(), tools.inception)
    model = arms.model_facts(plan.model, models.resolve(plan.model))
    reals = real.each(plan.real, suites, progress=progress)
    check_writable(out / "results.json")
    sweep(out)
    cached = cache.baseline(baseline, out, model)
    sweep(cached)

    def laid_out(edits: Sequence[Loaded]) -> list[Job]:
        """The work with these edits; what would refuse it does."""
        found = [_job(plan, suite, place, arms.build(plan, suite, edits, model["sha256"]), cached, model, referees, tools)
                 for suite, place in zip(suites, places, strict=True)]  # fmt: skip
        found = [replace(job, tried=tried(job.model, head.facts(job.arms)), real=shown)
                 for job, shown in zip(found, reals, strict=True)]  # fmt: skip
        for job in found:
            earlier.check(job.folder, _head(job, command))
        return found

    edits = arms.foresee(plan, out, model["sha256"])
    if not all(edit.sha256 for edit in edits):
        laid_out(edits)  # fitting may take hours: what is wrong with the rest of the run shows up first
    jobs = laid_out(arms.load_edits(plan, out, model["sha256"], known=edits, progress=progress))
    finished = _work(jobs, executor or Local(), progress)
    return [_write(job, finished, command, progress) for job in jobs]


def _places(suites: Sequence[Suite], out: Path) -> list[Path]:
    """Where each suite's results lie; `UsageError` for two suites that would share a folder."""
    slugs = [shards.slug(suite.name) for suite in suites]
    if twice := [suite.name for i, suite in enumerate(suites) if slugs[i] in slugs[:i]]:
        raise UsageError(f"two suites are called {twice[0]!r}, and their results would share a folder: rename one")
    return [out] if len(suites) == 1 else [out / name for name in slugs]


def _job(plan: Plan, suite: Suite, place: Path, drawn: list[Arm], cached: Path, model: dict[str, str],
         referees: dict[str, Judge], tools: measures.Tools) -> Job:  # fmt: skip
    """The suite's work, laid out: the base's shards belong to the baseline, the others to the suite's own folder."""
    own, base = Store(place), cache.suite_store(cached, suite.name, suite.digest)
    panel = [referees[spec] for spec in suite.judges]
    names = [[judge.name, judge.weights_sha256] for judge in panel]
    pieces = []
    for arm in drawn:
        for shard in shards.split(arm.arm, arm.prompts, size=plan.batch, context=arm.context(suite.sampling)):
            asked = [asdict(item.prompt) for item in shard.items]
            key = shards.digest([suite.digest, arm.arm, shard.digest, names, asked])
            pieces.append(Piece(shard, key, arm, base if arm.kind == "base" else own))
    return Job(suite, place, drawn, panel, pieces, model, plan.published, tools, plan_sha256=plan.sha256)


def _work(jobs: Sequence[Job], executor: Executor, progress: Progress | None) -> dict[str, list[Row]]:
    """Every piece's rows by key: read where they are finished, made where they are not."""
    pieces = {piece.key: (job, piece) for job in jobs for piece in job.pieces}
    found = {key: ready for key, (job, piece) in pieces.items() if (ready := _ready(job, piece)) is not None}
    todo = [pieces[key] for key in pieces if key not in found]
    total = sum(len(piece.shard.items) for _, piece in pieces.values())
    done = sum(map(len, found.values()))
    if progress is not None:
        progress(done, total, "images")
    for result in executor.run(_task(job, piece) for job, piece in _in_turn(todo)):  # who is free has its images read
        job, piece = pieces[result.key]
        piece.store.save(piece.shard, result)
        found[result.key] = _kept(job, piece)
        done += len(result.pngs)
        if progress is not None:
            progress(done, total, "images")
    return found


def _ready(job: Job, piece: Piece) -> list[Row] | None:
    """The rows of a finished piece, which lie in the job's own folder from then on."""
    own = Store(job.folder)
    found = own.finished(piece.shard, piece.key)
    if found is None and piece.store != own:
        found = piece.store.finished(piece.shard, piece.key)
        if found is not None:
            own.take(piece.store, piece.key, found)
    return found


def _kept(job: Job, piece: Piece) -> list[Row]:
    found = _ready(job, piece)
    if found is None:
        raise EraseKitError(f"{piece.store.folder} does not hold what was just written there: check the disk, then run "
                            "the same command again")  # fmt: skip
    return found


def _in_turn(todo: list[tuple[Job, Piece]]) -> list[tuple[Job, Piece]]:
    """The first piece of every arm, then the rest: an edit that does not fit the model fails in the first minutes."""
    first: dict[tuple[Path, str], tuple[Job, Piece]] = {}
    for job, piece in todo:
        first.setdefault((job.folder, piece.arm.arm), (job, piece))
    keys = {piece.key for _, piece in first.values()}
    return [*first.values(), *((job, piece) for job, piece in todo if piece.key not in keys)]


def _task(job: Job, piece: Piece) -> Task:
    panel = tuple((spec, judge.weights_sha256) for spec, judge in zip(job.suite.judges, job.judges, strict=True))
    return Task(piece.key, piece.shard, piece.arm.brush, job.suite.sampling, panel, piece.store.pngs(piece.shard))


def _head(job: Job, command: str) -> dict[str, Any]:
    shown = job.real
    plan = shards.digest([job.plan_sha256, shown.sha256]) if shown and job.plan_sha256 else job.plan_sha256
    return head.head(job.suite, job.arms, job.judges, model=job.model, command=command, warnings=_notes(job),
                     published=job.published, extractors=job.tools.names, plan_sha256=plan, real=shown and shown.facts,
                     attacks=[line for one in job.tried for line in one.lines])  # fmt: skip


def _write(job: Job, finished: dict[str, list[Row]], command: str, progress: Progress | None) -> Path:
    """Merge, aggregate, report: each file whole, `results.json` after all that it is made from."""
    from erasekit.evaluation import page, results

    merged = [row for piece in job.pieces for row in finished[piece.key]]
    about = _head(job, command)
    texts = head.texts(job.suite, job.arms, job.judges, about)
    compared = measures.measure(job.folder, merged, job.tools, progress=progress)
    if changes := text_changes.measure(job.folder, job.suite, job.arms, progress=progress):
        compared["text"] = changes
    if job.real is not None:
        compared["real"] = real_measures.measure(job.folder, merged, job.real, job.judges, job.tools.inception,
                                                 progress=progress)  # fmt: skip
    about["measured"] = sorted(compared)
    for name, value in ((aggregate.HEAD, about), (aggregate.TEXTS, texts), (TIMING, _timing(job))):
        write_whole(job.folder / name, _json(value))
    if compared:
        write_whole(job.folder / measures.FILE, _json(compared))
    else:  # one of an earlier run must not speak for these results
        (job.folder / measures.FILE).unlink(missing_ok=True)
    write_whole(job.folder / rows.FILE, rows.encode(merged))
    found = aggregate.recompute(job.folder)  # from the files, so that what is written is what can be computed again
    path = results.write(found, job.folder)
    page.write_report(found, merged, job.folder, timing=_timing(job), attacks=job.tried)
    return path


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _notes(job: Job) -> list[str]:
    """Controls that this run lacks, and what must be known of those that it has."""
    noisy = {arm.arm.partition(":")[2] for arm in job.arms if arm.kind == "random"}
    bare = [arm.label for arm in job.arms if arm.kind == "edit" and arm.arm.partition(":")[2] not in noisy]
    lacking = [f"no random control was drawn for {', '.join(bare)}, so damage is not told from erasure"] if bare else []
    return [*lacking, *(arm.note for arm in job.arms if arm.note)]


def _timing(job: Job) -> dict[str, dict[str, float]]:
    """Seconds of one worker by arm: drawing and judging, in whatever call and run it was done; fitting beside it."""
    spent = {arm.arm: 0.0 for arm in job.arms}
    for piece in job.pieces:
        spent[piece.arm.arm] += Store(job.folder).seconds(piece.key)
    fitted = {arm.arm: arms.fit_seconds(arm) for arm in job.arms if arm.kind == "edit"}
    return {"images": {arm: round(seconds, 3) for arm, seconds in spent.items()},
            "fit": {arm: seconds for arm, seconds in fitted.items() if seconds is not None}}  # fmt: skip
