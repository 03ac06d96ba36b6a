"""IRECE while a pipeline samples: where the unedited model sees the concept, the latents are disturbed (arXiv 2512.22877).

At the chosen points of the trajectory, for each target with text features c (1, length, width):

    1. a pass of the *unedited* U-Net on the latents x (b, c, h, w) under c; its cross-attention A (b, heads, positions, length)
    2. heat = mean of A over heads, the target's own tokens and the chosen layers              (b, h', w')
       M    = [heat - min > tau (max - min)], brought to (h, w) by the nearest cell, widened by `dilate` cells
    3. gate: M counts only where the mean of heat over positions is above a threshold; a softmax over tokens has a
       maximum in every picture, so M alone finds "something" in any
    4. inside M, e fresh noise, alpha and sigma the level of x:
       shrink    x <- sqrt(1 - rho^2) x + rho sigma e       the noise keeps its level, only the signal shrinks
       replace   x <- alpha m + sigma e                     m (c): the mean inside M of the clean latents that pass 1 predicts

and the edited model goes on. Outside M not a bit changes. e is drawn from generators of its own, one for each picture and
point, so that the sampler's noise stays what it is, and a picture is the same whatever it is batched with.

The paper's abstract has: localise by the attention of a standard model, disturb the latents there. All else is our own
construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any
from weakref import ref

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from erasekit.coded_ops import Guidance
from erasekit.errors import EditError
from erasekit.guidances.sampler import Moment, falls, watch
from erasekit.layers import unedited
from erasekit.training.latents import noised, parts
from erasekit.training.loop import generator
from erasekit.training.maps import grid, maps, resized

VARIANTS = ("shrink", "replace")
CONFIG = ("targets", "tokens", "at", "sides", "tau", "dilate", "variant", "rho", "seed")
FEATURES, THRESHOLDS = "features", "thresholds"
"""(n, length, width): what the cross-attention reads for each target; (n, points): above which mass each gate opens."""


def attach(pipe: Any, op: Guidance, scale: float) -> Callable[[], None]:
    """Let IRECE act in every run of the pipeline; what is returned takes it off, in any order with others.

    `scale` multiplies rho (at most 1 comes out); at 0 or below nothing is done. Raises `EditError` for a damaged op, for
    another width of text, and for a pipeline or sampler that cannot be watched.
    """
    _check(pipe, op)
    if scale <= 0:
        return lambda: None
    live = ref(pipe)  # a strong reference would keep the pipeline alive through its own attribute
    return watch(pipe, Defence(lambda: getattr(live(), "unet", None), op, scale=scale))


def rigid(op: Guidance) -> str:
    """Why a `scale` between 0 and 1 does not weaken the op; empty where it does."""
    if op.config.get("variant") != "replace":
        return ""
    return f"{op.label} has no strength to lower: variant=replace exchanges all that is in the mask, at any scale"


class Defence:
    """Steps 1 to 4 for the targets of an op. A cell that the mask of one target has is not disturbed by a later one's."""

    def __init__(self, unet: Callable[[], Any], op: Guidance, *, scale: float = 1.0) -> None:
        config = op.config
        self._unet, self.at, self.tau, self.dilate = unet, config["at"], config["tau"], config["dilate"]
        self.sides, self.tokens, self.replaces = config["sides"], config["tokens"], config["variant"] == "replace"
        self.rho, self.seed = min(1.0, scale * config["rho"]), config["seed"]
        self.features, self.thresholds = op.weights[FEATURES], op.weights[THRESHOLDS]
        self._layers: dict[tuple[int, int], set[str]] = {}

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "b c h w"], moment: Moment) -> Float[Tensor, "b c h w"]:
        """The latents, disturbed where a gate opens; themselves at a moment that is not chosen."""
        point = moment.due(self.at)
        if point is None:
            return latents
        found, done = latents, torch.zeros_like(latents[:, 0], dtype=torch.bool)
        noise = self._noise(latents, moment)
        for i in range(len(self.tokens)):
            heat, prediction = self.look(latents / moment.scale, moment.timestep, i)
            inside = located(heat, latents.shape[2:], tau=self.tau, dilate=self.dilate) & ~done
            inside &= (heat.mean((1, 2)) > float(self.thresholds[i, point]))[:, None, None]
            done |= inside
            found = torch.where(inside[:, None], self._disturbed(latents, prediction, inside, noise, moment), found)
        return found

    def passes(self, count: int, first: int, ignored: Sequence[int]) -> int:
        """One for each target at each point, gate open or not; of points that fall on one step the first alone acts."""
        due = {falls(share, count, ignored) for share in self.at}
        return len(self.tokens) * sum(first <= index < count for index in due)

    def look(
        self, latents: Float[Tensor, "b c h w"], timestep: Any, i: int
    ) -> tuple[Float[Tensor, "b rows columns"], Float[Tensor, "b c h w"]]:
        """(heat, prediction) of the unedited model for target i at latents of scale 1."""
        unet, size = self._unet(), (latents.shape[2], latents.shape[3])
        text = self.features[i : i + 1].to(unet.device, unet.dtype).expand(len(latents), -1, -1)
        known = self._layers.get(size)
        with unedited(unet), maps(unet, lambda name: known is None or name in known) as found:
            prediction = unet(latents.to(unet.dtype), timestep, encoder_hidden_states=text, return_dict=False)[0]
        if known is None:
            known = self._layers[size] = chosen(
                {name: layer.shape[2] for name, layer in found.items()}, size, self.sides
            )
        layers = [layer for name, layer in found.items() if name in known]
        return heat(layers, self.tokens[i], size), prediction.float()

    def _disturbed(self, latents: Tensor, prediction: Tensor, inside: Tensor, noise: Tensor, moment: Moment) -> Tensor:
        wide = latents.float()
        if not self.replaces:  # at the sampler's own scale: with rho 0 not a bit changes
            return shrunk(wide, noise, rho=self.rho, sigma=moment.scale * moment.level[1]).to(latents.dtype)
        clean, _ = parts(wide / moment.scale, prediction, moment.level, moment.prediction)
        return (moment.scale * noised(means(clean, inside), noise, moment.level)).to(latents.dtype)

    def _noise(self, latents: Tensor, moment: Moment) -> Tensor:
        drawn = [torch.randn(latents.shape[1:], generator=generator(self.seed, "irece", row, moment.index))
                 for row in moment.rows]  # fmt: skip
        return torch.stack(drawn).to(latents.device)


def chosen(positions: Mapping[str, int], size: tuple[int, int], sides: Sequence[int]) -> set[str]:
    """The layers whose map has the latents' side divided by one of `sides`: of the numbers of positions that there are
    the nearest in ratio, of two as near the coarser."""
    area = size[0] * size[1]
    counts = set(positions.values())
    wanted = {min(counts, key=lambda count: (abs(log(side**2 * count / area)), count)) for side in sides}
    return {name for name, count in positions.items() if count in wanted}


def heat(
    layers: Sequence[Float[Tensor, "b heads _ length"]], tokens: Sequence[int], size: tuple[int, int]
) -> Float[Tensor, "b rows columns"]:
    """The mean over heads, tokens and layers, on the grid of the finest layer. `size`: the latents' (h, w)."""
    each = [layer[..., list(tokens)].mean((1, 3)).unflatten(1, grid(layer.shape[2], size)) for layer in layers]
    finest = max((one.shape[1:] for one in each), key=lambda shape: shape[0] * shape[1])
    return torch.stack([interpolate(one[:, None], size=tuple(finest), mode="nearest")[:, 0] for one in each]).mean(0)


def located(
    heat: Float[Tensor, "b rows columns"], size: Sequence[int], *, tau: float, dilate: int
) -> Bool[Tensor, "b h w"]:
    """Where the heat, scaled to [0, 1] picture by picture, is above `tau`, and `dilate` cells around.

    That is multiplied out: heat that is the same everywhere says nothing of where, and has nothing inside and no 0/0.
    """
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    inside = resized(heat - low > tau * (high - low), (size[0], size[1]))
    return max_pool2d(inside[:, None].float(), 2 * dilate + 1, 1, dilate)[:, 0] > 0.5


def shrunk(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], *, rho: float, sigma: float
) -> Float[Tensor, "b c h w"]:
    """sqrt(1 - rho^2) x + rho sigma e: noise of the same level, less signal."""
    return (1 - rho**2) ** 0.5 * latents + rho * sigma * noise


def means(clean: Float[Tensor, "b c h w"], inside: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """Everywhere the mean of each channel inside the mask; 0 where nothing is inside."""
    weight = inside[:, None].to(clean.dtype)
    mean = (clean * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)
    return mean.expand_as(clean)


def _check(pipe: Any, op: Guidance) -> None:
    """`EditError` naming what a damaged op lacks, or what does not fit the model."""
    lacks = [name for name in CONFIG if name not in op.config]
    lacks += [name for name in (FEATURES, THRESHOLDS) if name not in op.weights]
    if lacks:
        raise EditError(f"{op.label} lacks {', '.join(lacks[:3])}: its file is damaged, fit it again")
    count, features = len(op.config["tokens"]), op.weights[FEATURES]
    if len(features) != count or op.weights[THRESHOLDS].shape != (count, len(op.config["at"])):
        raise EditError(f"{op.label} does not have features and thresholds for each target: fit it again")
    if op.config["variant"] not in VARIANTS:
        raise EditError(f"{op.label} has the variant {op.config['variant']!r}, unknown here (known: {', '.join(VARIANTS)}): "
                        "update erasekit")  # fmt: skip
    width = getattr(getattr(getattr(pipe, "unet", None), "config", None), "cross_attention_dim", None)
    if width != features.shape[2]:
        raise EditError(f"{op.label} has text features of width {features.shape[2]}, the model reads {width}: use the edit's "
                        "own base model")  # fmt: skip
