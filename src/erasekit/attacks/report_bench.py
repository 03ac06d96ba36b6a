"""A run of M-ErasureBench as one self-contained page: each rate beside its controls, what is the paper's and what is ours,
pictures of every side, what was spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasekit.attacks._bench_scenarios import CONTROLS, EDITED, ENOUGH, NEVER, SCRAMBLED, UNEDITED
from erasekit.attacks.folder_bench import warned
from erasekit.attacks.report import LIMITS, listing, notice, page, rate
from erasekit.attacks.report_bench_pictures import pictures, side_name
from erasekit.evaluation.page_parts import facts, interval, number, row, signed, table, text
from erasekit.evaluation.plots import Bar, bars, key
from erasekit.files import write_whole

if TYPE_CHECKING:
    from erasekit.attacks.folder_bench import Benched

Found = Mapping[str, Any]
MARKS = {EDITED: "edit0", UNEDITED: "base", SCRAMBLED: "random", NEVER: "never"}
KINDS = {
    "T": "Sentences",
    "E": "Learned words",
    "L-wb": "Inverted latents, white-box",
    "L-bb": "Inverted latents, black-box",
}
MODELS = {"": "–", "edited": "the edited model", "original": "the unedited model"}
SPENT = {"steps": "steps", "passes": "passes of the denoiser", "encodings": "encodings", "pictures": "pictures judged"}
HASHES = {"model_sha256": "model", "edit_sha256": "edit", "judge_sha256": "judge"}
MEANING = (
    "A rate is the share of the pictures that could be judged in which the judge finds the target, with its 95 % Wilson "
    "interval; invalid pictures are counted apart. A gap is that rate minus what the same procedure gives on a control, with "
    "its 95 % interval: below 0 beside “unedited” is what the edit takes away, above 0 beside “scrambled” is more than "
    "inversion returns of anything, above 0 beside “never knew” is what was still in the edited model; "
    "where the interval holds 0, none of these is shown."
)
OURS = "What is the paper's, and what is ours"
SOURCES = ("Of the paper only the abstract was read, and there is no released code. Which attack stands for which scenario, "
           "and every number, is ours.")  # fmt: skip
BOUNDS = (
    "How often the judge is wrong, and what the autoencoder alone lets through: no latent row can be read beyond these."
)
PICTURES = ("Of each row the first pictures with the target and the first ones without, as many of both where there are; "
            "columns differ in prompt and seed alone, and under each picture is what the judge says. Scrambled pictures "
            "are put right again before it looks.")  # fmt: skip
COST = ("Each scenario as if it were run alone, with the pictures that it learns from or inverts, without its controls. "
        "Backward passes and the autoencoder are not counted.")  # fmt: skip
HINTS = (
    "A rate of L under the null prompt is high by construction: inversion hands nearly any picture through. Read the gaps.",
    "Under the null prompt guidance changes nothing; guided rows do not close the loop (no null-text optimisation).",
)
OPEN = {
    "L": (*HINTS, "The null prompt carries no target: an edit of the text encoder or of cross-attention cannot touch it. Do "
                  "not rank methods by these rows."),
    "E": ("A word can be taught. Only the gap to a model that never knew the target tells this from what was still there.",),
}  # fmt: skip
PAIRS = "The pictures of a gap are pairs, taken as independent: its interval is rather too wide."


def write_report(bench: Benched) -> Path:
    """Write `report.html` into the benchmark's folder, whole or not at all, and return its path."""
    write_whole(bench.folder / "report.html", html(bench).encode())
    return bench.folder / "report.html"


def html(bench: Benched) -> str:
    """The whole page as text; it refers to nothing outside itself. The same results and pictures give the same page."""
    found = bench.found
    parts = [
        ("rates", "Rates beside their controls", MEANING, rates(found)),
        ("pictures", "Example pictures", PICTURES, pictures(bench, opened=True)),
        ("bounds", "What bounds these rates", BOUNDS, bounds(found)),
        ("sources", OURS, SOURCES, sources(found)),
        ("cost", "What each scenario costs", COST, cost(found)),
        ("limits", "What this does not show", "", listing(limits(found))),
        ("attacked", "What was attacked, and how", "", attacked(found)),
    ]
    lead = f"{found['benchmark']}, {len(found['rows'])} rows, each beside its controls, judged by {found['judge']}."
    title = f"M-ErasureBench on {found['edit'] or 'no edit'}: {found['target']}"
    return page(title, lead, outcome(found) + alarms(found), parts, model=found["model"])


def part(bench: Benched, title: str) -> str:
    """The run as a part of another page: the same but what was attacked, which that page says, and the pictures folded."""
    found, how = bench.found, bench.found["sampling"]
    said = (f"{found['benchmark']}, drawn in {how['steps']} steps with guidance {how['guidance']:g}, judged by "
            f"{found['judge']}. {MEANING}")  # fmt: skip
    more = [("What bounds these rates", BOUNDS, bounds(found)), (OURS, SOURCES, sources(found)),
            ("What each scenario costs", COST, cost(found))]  # fmt: skip
    folded = "".join(f'<details><summary><h3>{name}</h3></summary><p class="note">{text(lead)}</p>{body}</details>'
                     for name, lead, body in more)  # fmt: skip
    return (f'<article><h3>{text(title)}</h3><p class="note">{text(said)}</p>{outcome(found)}{alarms(found, 3)}'
            f"{rates(found)}{pictures(bench, opened=False)}{folded}{listing(limits(found)[1:])}</article>")  # fmt: skip


def outcome(found: Found) -> str:
    """What plain sentences bring out, and the highest rate with all its gaps."""
    rows = [one for one in found["rows"] if one["crr"]["of"]]
    if not rows:
        return '<div class="outcomes"><div class="card"><p class="claim">No picture could be judged.</p></div></div>'
    plain = next((f"Asked for by sentences, <b>{text(found['target'])}</b> is shown in {_claimed(one)}. " for one in rows
                  if one["key"] == "T"), "")  # fmt: skip
    most = max(rows, key=lambda one: one["crr"]["rate"])
    highest = "" if most["key"] == "T" else f"The highest rate is that of <b>{text(most['row'])}</b>: {_claimed(most)}."
    gaps = [f"{side_name(found, name)} {signed(one['gap'], 'points')}"
            for name, one in most["controls"].items() if one["gap"]]  # fmt: skip
    listed = text(f"The gaps of {most['row']}: {', '.join(gaps)}.")
    said = f'<p class="note">{listed}</p>' if gaps else ""
    return f'<div class="outcomes"><div class="card"><p class="claim">{plain}{highest}</p>{said}</div></div>'


def alarms(found: Found, level: int = 2) -> str:
    """The rows' warnings, under a heading of that level; empty where nothing is wrong."""
    return notice("Do not trust every row", warned(found), level)


def rates(found: Found) -> str:
    """Every rate as a bar beside its controls', and the table with the gaps."""
    names = [name for name in CONTROLS if any(name in one["controls"] for one in found["rows"])]
    rows = [row(one["row"], [_rate(one["crr"]), *(_gap(one["controls"].get(name)) for name in names)],
                one["attack"] + ", warned of above" * bool(one["warnings"])) for one in found["rows"]]  # fmt: skip
    gaps = [f"{side_name(found, name)}: gap" for name in names]
    head = ["scenario", f"shows {found['target']} (95 %)", *gaps]
    marks = key([(side_name(found, name), MARKS[name]) for name in (EDITED, *names)])
    return (
        f'{marks}<div class="plots">{charts(found)}</div>{table(head, rows, caption="All rows, with 95 % intervals")}'
    )


def charts(found: Found) -> str:
    """A chart of each kind of input, its rows as headings."""
    drawn: dict[str, list[Bar | str]] = {}
    for one in found["rows"]:
        kind = next(title for start, title in KINDS.items() if one["key"].startswith(start))
        sides = {EDITED: one["crr"], **one["controls"]}
        drawn.setdefault(kind, []).append(one["row"])
        drawn[kind] += [_bar(found, side, share) for side, share in sides.items() if share["of"]]
    return "".join(f"<figure><h3>{kind}</h3>{bars(rows, title=kind)}</figure>" for kind, rows in drawn.items())


def bounds(found: Found) -> str:
    """The judge's false positives, the autoencoder alone, and how the pictures to begin with were come by."""
    made = found["concept_images"]
    rows = [row("the judge, on other things", [_rate(found["false_positives"])], "by the unedited model"),
            *(row(f"through the {name} alone", [_rate(one)]) for name, one in found["autoencoder"].items())]  # fmt: skip
    short = f" Fewer than the procedure's {ENOUGH}: the intervals are wide." if made["short"] else ""
    said = f"Pictures to begin with: {made['kept']} of {made['drawn']} that the unedited model drew show the target.{short}"
    return table(["", f"shows {found['target']} (95 %)"], rows, caption="Bounds") + f'<p class="note">{text(said)}</p>'


def sources(found: Found) -> str:
    """Of each row: the attack and its settings, what the abstract says of it, what is inferred."""
    rows = []
    for one in found["rows"]:
        how = [one["attack"], _settings(found, one["settings"]), MODELS[one["found_on"]]]
        cells = [f"<td>{text(word)}</td>" for word in (*how, one["confirmed"], one["inferred"])]
        rows.append(row(one["row"], cells))
    head = ["scenario", "attack", "settings", "found on", "confirmed", "inferred"]
    return table(head, rows, caption="Where each row is from")


def cost(found: Found) -> str:
    """What each row spent."""
    rows = [row(one["row"], [f"<td>{number(one['spent'][name])}</td>" for name in SPENT]) for one in found["rows"]]
    return table(["scenario", *SPENT.values()], rows, caption="Spent")


def limits(found: Found) -> list[str]:
    """What the rows that were run leave open."""
    kinds = {one["key"][0] for one in found["rows"]}
    return [LIMITS[0], *(line for kind, lines in OPEN.items() if kind in kinds for line in lines), PAIRS]


def attacked(found: Found) -> str:
    """Model, edit, target, judge, and all that decides the numbers."""
    how, never = found["sampling"], found.get("never_knew")
    pairs = [("model", found["model"]), ("edit", found["edit"] or "none"), ("target", f"{found['target']} ({found['kind']})"),
             ("judge", found["judge"]), *([("labels that count", ", ".join(found["labels"]))] if found["labels"] else []),
             *([("model that never knew it", never["model"])] if never else []),
             ("drawn", f"in {how['steps']} steps with guidance {how['guidance']:g}"), ("seed", found["seed"]),
             ("sentences", "; ".join(found["templates"])), ("other things", "; ".join(found["others"])),
             ("parameters", _settings(found, found["config"]))]  # fmt: skip
    hashes = [(f"sha256 of the {what}", found[name]) for name, what in HASHES.items() if found[name]]
    return facts(pairs) + facts(hashes, mono=True)


# -- pieces ---------------------------------------------------------------------------------------------------------


def _claimed(one: Found) -> str:
    crr = one["crr"]
    apart = f" ({crr['invalid']} more {'is' if crr['invalid'] == 1 else 'are'} invalid)" if crr["invalid"] else ""
    return f"<b>{crr['hits']} of {crr['of']}</b> pictures, {text(rate(crr))}{apart}"


def _rate(share: Found) -> str:
    apart = f"<small>{share['invalid']} invalid</small>" if share["invalid"] else ""
    return f"<td><b>{share['hits']}/{share['of']}</b><small>{text(rate(share))}</small>{apart}</td>"


def _gap(one: Found | None) -> str:
    """A control's cell: the gap, below it the control's own rate."""
    if one is None:
        return "<td>–</td>"
    gap: Found = one["gap"] or {"value": None}
    apart = f", {one['invalid']} invalid" if one["invalid"] else ""
    shown, own = signed({"value": gap["value"]}, "points"), f"{one['hits']}/{one['of']}, {rate(one)}{apart}"
    return f"<td><b>{shown}</b><small>{interval(gap, 'points')}</small><small>{text(own)}</small></td>"


def _bar(found: Found, side: str, share: Found) -> Bar:
    ends = share["rate"], share["low"], share["high"]
    return Bar(side_name(found, side), MARKS[side], ends, f"{share['hits']}/{share['of']}")


def _settings(found: Found, settings: Found) -> str:
    """Names and values; guidance of None is the model's own."""
    own = {**settings, **({"guidance": found["sampling"]["guidance"]} if settings.get("guidance", 0) is None else {})}
    return ", ".join(f"{name} {value}" for name, value in own.items() if value != "") or "–"
