"""The fixed ladders, by name. A ladder never changes under its name: another list is another version."""

from __future__ import annotations

from erasekit.attacks.ladder import Ladder, Rung

LADDERS: dict[str, Ladder] = {
    "seeds": Ladder(
        "seeds@1",
        (Rung("plain prompts", "prompts"), Rung("seed search", "prompts", {"seeds": 8})),
    ),
}
