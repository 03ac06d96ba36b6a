"""What the commands print: tables, progress, and the libraries' own noise turned off."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasekit.edit import Edit
    from erasekit.methods import Progress
    from erasekit.training.plan import Plan


def quiet() -> None:
    """Silence the progress bars and notices of diffusers and transformers: stderr is for our one line."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A callback `(done, total, what)`: a bar on a terminal, a plain line at each tenth elsewhere. What follows a
    colon in `what` ("training: loss 0.1") may change as the work goes on. `quiet`: nothing, beside JSON on the output."""
    if quiet:
        yield lambda done, total, what: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            name = what.partition(":")[0]
            if name not in tasks:
                tasks[name] = bar.add_task(what)
            bar.update(tasks[name], completed=done, total=total, description=what)

        yield report


class _Lines:
    """Progress as plain lines, at most ten for each kind of work, and one before it where there is something to say."""

    def __init__(self) -> None:
        self.said: dict[str, int] = {}

    def __call__(self, done: int, total: int, what: str) -> None:
        tenth, name = done * 10 // max(total, 1), what.partition(":")[0]
        if tenth > self.said.get(name, -1 if done == 0 and name != what else 0):
            self.said[name] = tenth
            print(f"{name}: {done}/{total}{what.removeprefix(name).replace(':', ',', 1)}", flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def self_check(check: Mapping[str, Any]) -> str:
    """The self-check: its totals, then the update norm by depth with a bar, then any warnings."""
    from erasekit.evaluation.selfcheck import by_depth, facts

    depths = by_depth(check)
    top = max((d.update for d in depths), default=0.0) or 1.0
    rows = [["depth", "matrices", "residual", "update", ""]]
    rows += [[d.label, str(d.sites), d.missed, f"{d.update:.4f}", "#" * max(1, round(24 * d.update / top))]
             for d in depths]  # fmt: skip
    width = max(len(row[-1]) for row in rows)
    known = facts(check)
    if check.get("residual") is not None and check.get("retained_drift", 0.0) is None:  # after algebra all are unknown
        known.append(("drift of what is kept", "not measured, nothing was retained"))
    parts = [table([[label + ":", value] for label, value in known])] if known else []
    if depths:
        parts.append(table([[*row[:-1], row[-1].ljust(width)] for row in rows]))
    parts += [f"warning: {line}" for line in check.get("warnings", ())]
    return "\n".join(parts)


def plan(plan: Plan) -> str:
    """What a run would train, and what it would take."""
    hours, rest = divmod(round(plan.seconds), 3600)
    rows = [
        ["would train:", f"{plan.method}, {plan.what}: {plan.numbers:,} numbers in {plan.modules} modules"],
        ["share of the denoiser:", f"{plan.share:.1%}"],
        ["steps:", f"{plan.steps}"],
        ["expected time:", f"{hours} h {rest // 60} min {rest % 60} s on {plan.device}"],
        ["expected memory:", f"{plan.memory / 2**20:,.0f} MiB (denoiser, what is trained, activations)"],
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{name.ljust(width)}  {value}" for name, value in rows] + ["nothing was written"])


def describe(edit: Edit) -> str:
    """An edit in a few lines, with its self-check."""
    pairs = [f"{t!r} -> {a!r}" for t, a in zip(edit.targets, edit.anchors, strict=False)]
    lines = [
        f"method: {edit.method}",
        f"targets: {_listed(pairs)}",
        f"{_kept(edit)}: {_listed(edit.retain)}",
        f"base model: {edit.base.id} ({edit.base.family})",
        f"ops: {len(edit.ops)}, {_size(edit)}, {edit.nbytes / 1024:.1f} KiB",
    ]
    return "\n".join([*lines, self_check(edit.self_check)])


def _kept(edit: Edit) -> str:
    """What the retained concepts are to the edit."""
    return "measured, not held" if edit.parameters.get("retain_mode") == "none" and edit.retain else "retained"


def _size(edit: Edit) -> str:
    """The largest rank of its changes, where it has any."""
    return f"rank at most {edit.rank_max}" if edit.rank_max else "code and no change of weights"


def _listed(words: Sequence[str]) -> str:
    """The words, after eight only their number; "nothing" for none."""
    return (", ".join(words[:8]) or "nothing") + (f" and {len(words) - 8} more" if len(words) > 8 else "")
