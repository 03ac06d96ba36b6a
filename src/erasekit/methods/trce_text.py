"""TRCE's first stage alone, the closed-form edit of end-of-text features (arXiv 2503.07389, ICCV 2025).

TRCE is two stages: this one, and a contrastive fine-tune of the visual attention along early denoising steps. The
second is not here, so this is not the whole system. The first end-of-text feature sums up a prompt: sending that of a
malicious prompt to that of its safe counterpart takes the meaning away and keeps the context. For a projection W (o, d):

    min_W'  1/n sum_i ||W' e_i - W s_i||^2 + eta sum_k ||W' e_k - W e_k||^2
    W' = W + W (S - E) M,    M = (E' C^-1 E + n I)^-1 E' C^-1,    C = eta sum_k e_k e_k'

E, S (d, n): first end-of-text features of n target prompts and of the same prompts with the anchor; e_k: all rows of
captions. M (n, d) knows nothing of W: one factorisation serves all matrices, and an op keeps the factors W (S - E)
and M where n is small. `rows` maps other rows too, as the released code can.

The prior: the paper's cache sums over about 6e5 captions and is divided by 3e4; here that is 6e5/3e4 x the mean over a
few captions (see `_prior`), times eta. Retained concepts are no part of the paper: their mean joins the captions'.

What differs from the released code (`variant="released"` does the first two as it does): positions are those of the
tokenizer, not counted in words (a word of several tokens shifts them into the content); eta enters once, not squared;
float64, Cholesky; `eps`; a target that is named twice is refused (the released list has one twice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import UsageError
from erasekit.methods import LocalPath, Preset, Progress, _cross, _prior, check_choice, check_range, recorded
from erasekit.methods._features import spread
from erasekit.methods._templates import TEMPLATES, Pair, encoded_pairs, fill

DIVISOR = 3e4
"""What the released code divides its cache of captions by."""


@dataclass(frozen=True)
class TRCETextConfig:
    """Parameters of the edit; a wrong value raises `UsageError` naming the choices."""

    eta: float = 0.01
    """Weight of the prior, above 0: without it the solution is not unique."""
    rows: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
    """Weights of BOS, first end of text, last end of text (times the number of paddings) and the target's tokens
    (which map to the anchor prompt's last row)."""
    templates: str = "prompt"
    """The sentences around target and anchor: prompt (15), object or style (30 each), or none (bare)."""
    variant: str = "paper"
    """paper (positions of tokens, eta once) or released (positions counted in words, eta squared)."""
    prior_file: LocalPath | None = None
    """Captions, one a line, UTF-8; none: two dozen built-in ones."""
    prior_count: float = _prior.COCO_CAPTIONS
    """How many captions their mean stands for, before the division by 3e4."""
    retain_weight: float = 1.0
    """Weight of the retained concepts' mean, in multiples of the captions' mean; 0: measured only."""
    eps: float = 1e-3
    """The prior's mean diagonal times this is added to it: few captions do not visit all directions."""

    def __post_init__(self) -> None:
        check_choice("templates", self.templates, tuple(TEMPLATES))
        check_choice("variant", self.variant, ("paper", "released"))
        for name in ("eta", "prior_count"):
            check_range(name, getattr(self, name), low=1e-9, high=1e12)
        check_range("retain_weight", self.retain_weight, high=1e12)
        check_range("eps", self.eps, low=1e-9, high=1e3)
        for weight in self.rows:
            check_range("rows", weight, high=1e12)
        if len(self.rows) != 4 or not any(self.rows):
            raise UsageError("rows takes four weights (BOS, first end, last end, target), one of them above 0")

    @property
    def sentences(self) -> tuple[str, ...]:
        """The templates."""
        return TEMPLATES[self.templates]

    @property
    def released(self) -> bool:
        """Whether the released code's positions and scale are wanted."""
        return self.variant == "released"

    def weights(self, retained: int) -> _prior.Weights:
        """The effective weights: of the mean caption's moment and of each of the retained prompts'."""
        captions = self.eta ** (2 if self.released else 1) * self.prior_count / DIVISOR
        return _prior.Weights(captions, captions * self.retain_weight / max(1, retained), 0.0, self.eps)


class TRCEText:
    """The cross-attention reads the end of every target prompt as the end of the same prompt with the anchor.

    Other rows, the target's own among them, move only as far as they resemble these ends. Text encoder untouched; the
    seed changes nothing.
    """

    name: ClassVar[str] = "trce-text"
    title: ClassVar[str] = "TRCE's end-of-text edit (stage 1 of 2; no contrastive fine-tune)"
    paper: ClassVar[str] = "arXiv 2503.07389"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "explicit": Preset("Sexual content, everything to one safe phrase.", {}, "a person wearing clothes"),
        "unsafe": Preset(
            "Several kinds of unsafe content, eta doubled: give each target its own anchor.", {"eta": 0.02}
        ),
        "style": Preset("An artist under many names and works.", {}, "art"),
    }
    Config: ClassVar[type[TRCETextConfig]] = TRCETextConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: TRCETextConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was.

        Raises `UsageError` for a family or a prior file that cannot be taken, or a prompt that is too long;
        `InfeasibleError` for an edit that would change nothing. The self-check's `prior` has the effective weights.
        """
        idle = "" if config.retain_weight else "retain_weight"
        return _cross.fit(self, backbone, request, config, solve=map_ends, edit_sites=edit_sites,
                          parameters=recorded(config), idle=idle, asked=(max(config.rows) or 1.0) / len(request.targets),
                          progress=progress)  # fmt: skip


@dataclass(frozen=True)
class EndMapping:
    """The edit of every matrix that reads the text: W' = W + (W `factor.gap`) `factor.right`; `x`, `y` (d, n) are
    its weighted columns, all float64."""

    factor: solvers.RightFactor
    x: Tensor
    y: Tensor
    kept: _prior.Kept

    def mapped(self, weight: Float[Tensor, "o d"]) -> Float[Tensor, "o d"]:
        """W' (o, d) float64: what the next stage starts from."""
        return weight.detach().to("cpu", torch.float64) + self.factor.up(weight) @ self.factor.right


def map_ends(
    backbone: Backbone,
    pairs: Sequence[Pair],
    config: TRCETextConfig,
    *,
    retain: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress = _cross.silent,
) -> EndMapping:
    """The solved edit of these prompt pairs (equation of the module's docstring): nothing is edited by it."""
    x, y = gather_columns(backbone, pairs, config, progress=progress)
    prompts = [fill(config.sentences[0], concept) for concept in retain]
    weights = config.weights(len(prompts))
    kept = _prior.gather(backbone, prompts, weights, prior_file=config.prior_file, cache=cache, progress=progress)
    return EndMapping(solve_mapping(x, y, kept.matrix, ridge=kept.ridge, pairs=len(pairs)), x, y, kept)


def solve_mapping(
    x: Float[Tensor, "d n"], y: Float[Tensor, "d n"], matrix: Float[Tensor, "d d"], *, ridge: float, pairs: int
) -> solvers.RightFactor:
    """The factor shared by all matrices, at most d wide: x and y (d, n) weighted columns of `pairs` prompt pairs,
    C = `matrix` + `ridge` I (d, d)."""
    return solvers.solve(x, y, prior=solvers.prior(matrix, ridge=ridge), scale=1 / pairs).compact()


def edit_sites(
    backbone: Backbone, found: EndMapping, *, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]]]:
    """One op and one self-check record for each `cross.kv` site."""
    sites, ops, records = backbone.sites("cross.kv"), [], []
    some = spread(found.x.shape[1])
    x, y = found.x[:, some], found.y[:, some]
    for k, site in enumerate(sites):
        progress(k, len(sites), "solving the cross-attention")
        weight = backbone.weight(site)
        ops.append(_cross.make_op(site, weight, found.factor.up(weight), found.factor.right))
        record = _cross.measure(site, weight, ops[-1], x, None, found.kept.probes, gap=y - x)
        records.append(record | _cross.solved(found.factor, weight))
    progress(len(sites), len(sites), "solving the cross-attention")
    return ops, records


def gather_columns(
    backbone: Backbone, pairs: Sequence[Pair], config: TRCETextConfig, *, progress: Progress
) -> tuple[Tensor, Tensor]:
    """The rows that face each other as columns (d, n) float64, each times the root of its weight."""
    x, y = [], []
    for batch in encoded_pairs(backbone, pairs, whole=any(config.rows[2:]), progress=progress):
        for pair, (mine, last), (its, other) in batch:
            for weight, row, facing in facing_rows(backbone, pair, (last + 1, other + 1), len(mine), config):
                x.append(weight**0.5 * mine[min(row, len(mine) - 1)].double())
                y.append(weight**0.5 * its[min(facing, len(its) - 1)].double())
    return torch.stack(x, 1), torch.stack(y, 1)


def facing_rows(
    backbone: Backbone, pair: Pair, ends: tuple[int, int], length: int, config: TRCETextConfig
) -> list[tuple[float, int, int]]:
    """(weight, row of the target's prompt, row of the anchor's) for every row kind that has a weight; `ends` are the
    positions of the prompts' first end of text, which `released` replaces by a count of words."""
    bos, first, last, keyword = config.rows
    mine, its = (len(p.split()) + 1 for p in pair[:2]) if config.released else ends
    rows = [(bos, 0, 0), (first, mine, its), (last * (length - 1 - mine), length - 1, length - 1)]
    if keyword:
        rows += [(keyword, row, length - 1) for row in _phrase(backbone, pair, config)]
    return [row for row in rows if row[0] > 0]


def _phrase(backbone: Backbone, pair: Pair, config: TRCETextConfig) -> list[int]:
    """The rows of the target's own tokens (`released`: of its words, counted) in its prompt."""
    if not config.released:
        return [row for span in backbone.concept_spans(pair.prompt, pair.target) for row in span]
    words, phrase = pair.prompt.lower().split(), pair.target.lower().split()
    starts = [i for i in range(len(words)) if words[i : i + len(phrase)] == phrase]
    return [i + 1 + k for i in starts for k in range(len(phrase))]
