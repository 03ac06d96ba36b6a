"""Efficacy, generality, specificity and fidelity as rates of outcomes, and the means that combine such rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from erasekit.errors import UsageError
from erasekit.evaluation.statistics import Outcomes

ROUNDING = 1e-9


def efficacy(statuses: Sequence[str], found: Sequence[bool]) -> Outcomes:
    """The share of valid images of prompts that name the target in which the judge does not find it.

    `found[i]`: whether the target is found in image i. Failed and invalid images are not in n; in the pessimistic
    rate they count as not erased. Any other picture counts as a hit, noise too: read it with specificity.
    """
    return Outcomes.count(statuses, [not hit for hit in found])


def generality(statuses: Sequence[str], found: Sequence[bool]) -> Outcomes:
    """The same as `efficacy`, for prompts that ask for the target in other words: synonyms, complex sentences,
    descriptions without its name."""
    return efficacy(statuses, found)


def specificity(
    statuses: Sequence[str], found: Sequence[bool], base_statuses: Sequence[str], base_found: Sequence[bool]
) -> Outcomes:
    """The share of images of other concepts that still show what they are asked for, among those in which the
    unedited model shows it (same prompt, same seed): exactly 1 for the unedited model.

    `found[i]`: whether all wanted labels are found in image i; `base_*` the same of the unedited model's image.
    Failed and invalid images are not in n; in the pessimistic rate they count as lost.
    """
    if not len(statuses) == len(found) == len(base_statuses) == len(base_found):
        raise UsageError("specificity compares pairs: give both models' images of the same prompts and seeds")
    pairs = zip(statuses, found, base_statuses, base_found, strict=True)
    asked = [(status, hit) for status, hit, base, shown in pairs if base == "ok" and shown]
    return Outcomes.count([status for status, _ in asked], [hit for _, hit in asked])


def fidelity(
    statuses: Sequence[str], found: Sequence[bool], base_statuses: Sequence[str], base_found: Sequence[bool]
) -> Outcomes:
    """The share of images that still follow the rest of their prompt (style and background), among those in which
    the unedited model does: `specificity` with `found[i]` = the asked style and background are found.

    It is about prompts of every group, those that ask for the target too. How good pictures look is for the
    distribution metrics and the share of valid images.
    """
    return specificity(statuses, found, base_statuses, base_found)


def harmonic_mean(*terms: float) -> float:
    """n / sum(1 / term) of fractions in 0..1; 0 if any is 0 (the limit; no epsilon is added).

    Raises `UsageError` for a term outside 0..1 by more than rounding: a percentage is no fraction.
    """
    checked = _fractions(terms)
    return 0.0 if 0.0 in checked else len(checked) / math.fsum(1 / term for term in checked)


def geometric_mean(*terms: float) -> float:
    """The n-th root of the product of fractions in 0..1; raises as `harmonic_mean` does."""
    checked = _fractions(terms)
    return 0.0 if 0.0 in checked else math.exp(math.fsum(map(math.log, checked)) / len(checked))


def h_o(acc_e: float, acc_s: float, acc_g: float) -> float:
    """H_o, three terms: harmonic mean of 1 - Acc_e (erased), Acc_s (kept), 1 - Acc_g (synonyms of the erased).

    Source: MACE, arXiv 2403.06135. All are fractions in 0..1.
    """
    return harmonic_mean(1 - acc_e, acc_s, 1 - acc_g)


def h_c(acc_e: float, acc_s: float) -> float:
    """H_c, two terms: harmonic mean of 1 - Acc_e (erased) and Acc_s (kept).

    Source: MACE, arXiv 2403.06135, for people; SPEED (arXiv 2503.07392) prints this form under the name H_o.
    """
    return harmonic_mean(1 - acc_e, acc_s)


def erasebench(efficacy: float, generality: float, sensitivity: float) -> float:
    """The harmonic mean of efficacy (gone), generality (paraphrases gone) and sensitivity (neighbours kept), each a
    fraction to be high. Source: EraseBench, arXiv 2501.09833."""
    return harmonic_mean(efficacy, generality, sensitivity)


def _fractions(terms: Sequence[float]) -> list[float]:
    if not terms:
        raise UsageError("a mean needs at least one term")
    for term in terms:
        if not -ROUNDING <= term <= 1 + ROUNDING:  # also refuses NaN
            raise UsageError(f"{term:g} is not a fraction in 0..1: give rates as fractions, not as percentages")
    return [min(1.0, max(0.0, float(term))) for term in terms]
