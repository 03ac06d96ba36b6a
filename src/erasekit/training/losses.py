"""Score-distillation losses: pure functions of predictions, whatever the model predicts.

A prediction is eps, v or a flow's velocity, (b, c, h, w). Every target here is a combination of predictions at one
latent and timestep whose weights sum to one, so it means the same in each of these spaces (v - v' and eps - eps'
differ by a factor of the level alone).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def negative_guidance(
    host: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    anchor: Float[Tensor, "b c h w"],
    *,
    eta: float | int,
) -> Float[Tensor, "b c h w"]:
    """host - (eta + 1) (target - anchor): what guidance away from the target predicts.

    With host = target it is anchor - eta (target - anchor), arXiv 2303.07345 eq. 6 with the empty prompt as anchor;
    arXiv 2312.16145 has the same with a surrogate. With another host only the direction of the target is removed.
    """
    return host - (eta + 1) * (target - anchor)


def squared_error(
    student: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, ""]:
    """The mean over elements of (student - wanted)^2; under a mask the mean inside it, sample by sample. An empty mask
    counts as zero."""
    error = (student - wanted).square()
    if mask is None:
        return error.mean()
    inside = (error * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * error.shape[1]).clamp_min(1)
    return inside.mean()


def anchor_matching(
    student: Float[Tensor, "b c h w"], anchor: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, ""]:
    """The mean squared distance of the target's prediction from the anchor's at the same latents, which gets no gradient;
    with the noise itself as `anchor` it is the noise-based form. Source: arXiv 2303.13516, section 3.1."""
    return squared_error(student, anchor.detach(), mask)


def preservation(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], *, weight: float | int = 1
) -> Float[Tensor, ""]:
    """`weight` times the mean squared distance from the frozen model's prediction, for what must stay."""
    return weight * squared_error(student, teacher)
