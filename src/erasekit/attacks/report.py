"""A run of attacks as one self-contained page: the ladder, pictures of what it brought out, what it took, the checks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.attacks import report_control
from erasekit.evaluation.grid import png
from erasekit.evaluation.page_parts import listed, number, row, section, table, text
from erasekit.evaluation.page_style import PAGE, SCRIPT, STYLE
from erasekit.evaluation.plots import Bar, bars, key
from erasekit.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from erasekit.attacks.base import Outcome
    from erasekit.attacks.ladder import Climbed

MOST, SIDE = 8, 96  # pictures of a rung, and the longer side of one in pixels
COUNTS, APART = "edit0", "random"  # marks of the style sheet
UNITS = {  # one of it, and more
    "prompts": ("picture", "pictures"), "synonyms": ("other prompt", "other prompts"), "noise": ("try", "tries"),
    "ring-a-bell": ("generation", "generations"), "steering": ("try", "tries"), "latent-inversion": ("pass", "passes"),
    "completion": ("step by the unedited model", "steps by the unedited model"), "inpainting": ("step", "steps"),
    "subtract": ("times the edit subtracted",) * 2, "weight-noise": ("draw", "draws"),
}  # fmt: skip
LIMITS = (
    "Only these attacks with these budgets were run. Another attack, or a larger budget, may do better.",
    "The judge that picks an attack's best picture is the one that scores it: look at the pictures.",
    "Rungs that stand apart bring knowledge of their own along. Their rates mean something beside the same rung on a model "
    "that never knew the target.",
    "Rungs that count are tried on what the ones above them left, so their rates do not compare with one another.",
)
HARD = ' style="--tile:96px"'


def write_report(found: Mapping[str, Any], done: Sequence[Climbed], folder: Path) -> Path:
    """Write `report.html` into the folder, whole or not at all, and return its path. `found`: what `results.json` holds."""
    write_whole(folder / "report.html", html(found, done).encode())
    return folder / "report.html"


def html(found: Mapping[str, Any], done: Sequence[Climbed]) -> str:
    """The whole page as text; it refers to nothing outside itself. The same results give the same page."""
    parts = [
        ("ladder", "The ladder", LADDER, ladder(found)),
        ("pictures", "What the attacks brought out", "", "".join(map(shots, done))),
        ("checks", "Checks on the attacks", CHECKS, checks(found.get("checks"))),
        ("limits", "What this does not show", "", listing(LIMITS)),
    ]
    named = found["edit"] or "no edit"
    top = outcome(found) + left_out(found["rungs"]) + alarms(found.get("checks"))
    lead = f"{found['ladder']['name']}, {found['cases']} cases, judged by {found['judge']}."
    return page(f"Attacks on {named}: {found['target']}", lead, top, parts, model=found["model"])


def page(title: str, lead: str, top: str, parts: Sequence[tuple[str, str, str, str]], *, model: str) -> str:
    """A whole page of attacks on a model: `top` (HTML) under the title, then the sections that have a body. Each part is
    identifier, title, lead and body."""
    nav = "".join(f'<li><a href="#{ident}">{text(name)}</a></li>' for ident, name, _, body in parts if body)
    return PAGE.format(
        title=text(title), style=STYLE, script=SCRIPT, lead=text(lead), eyebrow=text(f"Attack · {model}"),
        nav=f'<nav aria-label="contents"><ul>{nav}</ul></nav>',
        body=top + "".join(section(ident, name, body, lead=said) for ident, name, said, body in parts),
        footer="Written by erasekit from results.json and the pictures beside it.",
    )  # fmt: skip


def part(found: Mapping[str, Any], done: Sequence[Climbed], title: str) -> str:
    """The run as a part of another page: what was attacked and how, the worst case, the ladder, its successes, the checks."""
    how = found["sampling"]
    said = (f"{found['ladder']['name']}, {found['cases']} cases, drawn in {how['steps']} steps with guidance "
            f"{how['guidance']:g}, judged by {found['judge']}. {LADDER}")  # fmt: skip
    return (f'<article><h3>{text(title)}</h3><p class="note">{text(said)}</p>{outcome(found)}'
            f"{left_out(found['rungs'], 3)}{alarms(found.get('checks'), 3)}{ladder(found)}{''.join(map(shots, done))}"
            f"<details><summary><h3>Checks on these attacks</h3></summary>{checks(found.get('checks'))}</details>"
            f"{listing(LIMITS[1:])}</article>")  # fmt: skip


LADDER = ("Each bar: of the cases that were tried, those in which the judge finds the target, with the 95 % Wilson interval. "
          "It fell at: the least that the attack needed for a case, in its own unit.")  # fmt: skip
CHECKS = (
    "Attacks on what must fall, and comparisons that must come out one way. What does not puts the numbers in doubt."
)


def outcome(found: Mapping[str, Any]) -> str:
    """The worst case in one sentence."""
    worst = found["worst"]
    return (f'<div class="outcomes"><div class="card"><p class="claim"><b>{text(found["target"])}</b> is shown in '
            f"<b>{worst['hits']} of {worst['of']}</b> cases by some attack that counts, {text(rate(worst))}."
            f"{text(_fallen(found['rungs']))}{text(_unjudged(worst['invalid']))}</p>"
            "</div></div>")  # fmt: skip


def alarms(found: Sequence[Mapping[str, Any]] | None, level: int = 2) -> str:
    """What a reader must know before the numbers, under a heading of that level; empty where nothing is wrong."""
    return notice("Do not trust every rung", alarming(found or ()), level)


def left_out(rungs: Sequence[Mapping[str, Any]], level: int = 2) -> str:
    """The rungs that could not be run; empty where all were."""
    return notice("Rungs that were not run", skips(rungs), level)


def skips(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each rung that could not be run, with the reason."""
    return [f"skipped: {one['label']} could not be run and counts nowhere: {one['skipped']}"
            for one in rungs if one["skipped"]]  # fmt: skip


def alarming(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each check that a reader of the numbers must know of."""
    return [f"{one['status']}: {one['says']}" for one in found if one["status"] in ("broken", "warned")]


def ladder(found: Mapping[str, Any]) -> str:
    """The bars, and a table with what each rung needed."""
    drawn = [Bar(one["label"], COUNTS if one["counts"] else APART, (one["rate"], one["low"], one["high"]),
                 f"{one['hits']}/{one['of']}") for one in found["rungs"] if one["of"]]  # fmt: skip
    marks = key([("counts in the worst case", COUNTS), ("apart", APART)])
    control = report_control.beside(found)
    rows = [row(one["label"], [*_cells(one), *_control(other)], "" if one["counts"] else "apart")
            for one, other in zip(found["rungs"], control, strict=True)]  # fmt: skip
    more = ["never knew (95 %)"] if any(control) else []
    head = ["attack", "tried", "target shown (95 %)", "needs", "fell at", "passes in all", *more]
    return (f"{bars(drawn, title='cases that show the target')}{marks}{table(head, rows, caption='All rungs, in order')}"
            f"{report_control.control_lead(found)}{report_control.curves(found)}")  # fmt: skip


def shots(one: Climbed) -> str:
    """A rung's successes, at most `MOST`; empty without one."""
    won = [found for found in one.outcomes if found.status == "success" and found.image is not None]
    if not won:
        return ""
    more = f", {MOST} of them here" if len(won) > MOST else ""
    cells = "".join(map(_shot, won[:MOST]))
    return (f"<details open><summary><h3>{text(one.rung.label)}</h3><small>{len(won)} brought out{more}</small></summary>"
            f'<div class="shots"{HARD}><div class="card"><table><tbody><tr>{cells}</tr></tbody></table></div></div>'
            "</details>")  # fmt: skip


def checks(found: Sequence[Mapping[str, Any]] | None) -> str:
    """Every check with its outcome; a plain statement where none was run."""
    if found is None:
        return "<p>None was run: `--checks` does. A low number may be the attacks' fault.</p>"
    rows = [row(one["check"], [f"<td>{text(one['rung'] or '–')}</td>", f"<td><b>{text(one['status'])}</b></td>",
                               f"<td>{text(one['says'])}</td>"]) for one in found]  # fmt: skip
    return table(["check", "attack", "outcome", "what was seen"], rows, caption="Checks")


def rate(share: Mapping[str, Any]) -> str:
    """Such as "15 % (5–36)"; a dash where nothing was judged."""
    if not share["of"]:
        return "–"
    return f"{share['rate'] * 100:.0f} % ({share['low'] * 100:.0f}–{share['high'] * 100:.0f})"


def fell(attack: str, at: float | None) -> str:
    """The budget in words; a dash where the attack brought nothing out."""
    return "–" if at is None else f"{number(at)} {UNITS.get(attack, ('step', 'steps'))[at != 1]}"


def _fallen(rungs: Sequence[Mapping[str, Any]]) -> str:
    """How many of the cases needed no attack, and which attack was the first to bring the target out of another; nothing
    of none."""
    counted = [one for one in rungs if one["counts"]]
    without = sum(one.get("unattacked", 0) for one in counted)  # results of older versions do not say it
    said = f" In {without} of these no attack was needed." if without else ""
    first = next((one for one in counted if one["fell"] is not None), None)
    return said + (f" It fell first to {first['label']}, at {fell(first['attack'], first['fell'])}." if first else "")


def _unjudged(count: int) -> str:
    """What is said of the cases that a rate leaves out; nothing of none."""
    return f" Beside these, {count} {'is' if count == 1 else 'are'} invalid: nothing could be judged." if count else ""


def _cells(one: Mapping[str, Any]) -> list[str]:
    tried = "skipped" if one["skipped"] else one["tried"]
    tried = f"{tried}<small>{one['invalid']} invalid</small>" if one["invalid"] else tried
    shown = f"<b>{one['hits']}/{one['of']}</b><small>{text(rate(one))}</small>"
    return [f"<td>{value}</td>" for value in (tried, shown, text(listed(one["access"])),
            text(fell(one["attack"], one["fell"])), number(one["spent"]["passes"]))]  # fmt: skip


def _control(one: Mapping[str, Any] | None) -> list[str]:
    """The cell of a rung on the model that never knew the target; none without such a model."""
    if one is None:
        return []
    shown = "skipped" if one["skipped"] else f"{one['hits']}/{one['of']}<small>{text(rate(one))}</small>"
    return [f"<td>{shown}</td>"]


def _shot(one: Outcome) -> str:
    said = f"{one.case.prompt}, seed {one.case.seed}: {one.by}"
    image = thumbnail(one.image)  # pyright: ignore[reportArgumentType]
    return f'<td><img alt="{text(said)}" src="{image}"><span class="verdict found">{text(said)}</span></td>'


def thumbnail(image: Image) -> str:
    """The picture, its longer side at most `SIDE` pixels, as an address that holds it whole."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return f"data:image/png;base64,{base64.b64encode(png(small)).decode()}"


def notice(title: str, lines: Sequence[str], level: int) -> str:
    """What a reader must know before the numbers, under a heading of that level; empty without a line."""
    return f'<div class="warnings"><h{level}>{title}</h{level}>{listing(lines)}</div>' if lines else ""


def listing(lines: Sequence[str]) -> str:
    """The lines as a list of limits."""
    return f'<ul class="limits">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>'
