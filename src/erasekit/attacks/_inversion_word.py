"""The word that an inversion learns: the sentences that it is learned in, what it starts from, where it goes in a prompt.

Nothing enters the vocabulary: the word's positions hold a known token, the initial word, whose embeddings are replaced on
their way in (`Victim.condition`), so no row of the table can move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.errors import UsageError

if TYPE_CHECKING:
    from erasekit.attacks._inversion import InversionConfig
    from erasekit.attacks.victim import Victim

# Our sentences; how many there are for each kind, and of what sort, follows arXiv 2308.01508.
_PHOTOS = ("a photo of a {}", "a photo of the {}", "a picture of a {}", "a picture of the {}", "an image of a {}",
           "a photo of my {}", "a photo of a {} alone", "a photo of a small {}", "a photo of a large {}")  # fmt: skip
_LIGHT = ("good", "bad", "bright", "dark", "close", "blurry", "sharp", "cropped", "plain")
_PAINTED = ("", "fine ", "bright ", "dark ", "small ", "large ", "clean ", "close ", "detailed ", "rough ", "soft ", "vivid ",
            "pale ", "cropped ", "quiet ", "wide ", "weird ", "dim ", "plain ")  # fmt: skip
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (*_PHOTOS, *(f"a {how} photo of {a} {{}}" for how in _LIGHT for a in ("a", "the"))),
    "style": tuple(f"a {how}painting in the style of {{}}" for how in _PAINTED),
    "person": ("a photo of {}", "a portrait of {}"),
}
STARTS = {"object": ("object", "thing", "picture", "photo"), "style": ("art", "painting", "style", "photo"),
          "person": ("person", "man", "photo")}  # fmt: skip


class Text(NamedTuple):
    """Prompts with the word: their ids, the positions where it stands, and which of its rows stands there."""

    ids: Int[Tensor, "n length"]
    at: Int[Tensor, "n m"]
    row: Int[Tensor, "n m"]


class Word:
    """The word before it is learned. Contents are token ids without BOS and EOS, with -1, -2, ... for its rows."""

    def __init__(self, victim: Victim, config: InversionConfig) -> None:
        """Raises `UsageError` for an initial word that is not one token, or is the target's own."""
        kind = config.kind or victim.sight.kind
        names = dict.fromkeys((victim.sight.target, *victim.sight.labels))
        self.victim, self.templates = victim, config.templates or TEMPLATES[kind]
        self.names = sorted((self.tokens(name) for name in names), key=len, reverse=True)
        self.rows = [-1 - i for i in range(config.num_vectors)]
        self.token = self._initial((config.initial,) if config.initial else STARTS[kind])

    def tokens(self, text: str) -> list[int]:
        """The text's token ids, without BOS and EOS."""
        return list(self.victim.pipe.tokenizer(text)["input_ids"])[1:-1]

    def _initial(self, words: Sequence[str]) -> int:
        own, end = {token for name in self.names for token in name}, self.victim.pipe.tokenizer.eos_token_id
        found = [self.tokens(word) for word in words]
        usable = [ids[0] for ids in found if len(ids) == 1 and ids[0] not in own and ids[0] != end]
        if usable:
            return usable[0]
        why = "holds the target's own token" if own.intersection(found[0]) else "is not one token of this model"
        raise UsageError(f"the word {words[0]!r} to start from {why}: give another as initial=WORD")

    def in_template(self, template: str) -> list[int]:
        """A sentence's content; split at the word, which stands between others, it reads as in one piece."""
        before, after = (self.tokens(part) for part in template.split("{}"))
        content = [*before, *self.rows, *after]
        if not self._fits(content):
            raise UsageError(f"the template {template[:60]!r} is too long for the model: shorten it")
        return content

    def in_prompt(self, prompt: str) -> list[int] | None:
        """A prompt's content with the word for every name of the target (whole words); None where it names none."""
        content, found, i = self.tokens(prompt), [], 0
        texts = self.victim.pipe.tokenizer.convert_ids_to_tokens(content)
        begins = [True, *(text.endswith("</w>") for text in texts)]  # else within a word: the "cat" of "wildcat"
        while i < len(content):
            name = next((n for n in self.names if n and begins[i] and content[i : i + len(n)] == n), None)
            found += self.rows if name else content[i : i + 1]
            i += len(name) if name else 1
        return found if self._fits(found) else None

    def _fits(self, content: list[int]) -> bool:
        """Whether the last row, and so the word once as a whole, is among what the model reads."""
        return self.rows[-1] in content[: self.victim.length - 2]

    def laid(self, contents: Sequence[list[int]]) -> Text:
        """The contents padded as the pipeline pads; where one has the word less often, its first place is repeated."""
        tokenizer, length = self.victim.pipe.tokenizer, self.victim.length
        cut = [content[: length - 2] for content in contents]
        rows = [[tokenizer.bos_token_id, *(i if i >= 0 else self.token for i in content), tokenizer.eos_token_id]
                for content in cut]  # fmt: skip
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        places = [[(1 + at, -1 - i) for at, i in enumerate(content) if i < 0] for content in cut]
        most = max(map(len, places))
        full = torch.tensor([place + place[:1] * (most - len(place)) for place in places])
        device = self.victim.pipe.device
        return Text(ids.to(device), full[..., 0].to(device), full[..., 1].to(device))

    def start(self) -> Float[Tensor, "k width"]:
        """The initial word's embedding, of the side that is on, once a row."""
        return self.victim.table[[self.token] * len(self.rows)].detach()


def read(victim: Victim, text: Text, rows: Float[Tensor, "k width"]) -> Float[Tensor, "n length features"]:
    """What the cross-attention reads for prompts with the word. Carries gradients to `rows`."""
    return victim.condition(text.ids, rows[text.row], text.at)
