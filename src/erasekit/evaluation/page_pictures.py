"""The page's pictures: every arm at equal prompts and seeds, the judge's verdict under each image."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from erasekit.evaluation.page_parts import text
from erasekit.evaluation.page_view import VERDICTS, Entry, View
from erasekit.evaluation.rows import Row

MOST_LINES = 60  # lines (a prompt with a seed) on one page, spread over the groups
MOST_BYTES = 24 << 20  # of image files on one page
AT_ONCE = 2  # seeds of a prompt that are chosen before the next prompt's
PNG = b"\x89PNG\r\n\x1a\n"
WORDS = {"found": "found", "absent": "not found", "failed": "failed", "invalid": "invalid", "unjudged": "not judged"}


@dataclass(frozen=True)
class Line:
    """One prompt with one seed, and its row in every arm that drew it."""

    group: str
    prompt: str
    seed: int
    rows: dict[str, Row]


def pictures(view: View) -> str:
    """All groups, each folded into one element; the first group of each side is open."""
    every = lines(view)
    chosen = choose(every, view)
    opened: set[bool] = set()
    parts = []
    for group in view.groups:
        asks = view.group(group).asks
        parts.append(_group(view, group, [line for line in chosen if line.group == group], asks not in opened))
        opened.add(asks)
    left = len(every) - len(chosen)
    note = f"{len(chosen)} of {len(every)} pairs of prompt and seed are shown; the others are in the results' folder."
    return "".join(parts) + (f'<p class="note">{note}</p>' if left else "") if every else ""


def legend() -> str:
    """What the signs under the images mean."""
    items = "".join(f'<li class="{kind}">{VERDICTS[kind]} {WORDS[kind]}</li>' for kind in WORDS if kind != "unjudged")
    return f'<ul class="key" aria-label="verdicts">{items}</ul>'


def lines(view: View) -> list[Line]:
    """The rows by prompt and seed, in the groups' order."""
    found: dict[tuple[str, str, int], Line] = {}
    for row in view.rows:
        place = row.group, row.prompt, row.seed
        found.setdefault(place, Line(*place, rows={})).rows[row.arm] = row
    order = view.groups
    return sorted(found.values(), key=lambda line: order.index(line.group))


def choose(every: Sequence[Line], view: View) -> list[Line]:
    """At most `MOST_LINES` lines and `MOST_BYTES` of images, from all groups in turn; in the order of `every`."""
    queues = [_preferred([line for line in every if line.group == group]) for group in view.groups]
    taken, room = set(), MOST_BYTES
    for line in (line for turn in zip_longest(*queues) for line in turn if line is not None):
        room -= sum(_size(view, row) for row in line.rows.values())
        if room < 0 or len(taken) == MOST_LINES:
            break
        taken.add(id(line))
    return [line for line in every if id(line) in taken]


def _preferred(group: Sequence[Line]) -> Iterator[Line]:
    """Two seeds of each prompt, prompt by prompt; then the next two."""
    by_prompt: dict[str, list[Line]] = {}
    for line in group:
        by_prompt.setdefault(line.prompt, []).append(line)
    longest = max((len(seeds) for seeds in by_prompt.values()), default=0)
    for start in range(0, longest, AT_ONCE):
        for seeds in by_prompt.values():
            yield from sorted(seeds, key=lambda line: line.seed)[start : start + AT_ONCE]


def _group(view: View, group: str, chosen: Sequence[Line], opened: bool) -> str:
    arms = [arm for arm in view.arms if any(arm["arm"] in line.rows for line in chosen)]
    counts = []
    for arm in view.arms:
        found, judged = view.tally(row for row in view.rows if row.group == group and row.arm == arm["arm"])
        counts += [f"{view.name(arm)} {found}/{judged}"] if judged else []
    prompts = dict.fromkeys(line.prompt for line in chosen)
    cards = "".join(_card(view, [line for line in chosen if line.prompt == prompt], arms) for prompt in prompts)
    width = 70 + 86 * len(arms)  # two cards side by side where they have room
    known = view.group(group)
    return (f'<details{" open" if opened else ""}><summary><h3>{text(known.title)}</h3>'
            f"<small>shown in: {text(' · '.join(counts) or 'no image judged')}</small></summary>"
            f'<p class="note">{text(known.reading)}</p><div class="shots" style="grid-template-columns:'
            f'repeat(auto-fill,minmax(min(100%,{width}px),1fr))">{cards}</div></details>')  # fmt: skip


def _card(view: View, chosen: Sequence[Line], arms: Sequence[Entry]) -> str:
    words = next(iter(chosen[0].rows.values())).text
    head = "".join(f'<th scope="col">{text(view.name(arm))}</th>' for arm in arms)
    body = "".join(_line(view, line, arms) for line in chosen)
    return (f'<div class="card" tabindex="0" role="group" aria-label="{text(words)}"><p>{text(words)}</p><table><thead><tr>'
            f"<th>seed</th>{head}</tr></thead><tbody>{body}</tbody></table></div>")  # fmt: skip


def _line(view: View, line: Line, arms: Sequence[Entry]) -> str:
    cells = "".join(_shot(view, line.rows.get(arm["arm"]), view.name(arm)) for arm in arms)
    return f'<tr><th scope="row">{line.seed}</th>{cells}</tr>'


def _shot(view: View, row: Row | None, label: str) -> str:
    if row is None:
        return "<td></td>"
    kind, word = view.verdict(row)
    alt = f"{label}, seed {row.seed}: {row.text}. Judge: {word} {WORDS[kind]}."
    return f"<td>{_image(view, row, alt)}{under(kind, word)}</td>"


def under(kind: str, word: str) -> str:
    """The verdict under an image: a key of `VERDICTS`, and the word that was looked for."""
    return f'<span class="verdict {kind}"><i aria-hidden="true">{VERDICTS[kind]}</i>{text(_caption(kind, word))}</span>'


def _caption(kind: str, word: str) -> str:
    return (word or "found") if kind == "found" else f"no {word}" if kind == "absent" and word else WORDS[kind]


def _image(view: View, row: Row, alt: str) -> str:
    """The file's own bytes; a word instead where the file is gone, cut short, or not the one that was judged."""
    try:
        data = (view.folder / row.image).read_bytes()
    except OSError:
        return f'<span class="gone" role="img" aria-label="{text(alt)}">file not there</span>'
    if not data.startswith(PNG) or data[-8:-4] != b"IEND":
        return f'<span class="gone" role="img" aria-label="{text(alt)}">file damaged</span>'
    changed = bool(row.sha256) and hashlib.sha256(data).hexdigest() != row.sha256
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{text(alt)}" width="{width}" height="{height}" src="{source}">'
    return image + ("<small>changed since it was judged</small>" if changed else "")


def _size(view: View, row: Row) -> int:
    try:
        return (view.folder / row.image).stat().st_size
    except OSError:
        return 0
