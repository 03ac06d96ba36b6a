"""The bars of `training_speed`, each met or missed, and its numbers as Markdown."""

from __future__ import annotations

from typing import Any

FASTER, MEMORY = 1.5, 1.4


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised, and whether it holds here."""
    peaks = {what: peak["peak_mb"] for what, peak in found["memory"].items()}
    rows = [(f"{method}: times faster than the plain loop", run["ratio"], FASTER, run["ratio"] >= FASTER)
            for method, run in found["speed"].items()]  # fmt: skip
    for what in ("training", "training, recompute"):
        ratio = peaks[what] / peaks["inference"]
        rows.append((f"esd: peak memory over inference, {what}", ratio, MEMORY, ratio <= MEMORY))
    return [dict(zip(("what", "value", "bound", "met"), row, strict=True)) for row in rows]


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    s = found["settings"]
    machine = found["environment"]
    where = "" if s["device"] == "cpu" else f", {s['device']}"
    lines = [f"{s['model']}, batch {s['batch']}, {s['sampling_steps']} sampling steps, {machine['cpus']} cores{where}.",
             "", "| method | seconds a step | plain loop | times faster | losses apart by |", "|" + "---|" * 5]  # fmt: skip
    lines += [f"| {name} | {run['seconds']:.3g} | {run['plain_seconds']:.3g} | {run['ratio']:.2f} | "
              f"{run['difference']:.1g} |" for name, run in found["speed"].items()]  # fmt: skip
    lines += ["", "| ESD-x, batch as above | peak MB | over inference | after the imports, MB |", "|" + "---|" * 4]
    least = found["memory"]["inference"]["peak_mb"]
    lines += [f"| {what} | {peak['peak_mb']:.0f} | {peak['peak_mb'] / least:.2f} | "
              f"{peak['own_mb']:.0f} |" if "own_mb" in peak else
              f"| {what} | {peak['peak_mb']:.0f} | {peak['peak_mb'] / least:.2f} | – |"
              for what, peak in found["memory"].items()]  # fmt: skip
    lines += ["", *(f"- {bar['what']}: {bar['value']:.2f}, bar {bar['bound']:g}: {'met' if bar['met'] else 'missed'}"
                    for bar in found["bars"])]  # fmt: skip
    return "\n".join(lines)
