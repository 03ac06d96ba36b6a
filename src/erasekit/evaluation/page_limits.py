"""*What this does not show*: sentences made from what a run did not do."""

from __future__ import annotations

from erasekit.evaluation.page_parts import estimate, listed, number, row, signed, table, text
from erasekit.evaluation.page_view import TITLES, Entry, View

NEVER = "never-knew"  # a benchmark's control
PROBES = ("probe", "linear_probe", "nonlinear_probe")


def limits(view: View) -> list[str]:
    """One sentence for each thing that these results leave open; the order is the importance to a reader."""
    return [line for part in (_attacks, _prompts, _inputs, _sampling, _judges, _controls, _inside, _scope)
            for line in part(view)]  # fmt: skip


def attacks(view: View) -> str:
    """The folders' attacks that are at hand, and a table of what else the results hold: the attack, what the attacker could
    spend, the gaps to its controls; or the plain statement that none was run."""
    drawn, shown = "".join(one.body for one in view.tried), [line for one in view.tried for line in one.lines]
    done = [one for one in view.results.get("attacks", ()) if one not in shown]
    if not done:
        return drawn or "<p>No attack was run.</p>"
    beside = any(a.get("controls") for a in done)
    rows = [row(a["name"], [f"<td>{text(a['arm'])}</td>", estimate({**a, "metric": "attack", "group": None}, "share"),
                            *([_gaps(a)] if beside else []), f"<td>{text(a['budget'])}</td>"],
                ". ".join(filter(None, (a["target"], a.get("note"))))) for a in done]  # fmt: skip
    head = ["attack", "arm", "images that show the target", *(["gap to a control"] if beside else []), "budget"]
    return drawn + table(head, rows, caption="Attacks, with 95 % intervals")


def _gaps(attack: Entry) -> str:
    """A cell with the gap to each control of an attack; a dash for one without."""
    said = [f"{one['name']}: {signed({'value': one['gap'], 'low': one['gap_low'], 'high': one['gap_high']}, 'points')}"
            for one in attack.get("controls", ())]  # fmt: skip
    return f"<td>{''.join(f'<small>{text(line)}</small>' for line in said) or '–'}</td>"


def _attacks(view: View) -> list[str]:
    done = list(dict.fromkeys(attack["name"] for attack in view.results.get("attacks", ())))
    if done:
        return [f"Only these attacks were run: {listed(done)}. Another attack, or a larger budget, may do better."]
    return ["No attack was run: nothing here says what happens when somebody searches for prompts that bring the target "
            "back, or fine-tunes the edited model for a short while."]  # fmt: skip


def _prompts(view: View) -> list[str]:
    prompts = {row.prompt for row in view.rows}
    seeds = {row.seed for row in view.rows}
    lines = [f"Only the {len(prompts)} prompts of this suite were drawn, with {len(seeds)} seeds in all. "
             "A rate is one over these prompts, and zero images of n leave room for a rate of up to about 3/n."]  # fmt: skip
    absent = [title for name, title in TITLES.items() if name not in view.groups]
    lines += [f"No prompts of these kinds were drawn: {listed(absent, most=12).lower()}."] if absent else []
    tongues = view.results["suite"].get("languages")
    said = f"No language but {listed(tongues)}" if tongues else "No language but that of the suite's prompts"
    return [*lines, f"{said}, no misspellings, no prompts in other scripts were tried."]


def _inputs(view: View) -> list[str]:
    but = "But for what these attacks did, no image inputs" if view.results.get("attacks") else "No image inputs"
    return [f"{but}: image-to-image, inpainting, image adapters and learned embeddings were not tried, nor the "
            "edited model together with LoRAs, another text encoder or further fine-tuning."]  # fmt: skip


def _sampling(view: View) -> list[str]:
    used = view.results["suite"]["sampling"]
    said = ", ".join(f"{name} {used[name]}" for name in ("scheduler", "steps", "guidance") if used.get(name))
    return [f"No other sampler, step count or guidance than this suite's ({said or 'the default of the model'})."]


def _judges(view: View) -> list[str]:
    judges = view.results["suite"]["judges"]
    lines = ["A judge decided, not people: " + ", ".join(judge["name"] for judge in judges) + ". What it overlooks is "
             "counted as absent."]  # fmt: skip
    blind = [judge["name"] for judge in judges if not judge["calibration"]]
    return [*lines, *([f"Error rates were not measured for {listed(blind)}."] if blind else [])]


def _controls(view: View) -> list[str]:
    lines, kinds = [], {arm["kind"] for arm in view.arms}
    if "base" not in kinds:
        lines.append("The unedited model was not drawn, so there is no rate before the edit.")
    if "random" not in kinds and not any("no random control" in line for line in view.results["warnings"]):
        lines.append("No random change of the same norm was drawn: some of the effect may be plain damage.")
    if "never" not in kinds:
        where = "drawn on this suite (attacks had one)" if _attacked_without(view) else "at hand"
        lines.append(f"No model trained without the target was {where}: how close the edited model is to one that never "
                     "knew the target is open.")  # fmt: skip
    return lines


def _attacked_without(view: View) -> bool:
    """Whether an attack on the page has a rate on a model that was trained without the target."""
    controls = (one["name"] for attack in view.results.get("attacks", ()) for one in attack.get("controls", ()))
    return any(one.never_knew for one in view.tried) or NEVER in controls


def _inside(view: View) -> list[str]:
    if {entry["metric"] for entry in view.results["metrics"]}.intersection(PROBES):
        return []
    return ["No probe looked inside the model: a target that no longer shows in images may still be represented there."]


def _scope(view: View) -> list[str]:
    counts = {len(arm["edit"]["targets"]) for arm in view.edits if arm["edit"]}
    most = max(counts, default=0)
    many = f"These edits have {number(most)} target{'s' if most != 1 else ''} at most" if most else "No edit was drawn"
    return [f"{many}; nothing is shown about other targets, or about a further edit on top.",
            "An edit file can be subtracted from the model again, and the file itself points to where the target was "
            "represented.",
            "Edits change what a model draws, not what it was trained on: this is no statement about training data, law, "
            "or fitness for a purpose."]  # fmt: skip
