"""What must stay, as a second moment: the stand-in for the papers' cached sums over half a million captions.

MACE (arXiv 2403.06135) and TRCE (arXiv 2503.07389) add `w sum_p e_p e_p^T` to their objective, over all rows of all
COCO captions (about 6e5) and, in MACE, of a list of names. These caches are not ours to ship and a model is needed to
make them, so here the sum is `count` times the mean over captions that are encoded at fit time: a file of the user's,
or two dozen generic ones. The mean is over captions, of the sum over a caption's rows (padding included).

Few captions visit few directions, where half a million visit all: `eps` adds that fraction of the mean diagonal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from erasekit.backbones.base import Backbone
from erasekit.errors import UsageError
from erasekit.methods import Progress
from erasekit.methods._captions import GENERIC as CAPTIONS
from erasekit.methods._features import BATCH, PROBES
from erasekit.methods._moments import moment

COCO_CAPTIONS = 6e5
"""About how many captions the papers' caches sum over (COCO 2014, train and val)."""


@dataclass(frozen=True)
class Kept:
    """The prior: tr(dW C dW^T) with C = `matrix` + `ridge` I, both float64, of which `captions` is the captions' part and
    `captions_ridge` the ridge that they alone would have; `probes` (d, k) to measure the drift on; `record` what it is
    made of, for the self-check."""

    matrix: Tensor
    captions: Tensor
    ridge: float
    captions_ridge: float
    probes: Tensor
    record: dict[str, float | str]


@dataclass(frozen=True)
class Weights:
    """Effective weights: of the mean caption's moment, and of each retained prompt's; `ridge` and `eps` add
    (ridge + eps x mean diagonal) I."""

    captions: float
    retained: float
    ridge: float
    eps: float

    def added(self, matrix: Tensor) -> float:
        """What is added to the diagonal of this prior."""
        return self.ridge + self.eps * float(matrix.diagonal().mean())


def gather(
    backbone: Backbone,
    retained: Sequence[str],
    weights: Weights,
    *,
    prior_file: str | None,
    cache: Path | None,
    progress: Progress,
) -> Kept:
    """The prior of captions and retained prompts. What has no weight enters no sum; retained prompts are measured
    in any case, and captions where nothing is retained. Raises `UsageError` for a file that cannot be read."""
    captions = read_captions(prior_file)
    some = captions if weights.captions else () if retained else captions[:BATCH]
    general, own = (
        moment(backbone, prompts, rows="all", cache=cache, progress=progress, what=f"encoding the {what}")
        for prompts, what in ((some, "captions"), (retained, "retained"))
    )
    shared = weights.captions / max(1, general.prompts) * general.total
    matrix = shared + weights.retained * own.total
    ridge = weights.added(matrix)
    record: dict[str, float | str] = {
        "captions": general.prompts if weights.captions else 0,
        "captions_sha256": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
        "caption_weight": weights.captions,
        "retained_prompts": own.prompts if weights.retained else 0,
        "retained_weight": weights.retained,
        "ridge": ridge,
    }
    probes = (own if retained else general).probes
    few = probes[:: -(-len(probes) * probes.shape[1] // PROBES)].flatten(0, 1).T
    return Kept(matrix, shared, ridge, weights.added(shared), few, record)


def read_captions(path: str | None) -> tuple[str, ...]:
    """The distinct captions of a UTF-8 text file, one a line; without a file, the built-in ones.

    Raises `UsageError`, naming the file, where there is none, nothing in it, or another encoding.
    """
    if path is None:
        return CAPTIONS
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"prior_file {path} cannot be read ({error.strerror}): give a text file of captions") from None
    except UnicodeDecodeError:
        raise UsageError(f"prior_file {path} is not UTF-8: save it as UTF-8 text, one caption a line") from None
    found = tuple(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not found:
        raise UsageError(f"prior_file {path} has no captions: give one a line")
    return found
