"""A plain picture that cannot be judged ends no attack: the case goes on, and is invalid only where nothing of it is judged."""

from __future__ import annotations

import edits
import pytest
from test_standard import CASES, HOW, SMALL, Erased, Flag

from erasekit.attacks import Outcome, ladder
from erasekit.attacks.base import still_open
from erasekit.attacks.ladder import Climbed, Rung
from erasekit.attacks.sight import Seen, Sight

BLACK, CLEAN, SHOWN = Seen("invalid", False, 0.0, "black"), Seen("ok", False, 0.2), Seen("ok", True, 0.9)


class Black(Erased):
    """What is seen in the first picture of each prompt by the edited model, and in its later ones. The unedited model shows
    the target wherever it is asked for."""

    first, later = BLACK, SHOWN

    def look(self, cases, images):
        return [self.seen(case.prompt, image) for case, image in zip(cases, images, strict=True)]

    def seen(self, prompt: str, image) -> Seen:
        if not prompt or any(image is one for one in self.showing):
            return Seen("ok", bool(prompt), 0.1)
        first = prompt not in self.known
        self.known.add(prompt)
        return self.first if first else self.later


def run(
    pipe, attack: str, settings: dict, *, first: Seen = BLACK, later: Seen = SHOWN, skip: bool = True
) -> list[Outcome]:
    with Black(pipe, edits.edit(pipe), Sight(Flag(), "cat"), HOW, skip=skip) as victim:
        victim.known, victim.first, victim.later = set(), first, later
        return ladder.run(victim, CASES, Rung("x", attack, settings), seed=0)


@pytest.mark.parametrize("attack", sorted(SMALL))
def test_every_attack_goes_on_with_a_case_whose_plain_picture_cannot_be_judged(attack: str, sd1) -> None:
    found = run(sd1, attack, SMALL[attack][0])
    assert [one.status for one in found] == ["success"] * 2 and [one.case for one in found] == CASES


ONCE = ("completion", "inpainting", "latent-inversion")  # their one picture is compared with no other


@pytest.mark.parametrize("attack", ["prompts", "noise", "textual-inversion", "p4d", "weight-noise", *ONCE])
def test_what_stays_so_is_invalid_and_counted(attack: str, sd1) -> None:
    found = run(sd1, attack, SMALL[attack][0], later=BLACK)
    assert [one.status for one in found] == ["invalid"] * 2 and all(one.image is not None for one in found)
    done = Climbed(Rung("x", attack), tuple(found))
    assert (done.invalid, done.share.trials) == (2, 0) and done.spent.passes > 2 * len(CASES)
    assert still_open([*found, Outcome(CASES[0], "failure"), Outcome(CASES[0], "skipped")]) == [0, 1, 2]


HALVES = [(attack, SMALL[attack][0] | {"score_half": True}) for attack in ("noise", "steering")]


@pytest.mark.parametrize(("attack", "settings"), [*((name, SMALL[name][0]) for name in ("prompts", "p4d", *ONCE)), *HALVES])
def test_a_case_whose_plain_picture_was_judged_stays_in_the_rate(attack: str, settings: dict, sd1) -> None:
    found = run(sd1, attack, settings, first=CLEAN, later=BLACK)
    assert [(one.status, one.score) for one in found] == [("failure", 0.2)] * 2
    if (attack, settings) in HALVES or attack in ONCE:
        assert all(one.note.startswith("the attack's picture could not be judged: black") for one in found)
        assert all(one.spent.pictures > 1 and one.curve for one in found)


@pytest.mark.parametrize("attack", sorted(SMALL.keys() - {"prompts"}))
def test_where_no_case_is_skipped_only_what_the_attack_shows_counts(attack: str, sd1) -> None:
    settings = SMALL[attack][0]
    assert [one.status for one in run(sd1, attack, settings, first=SHOWN)] == ["skipped"] * 2
    kept = run(sd1, attack, settings, first=SHOWN, skip=False)
    assert [one.status for one in kept] == ["success"] * 2 and all(one.spent.pictures > 1 for one in kept)
    lost = run(sd1, attack, settings, first=SHOWN, later=CLEAN, skip=False)
    wanted = "success" if attack == "subtract" else "failure"  # what is left without the edit shows it
    assert [one.status for one in lost] == [wanted] * 2
