"""The page's record: each edit from inside, what the run cost, who judged, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from erasekit.evaluation import selfcheck
from erasekit.evaluation.page_parts import duration, facts, listed, number, row, size, table, text
from erasekit.evaluation.page_view import Entry, View
from erasekit.evaluation.plots import depth_chart


def edits(view: View) -> str:
    """Each edit: what it is, its self-check, its update norm by depth."""
    known = "".join(_edit(view, arm) for arm in view.edits if arm["edit"])
    return f'<div class="plots">{known}</div>' if known else ""


def cost(view: View) -> str:
    """Images, time and size of every arm."""
    rows, fit = [], view.timing.get("fit", {})
    for arm in view.arms:
        counts, seconds = (
            view.results["counts"][arm["arm"]],
            view.timing.get("images", {}).get(arm["arm"], arm["seconds"]),
        )
        each = seconds / arm["images"] if seconds is not None and arm["images"] else None
        small = size(arm["edit"]["bytes"]) if arm["edit"] and arm["kind"] == "edit" else "–"
        cells = [arm["images"], counts["failed"], counts["invalid"], duration(seconds), duration(each),
                 duration(fit.get(arm["arm"])), small]  # fmt: skip
        rows.append(row(view.name(arm), [f"<td>{text(cell)}</td>" for cell in cells]))
    head = ["arm", "images", "failed", "invalid", "drawing and judging", "for an image", "fitting", "size of the edit"]
    return table(head, rows, caption="Images and cost of every arm (seconds of one worker)")


def judges(view: View) -> str:
    """Who decided, and how often that judge itself is wrong."""
    parts = []
    for judge in view.results["suite"]["judges"]:
        measured = [(name, _shown(value)) for name, value in flat(judge["calibration"])]
        body = facts(measured) if measured else "<p>Its error rates were not measured here.</p>"
        parts.append(f"<h3>{text(judge['name'])}</h3><p class='note'>licence {text(judge['licence'])} · weights "
                     f'<span class="hash">{text(judge["weights_sha256"])}</span></p>{body}')  # fmt: skip
    extra = [(one["name"], f"sha256 {one['weights_sha256']}") for one in view.results.get("extractors", ())]
    return "".join(parts) + (f"<h3>Compared pixels, judged nothing</h3>{facts(extra, mono=True)}" if extra else "")


def provenance(view: View) -> str:
    """The command, and the hashes that say what it ran on."""
    made, suite, model = (view.results[part] for part in ("created_by", "suite", "model"))
    sampling = ", ".join(f"{name} {value}" for name, value in suite["sampling"].items() if value not in (None, ""))
    pairs: list[tuple[str, object]] = [
        *([(f"plan{' and real images' if 'real' in view.results else ''}, sha256", made["plan_sha256"])]
          if "plan_sha256" in made else []),
        ("model", model["id"]), ("model, sha256", model["sha256"]),
        ("suite", f"{suite['name']} version {suite['version']}"), ("suite, sha256", suite["digest"]),
        *((f"{view.label(arm)}, sha256", arm["edit"]["sha256"]) for arm in view.edits if arm["edit"]),
        *((f"judge {judge['name']}, sha256", judge["weights_sha256"]) for judge in suite["judges"]),
        *_real(view),
        ("sampling", sampling), ("single images", view.results["rows"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in {"erasekit": made["erasekit"], **made["versions"]}.items())),
    ]  # fmt: skip
    return f"<pre><code>{text(made['command'])}</code></pre>{facts(pairs, mono=True)}"


def _real(view: View) -> list[tuple[str, object]]:
    """Which real images, and how many, distances are to; nothing of a run without."""
    known = view.results.get("real")
    if not known:
        return []
    return [("real images", f"{known['name']}: {known['images']}"), ("real images, sha256", known["sha256"])]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested values as pairs of a dotted name and a value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}, ")
        else:
            yield f"{prefix}{name}".replace("_", " "), value


def _edit(view: View, arm: Entry) -> str:
    edit = arm["edit"]
    settings = ", ".join(f"{name} {value}" for name, value in edit["parameters"].items()) or "the method's defaults"
    pairs = [f"{t} → {a}" for t, a in zip(edit["targets"], edit["anchors"], strict=False)] or list(edit["targets"])
    known = [("targets → anchors", listed(pairs, most=10)), ("method", edit["method"]), ("parameters", settings),
             *_told(edit), ("file", f"{edit['file']} ({size(edit['bytes'])})"),
             *selfcheck.facts(edit["self_check"])]  # fmt: skip
    drawn = depth_chart(edit["self_check"])
    figure = ("<p class='note'>Largest change of a weight relative to its norm, by depth: the text encoder's layers, then "
              f'the denoiser.</p><div class="wide" tabindex="0" role="region" aria-label="update norm by depth">{drawn}'
              "</div>") if drawn else ""  # fmt: skip
    noted = "".join(f"<li>{text(line)}</li>" for line in edit["self_check"].get("warnings", ()))
    return f"<div><h3>{text(view.label(arm))}</h3>{facts(known)}{f'<ul>{noted}</ul>' if noted else ''}{figure}</div>"


def _told(edit: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What the edit was told to keep, and its seed; nothing of results that were written before they held either."""
    kept = edit.get("retain")
    told: list[tuple[str, object]] = [] if kept is None else [("told to keep", listed(kept, most=10) or "nothing")]
    return told + ([("seed", edit["seed"])] if "seed" in edit else [])


def _shown(value: object) -> str:
    if isinstance(value, Mapping) or value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return listed([_shown(item) for item in value], most=12)
    return number(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
