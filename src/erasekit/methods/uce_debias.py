"""The debiasing form of UCE (arXiv 2308.14761, the loop of the 2023 scripts): targets keep their meaning and
gain or lose attributes until a labeller sees the shares that were asked for.

Each round edits the weights as they are, W (not the original ones), for every target that is still off:

    v* = V + sum_p alpha_p ||V||_F U_p / ||U_p||_F,   V = W X,  U_p = W Y_p,  alpha_p = step (asked_p - observed_p)

X are the target's features, Y_p those of attribute p in the same template, norms over a whole block. A target
within `max_diff` of every share gets alpha = 0 and joins the retained; the loop ends when all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones.base import Backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import Progress, _cross, uce
from erasekit.methods._features import PROBES
from erasekit.methods.uce_text import Pairs, gather_pairs, gather_retained, second_moment

TEMPLATES = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")


def fit_debias(backbone: Backbone, request: EraseRequest, config: uce.UCEConfig, *, progress: Progress) -> Edit:
    """An edit after which the labeller sees every target within `max_diff` of the asked shares, if `rounds` suffice.

    Each round calls `config.labeller(edit so far)`; the first is called with an edit that changes nothing. An
    edit that ran out of rounds carries a warning. Raises `InfeasibleError` if the shares are right already.
    """
    state = State(backbone, request, config)
    wrong = list(request.targets)
    for done in range(config.rounds):
        progress(done, config.rounds, "balancing the attributes")
        alphas = steps(state.observe(), config)
        wrong = [target for target, alpha in zip(request.targets, alphas, strict=True) if bool(alpha.any())]
        if not wrong and not done:
            raise InfeasibleError(f"uce: the shares are within {config.max_diff} already; nothing to edit")
        if not wrong:
            break
        state.edit(dict(zip(request.targets, alphas, strict=True)), wrong)
    return state.finish(wrong)


def steps(observed: Tensor, config: uce.UCEConfig) -> Tensor:
    """alpha (targets, attributes) from the observed shares: zero for every target within `max_diff` of all shares."""
    count = len(config.attributes)
    off = torch.tensor(config.ratios or [1 / count] * count, dtype=torch.float64) - observed
    return config.step * off * (off.abs().amax(1, keepdim=True) > config.max_diff)


class State:
    """The weights on their way, starting from the model's, with the text features that every round reads."""

    def __init__(self, backbone: Backbone, request: EraseRequest, config: uce.UCEConfig) -> None:
        self.backbone, self.request, self.config = backbone, request, config
        self.pairs = {target: self._pairs(target) for target in request.targets}
        self.retained = gather_retained(backbone, request.retain, config, progress=_cross.silent)
        self.own = {name: second_moment(backbone, [name], config, progress=_cross.silent).total for name in self.pairs}
        self.sites = backbone.sites("cross.kv")
        self.weights = [backbone.weight(site).double() for site in self.sites]

    def observe(self) -> Tensor:
        """The labeller's shares of the edit so far: (targets, attributes)."""
        assert self.config.labeller is not None  # uce.check_request saw to it
        shares = torch.as_tensor(self.config.labeller(self.so_far()), dtype=torch.float64)
        if shares.shape != (len(self.request.targets), len(self.config.attributes)):
            raise UsageError("uce: the labeller must return one row of shares a target, one share an attribute")
        return shares

    def edit(self, alphas: dict[str, Tensor], wrong: Sequence[str]) -> None:
        """One round: every weight moves by gap(W) M; the targets that are done count as retained."""
        metric = self.retained.moment + sum(self.own[name] for name in self.pairs if name not in wrong)
        x = torch.cat([self.pairs[name].x for name in wrong], 1)
        prior = solvers.prior(self.retained.scale * metric, ridge=self.config.lamb)
        right = solvers.inverse(x, prior=prior, scale=self.config.erase_scale).rows
        for k, weight in enumerate(self.weights):
            gaps = torch.cat([gap(weight, self.pairs[name], alphas[name]) for name in wrong], 1)
            self.weights[k] = weight + gaps @ right

    def so_far(self) -> Edit:
        """The change since the original weights, as an edit (without a self-check)."""
        return _cross.make_edit(
            self.backbone, self.request, method="uce", parameters=uce.parameters(self.config),
            ops=[self._op(k) for k in range(len(self.sites))], check={},
        )  # fmt: skip

    def finish(self, wrong: Sequence[str]) -> Edit:
        """The edit with its self-check, the residual being the share of the update lost to the model's dtype."""
        ops = [self._op(k) for k in range(len(self.sites))]
        x = torch.cat([pairs.x for pairs in self.pairs.values()], 1)[:, :PROBES]
        checks = []
        for site, op in zip(self.sites, ops, strict=True):
            weight = self.backbone.weight(site)
            checks.append(_cross.measure(site, weight, op, x, op.delta(weight).double() @ x, self.retained.probes))
        late = f"after {self.config.rounds} rounds the shares are still off for: {', '.join(wrong)}"
        return uce.finish(self.backbone, self.request, self.config, ops, checks, [late] if wrong else [])

    def _pairs(self, target: str) -> Pairs:
        groups = [tuple(t.format(concept) for concept in (target, *self.config.attributes)) for t in TEMPLATES]
        return gather_pairs(self.backbone, groups, self.config, progress=_cross.silent)

    def _op(self, k: int) -> Dense:
        site = self.sites[k]
        delta = self.weights[k] - self.backbone.weight(site).double()
        return Dense(site.component, site.module, delta.float())


def gap(weight: Tensor, pairs: Pairs, alphas: Tensor) -> Tensor:
    """V* - W X (o, n): every attribute's output, scaled to the target's norm, times its alpha."""
    own = weight @ pairs.x
    size = pairs.block_dot(own, own).sqrt()
    total = torch.zeros_like(own)
    for alpha, y in zip(alphas, pairs.ys, strict=True):
        toward = weight @ y
        total += float(alpha) * toward * (size / pairs.block_dot(toward, toward).sqrt())
    return total


def image_labeller(
    pipe: Any,
    classify: Callable[[Any, Sequence[str]], Sequence[float]],
    *,
    targets: Sequence[str],
    attributes: Sequence[str],
    seeds: Sequence[int] = range(25),
    steps: int = 20,
    guidance: float = 7.5,
) -> Callable[[Edit], list[list[float]]]:
    """A labeller that samples `pipe` under the edit, one image a target and seed, and asks `classify`.

    `classify(images, attributes)` gets the pipeline's "pt" images (n, 3, h, w) in 0..1 and returns the share of
    each attribute. The pipeline is left as it was.
    """

    def sample(prompt: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        return pipe(f"image of {prompt}", generator=generator, **options).images

    def label(edit: Edit) -> list[list[float]]:
        with edit.applied(pipe):
            images = [torch.cat([sample(target, seed) for seed in seeds]) for target in targets]
        return [list(classify(batch, attributes)) for batch in images]

    return label
