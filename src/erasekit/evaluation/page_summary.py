"""The top of the page: what each edit did in one sentence with its numbers and controls, and what to be wary of."""

from __future__ import annotations

from erasekit.evaluation.page_parts import ARROWS, estimate, interval, listed, number, row, table, text
from erasekit.evaluation.page_view import Entry, View
from erasekit.evaluation.plots import Bar, Interval, Point, bars, key, scatter

TILES = ("net_erasure", "generality", "specificity", "fidelity")
MOST_TARGETS = 3  # with more, one card speaks of all together
FEW = 0.5  # a group that the unedited model draws less often than this tests little


def outcomes(view: View) -> str:
    """A card for every edit and target: the claim, the rates of all arms as bars, the headline metrics."""
    cards = [_card(view, edit, targets) for edit in view.edits for targets in _targets(view, edit)]
    return f'<div class="outcomes">{"".join(cards)}</div>' if cards else ""


def claim(before: Entry | None, after: Entry | None, target: str) -> str:
    """The sentence about one target: only what was counted on the tested prompts, and only if the intervals part."""
    if before is None or after is None:
        return f"{target}: not measured before and after on the same prompts"
    rates = f"(rate {number(before['value'], 'share')} → {number(after['value'], 'share')})"
    ends = after["high"], before["low"]
    if None not in ends and ends[0] < ends[1]:
        return f"suppresses {target} on the tested prompts {rates}"
    return f"shows no clear effect on {target} on the tested prompts {rates}"


def warnings(view: View) -> str:
    """What a reader must know before the numbers: the run's own warnings, then what rows and counts say."""
    lines = [*view.results["warnings"], *_counts(view), *_undrawn(view)]
    items = "".join(f"<li>{text(line)}</li>" for line in dict.fromkeys(lines))
    return f'<div class="warnings" role="note"><h2>Read with care</h2><ul>{items}</ul></div>' if items else ""


def plane(view: View) -> str:
    """Efficacy against specificity, one point an arm, beside the same numbers; empty unless both were measured."""
    points, lines = [], []
    for arm in view.arms:
        both = [view.entry(name, arm["arm"]) for name in ("efficacy", "specificity")]
        y, x = map(span, both)
        if x is not None and y is not None:
            points.append(Point(view.name(arm), view.mark(arm["arm"]), x, y))
            lines.append(row(view.name(arm), [estimate(entry) for entry in both]))
    if not points:
        return ""
    legend = key([(point.label, point.mark) for point in points])
    numbers = table(["arm", "efficacy", "specificity"], lines, caption="The same in numbers")
    return (
        f'<div class="plots"><figure>{scatter(points, x="specificity", y="efficacy")}{legend}</figure>{numbers}</div>'
    )


def span(entry: Entry | None) -> Interval | None:
    """Value and interval for a chart (the value itself where there is no interval); None if not a counted share."""
    if entry is None or entry["value"] is None or entry.get("unit") != "share":
        return None
    low, high = (entry["value"] if entry[end] is None else entry[end] for end in ("low", "high"))
    return entry["value"], low, high


def _targets(view: View, edit: Entry) -> list[list[str]]:
    """The targets of each card: one each, or all in one where there are many."""
    named = view.targets(edit["arm"]) or list(edit["edit"]["targets"] if edit["edit"] else ())
    return [[target] for target in named] if len(named) <= MOST_TARGETS else [named]


def _card(view: View, edit: Entry, targets: list[str]) -> str:
    word = targets[0] if len(targets) == 1 else f"{len(targets)} targets ({listed(targets, most=4)})"
    before, after = view.rate(view.base, targets), view.rate(edit["arm"], targets)
    return (f'<article class="card"><h3>{text(view.label(edit))}</h3>'
            f'<p class="claim">{text(claim(before, after, word))}</p>'
            f'<div class="columns">{_rates(view, edit, targets)}{_tiles(view, edit["arm"])}</div></article>')  # fmt: skip


def _rates(view: View, edit: Entry, targets: list[str]) -> str:
    """Bars: before, after, and what the controls show at the same prompts."""
    arms = [(arm, "before") for arm in view.arms if arm["arm"] == view.base] + [(edit, "after")]
    name = edit["arm"].partition(":")[2]
    # A model that never knew one target says nothing about prompts for several.
    alike = {f"random:{name}", *([f"never:{targets[0]}"] if len(targets) == 1 else [])}
    arms += [(arm, CONTROL[arm["kind"]]) for arm in view.arms if arm["arm"] in alike]
    rows: list[Bar | str] = []
    for arm, words in arms:
        entry = view.rate(arm["arm"], targets)
        value = span({**entry, "unit": "share"}) if entry else None
        if entry and value:
            rows.append(Bar(words, view.mark(arm["arm"]), value, number(entry["value"], "share")))
    counted = view.rate(edit["arm"], targets)
    if not rows or not counted:
        return ""
    note = f"Images that show it where it was asked for, with 95 % intervals; {counted['n']} images after the edit."
    return f'<div>{bars(rows, title="images that show the target")}<p class="note">{note}</p></div>'


CONTROL = {"random": "random control", "never": "never knew it"}


def _tiles(view: View, arm: str) -> str:
    tiles = []
    for name in TILES:
        entry = view.entry(name, arm)
        if entry is not None and entry["value"] is not None:
            words = name.replace("_", " ")
            tiles.append(f"<div><dt>{words}</dt><dd>{number(entry['value'], entry['unit'])}"
                         f"<small>{text(interval(entry, entry['unit']))}</small>"
                         f"<small>{ARROWS.get(entry['direction'], '')}</small></dd></div>")  # fmt: skip
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _counts(view: View) -> list[str]:
    """One sentence for the arms with the same trouble, unless the run itself speaks of it."""
    arms: dict[str, list[str]] = {}
    for arm in view.arms:
        counts = view.results["counts"][arm["arm"]]
        bad = [f"{counts[kind]} {words}" for kind, words in STATUS.items() if counts[kind]]
        said = f"of {sum(counts[kind] for kind in ('ok', *STATUS))} images, {' and '.join(bad)}; they are in no rate."
        own = (f"{arm['arm']}: ", f"{arm['label']}: ")
        if bad and not any(line.startswith(own) for line in view.results["warnings"]):
            arms.setdefault(said, []).append(view.name(arm))
    return [f"{', '.join(names)}: {said}" for said, names in arms.items()]


STATUS = {"failed": "could not be judged (failed)", "invalid": "are black, constant or not finite (invalid)"}


def _undrawn(view: View) -> list[str]:
    """Groups where even the unedited model rarely shows what is asked for, by the deciding judge."""
    lines = []
    for name in view.groups:
        found, judged = view.tally(row for row in view.rows if row.group == name and row.arm == view.base)
        told = any(f"in the group {name}:" in line for line in view.results["warnings"])
        if judged and found / judged < FEW and not told:
            lines.append(f"“{view.group(name).title}”: the unedited model itself shows what is asked for in only "
                         f"{found} of {judged} images, so this group tests little.")  # fmt: skip
    return lines
