"""MACE's first stage alone, the closed-form refinement of the cross-attention (arXiv 2403.06135, CVPR 2024).

MACE (`mace` is the whole system) is three stages: this one, one LoRA a concept that suppresses the phrase's attention
inside a mask, and a closed-form fusion of the LoRAs. This one makes the *other* words of a prompt lose the phrase, and
leaves the phrase's own keys and values as they are (the LoRAs' part). For one projection W (o, d):

    min_W'  sum ||W' e_f - W e_g||^2 + l1 sum_p ||W' e_p - W e_p||^2 + lamb ||W' - W||^2
    W' = W + W (Y X' - X X')(X X' + C)^-1,    C = l1 P + lamb I,    P = sum_p e_p e_p'

X, Y (d, n) have as columns e_f and e_g: the text features of the rows that a prompt with the target and the same prompt
with the anchor share (`_templates.shared_rows`). Since the wanted outputs are W Y, the right factor (d, d) knows nothing
of W: one factorisation serves all matrices, and of the prompts only X X' and Y X' are kept, whatever their number.

P: the paper sums over all rows of about 6e5 COCO captions plus `preserve_weight` x those of a list of names. Here it
is 6e5 x the mean over a few captions (see `_prior`) plus `preserve_weight` x the sum over the retained concepts, each the
mean of its templates: in how many sentences a name of the authors' list stood is not published.
l1 is `preserve_scale` squared: the scale is known from the authors' configurations, and their code multiplies the prior
by it twice in this stage (once in the fusion). `refine_scale` sets l1 itself.

What else differs from the released code: float64, Cholesky; `eps`; the target's own tokens are left out even where
the anchor begins or ends with the same word; concepts are never processed in slices of five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from erasekit.methods._features import PROBES
from erasekit.methods._templates import TEMPLATES, Pair, encoded_pairs, fill, read_sentences, shared_of


@dataclass(frozen=True)
class MACERefineConfig:
    """Parameters of the refinement; a wrong value raises `UsageError` naming the choices."""

    templates: str = "object"
    """The sentences around target, anchor and retained: object or style (30 each), prompt (15) or none (bare)."""
    template_file: LocalPath | None = None
    """Sentences of your own instead, one a line, UTF-8, with {} where the concept stands ({a}: with its article)."""
    preserve_scale: float = 1e-4
    """l1 is its square: weight of one caption of `prior_count`; 0 leaves out captions and retained."""
    refine_scale: float | None = None
    """l1 itself; none: `preserve_scale` squared, the weight that the authors' code gives it."""
    preserve_weight: float = 8e4
    """Weight of a retained concept, shared by its prompts, in multiples of a caption's."""
    lamb: float = 0.0
    """Weight of the distance to the weights as they are."""
    prior_file: LocalPath | None = None
    """Captions, one a line, UTF-8; none: two dozen built-in ones."""
    prior_count: float = _prior.COCO_CAPTIONS
    """How many captions their mean stands for: the number that the paper's scales were tuned with."""
    retain_templates: int | None = None
    """Into how many of the templates a retained concept is put, which share its weight; none: all."""
    eps: float = 1e-3
    """The prior's mean diagonal times this is added to it: few captions do not visit all directions."""

    def __post_init__(self) -> None:
        check_choice("templates", self.templates, tuple(TEMPLATES))
        for name in ("preserve_scale", "preserve_weight", "lamb", "prior_count"):
            check_range(name, getattr(self, name), high=1e12)
        check_range("refine_scale", 1.0 if self.refine_scale is None else self.refine_scale, low=1e-30, high=1e12)
        check_range("eps", self.eps, low=1e-9, high=1e3)
        check_range("retain_templates", 1 if self.retain_templates is None else self.retain_templates, low=1)
        if not self.lamb and not self.weights.captions:
            raise UsageError(
                "lamb=0 without captions is singular: set lamb, or preserve_scale and prior_count, above 0"
            )

    @property
    def l1(self) -> float:
        """The weight of one caption in this stage."""
        return self.preserve_scale**2 if self.refine_scale is None else self.refine_scale

    @property
    def weights(self) -> _prior.Weights:
        """The effective weights: of the mean caption's moment and of each retained prompt's."""
        retained = self.l1 * self.preserve_weight / len(self.retain_in)
        return _prior.Weights(self.l1 * self.prior_count, retained, self.lamb, self.eps)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The templates, a file's where there is one, which is read once. Raises `UsageError` for a file of no use."""
        return read_sentences(self.template_file) if self.template_file else TEMPLATES[self.templates]

    @property
    def retain_in(self) -> tuple[str, ...]:
        """The templates that retained concepts are put into."""
        return self.sentences[: self.retain_templates]


def _people(count: int, weight: float) -> Preset:
    doc = f"{count} of the paper's celebrities: preserve_weight {weight:g} with the others retained."
    return Preset(doc, {"preserve_weight": weight}, "a person")


class MACERefine:
    """The cross-attention K and V of the words around every target give what they give around its anchor.

    The target's own keys and values follow only as far as they resemble the others. Text encoder untouched; the seed
    changes nothing.
    """

    name: ClassVar[str] = "mace-refine"
    title: ClassVar[str] = "MACE's closed-form refinement (stage 1 of 3; no LoRAs, no fusion)"
    paper: ClassVar[str] = "arXiv 2403.06135"
    families: ClassVar[tuple[str, ...]] = ("sd1", "sd2")
    default_anchor: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {
        "object": Preset(
            "One object, no captions: lamb 1e2 is the paper's for automobile (1e3 ship, 1e1 bird).",
            {"preserve_scale": 0.0, "preserve_weight": 0.0, "lamb": 1e2},
        ),
        "people-1": _people(1, 8e3),
        "people-5": _people(5, 5e4),
        "people-10": _people(10, 8e4),
        "people-50": _people(50, 1.2e5),
        "people-100": _people(100, 2e5),
        "style": Preset("A hundred artists of the paper, others retained.", {"templates": "style"}, "art"),
        "explicit": Preset(
            "Nudity (the paper's targets: nudity, naked, erotic, sexual): captions only.",
            {"preserve_scale": 7e-7, "preserve_weight": 0.0},
            "a person wearing clothes",
        ),
    }
    Config: ClassVar[type[MACERefineConfig]] = MACERefineConfig

    @torch.no_grad()
    def fit(
        self,
        backbone: Backbone,
        request: EraseRequest,
        config: MACERefineConfig,
        *,
        progress: Progress | None = None,
    ) -> Edit:
        """An edit of every `cross.kv` site; the model is left bitwise as it was.

        Raises `UsageError` for a family or a prior file that cannot be taken, or a prompt that is too long;
        `InfeasibleError` for an edit that would change nothing. The self-check's `prior` has the effective weights.
        """
        idle = "" if config.weights.retained else "preserve_scale x preserve_weight"
        return _cross.fit(self, backbone, request, config, solve=refine, edit_sites=edit_sites,
                          parameters=recorded(config), idle=idle, asked=float(len(config.sentences)),
                          progress=progress)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The pairs' second moments X X' and Y X' (d, d) and some of their columns `x`, `y` (d, m), all float64."""

    xx: Tensor
    yx: Tensor
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Refinement:
    """The refinement of every matrix that reads the text: W' = W + W `right`, `right` (d, d) float64."""

    right: Tensor
    condition: float
    columns: Columns
    kept: _prior.Kept

    def refined(self, weight: Float[Tensor, "o d"]) -> Float[Tensor, "o d"]:
        """W' (o, d) float64, on the CPU: what the next stage starts from."""
        return weight.detach().to("cpu", torch.float64) + self.change(weight)

    def change(self, weight: Float[Tensor, "o d"]) -> Float[Tensor, "o d"]:
        """W' - W (o, d) float64, on the CPU."""
        return weight.detach().to("cpu", torch.float64) @ self.right


def refine(
    backbone: Backbone,
    pairs: Sequence[Pair],
    config: MACERefineConfig,
    *,
    retain: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress = _cross.silent,
) -> Refinement:
    """The solved refinement of these prompt pairs (equation of the module's docstring): nothing is edited by it."""
    columns = gather_columns(backbone, pairs, progress=progress)
    prompts = [fill(template, concept) for concept in retain for template in config.retain_in]
    kept = _prior.gather(
        backbone, prompts, config.weights, prior_file=config.prior_file, cache=cache, progress=progress
    )
    return Refinement(*solve_right(columns.xx, columns.yx, kept.matrix, ridge=kept.ridge), columns, kept)


def solve_right(
    xx: Float[Tensor, "d d"], yx: Float[Tensor, "d d"], matrix: Float[Tensor, "d d"], *, ridge: float
) -> tuple[Float[Tensor, "d d"], float]:
    """(Y X' - X X')(X X' + matrix + ridge I)^-1 (d, d) and the condition number that its Cholesky factor shows."""
    lower = solvers.prior(xx + matrix, ridge=ridge).lower
    diagonal = lower.diagonal()
    return torch.cholesky_solve((yx - xx).T, lower).T, float((diagonal.max() / diagonal.min()) ** 2)


def edit_sites(
    backbone: Backbone, found: Refinement, *, progress: Progress
) -> tuple[list[LowRank | Dense], list[dict[str, Any]]]:
    """One op and one self-check record for each `cross.kv` site."""
    sites, ops, records = backbone.sites("cross.kv"), [], []
    x, y = found.columns.x, found.columns.y
    for k, site in enumerate(sites):
        progress(k, len(sites), "solving the cross-attention")
        weight = backbone.weight(site)
        ops.append(_cross.make_op(site, weight, weight.double(), found.right))
        record = _cross.measure(site, weight, ops[-1], x, None, found.kept.probes, gap=y - x)
        records.append(record | {"condition": found.condition})
    progress(len(sites), len(sites), "solving the cross-attention")
    return ops, records


def gather_columns(backbone: Backbone, pairs: Sequence[Pair], *, progress: Progress) -> Columns:
    """X X' and Y X' summed batch by batch over the shared rows of every pair; of the columns themselves only about
    PROBES are kept, evenly spread over the pairs and their rows."""
    width = backbone.weight(backbone.sites("cross.kv")[0]).shape[1]
    xx, yx = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    each = max(3, PROBES // len(pairs))
    step, seen, some = -(-len(pairs) * each // PROBES), 0, []
    for batch in encoded_pairs(backbone, pairs, whole=True, progress=progress):
        blocks = []
        for pair, (mine, last), (its, other) in batch:
            rows = shared_of(backbone, pair, (last, other))
            blocks.append((mine[rows[0]].T.double(), its[rows[1]].T.double()))
            if seen % step == 0:
                at = torch.linspace(0, len(rows[0]) - 1, each).round().long()
                some.append(tuple(block[:, at] for block in blocks[-1]))
            seen += 1
        x, y = (torch.cat(columns, 1) for columns in zip(*blocks, strict=True))
        xx += x @ x.T
        yx += y @ x.T
    return Columns(xx, yx, *(torch.cat(columns, 1) for columns in zip(*some, strict=True)))
