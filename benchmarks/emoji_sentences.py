"""Sentences of words that the emoji model was trained on, for methods whose own are of Stable Diffusion's world.

    python benchmarks/emoji_sentences.py     # writes benchmarks/sentences/ again from worlds.emoji.captions

In `object.txt` and `style.txt` "{}" is the concept's place and "{a}" that of the concept with its article; a style stands
there as "ink style". `captions.txt` are whole captions. None has a form that the suites hold out.
"""

from __future__ import annotations

from pathlib import Path

from erasekit.files import write_whole
from erasekit.worlds.emoji.captions import SINGLE, article, sentences
from erasekit.worlds.emoji.concepts import BACKGROUNDS, STYLES, names

FOLDER = Path(__file__).resolve().parent / "sentences"
COUNT, CAPTIONS = 30, 400  # as many as MACE has templates; as `captions=emoji` of the closed-form methods
STYLED = "{s} style"


def of_objects() -> list[str]:
    """Training's forms for one thing, with every style and background in turn."""
    return _turns([form.replace("{x}", "{{}}").replace("{a}", "{{a}}") for form in SINGLE])


def of_styles() -> list[str]:
    """Training's forms that say "... style", with many things in turn."""
    return _turns([form.replace(STYLED, "{{}}") for form in SINGLE if STYLED in form])


def _turns(forms: list[str]) -> list[str]:
    found: dict[str, None] = {}
    forms, turn = list(dict.fromkeys(forms)), 0
    while len(found) < COUNT:
        noun = names()[7 * turn % len(names())]
        words = {"s": STYLES[turn % len(STYLES)], "b": list(BACKGROUNDS)[turn % len(BACKGROUNDS)]}
        found[forms[turn % len(forms)].format(x=noun, a=article(noun), **words)] = None
        turn += 1
    return list(found)


def files() -> dict[str, str]:
    """The files by name."""
    lists = {"object.txt": of_objects(), "style.txt": of_styles(), "captions.txt": sentences(CAPTIONS)}
    return {name: "\n".join(lines) + "\n" for name, lines in lists.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        write_whole(FOLDER / name, text.encode())
