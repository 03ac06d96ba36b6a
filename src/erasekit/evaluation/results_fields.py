"""The fields of `results.json`, schema version 1, as tables: what `results.py` checks and `docs/results.md` describes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
KINDS = ("base", "edit", "random", "never")


@dataclass(frozen=True)
class Field:
    """One field: what it holds, in a few words. `kind` is a key of `TYPES` or, for tables, of `FIELDS`."""

    kind: str
    doc: str
    required: bool = True
    null: bool = False


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a text", lambda value: isinstance(value, str)),
    "number": ("a finite number", _number),
    "count": ("a whole number from 0 on", lambda value: isinstance(value, int) and _number(value) and value >= 0),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "texts": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
    "list": ("a list", lambda value: isinstance(value, list)),
}

_INTERVAL = {
    "value": Field("number", "the estimate; null where nothing could be counted", null=True),
    "low": Field("number", "lower end of the 95 % interval; null where there is none", null=True),
    "high": Field("number", "upper end of the 95 % interval; null where there is none", null=True),
    "n": Field("count", "images (or prompts, as the metric's definition says) behind the estimate"),
}
_WHERE = {
    "metric": Field("text", "name of the metric"),
    "arm": Field("text", "the arm that was measured"),
    "group": Field("text", "the prompts' group; null: all groups of the metric together", null=True),
    "target": Field("text", "the target; null: all targets together", null=True),
}
FIELDS: dict[str, dict[str, Field]] = {
    "results": {
        "erasekit_results": Field("count", "version of this schema: 1"),
        "created_by": Field("created_by", "program, versions and command"),
        "suite": Field("suite", "what was asked, and who judged"),
        "model": Field("model", "the unedited model"),
        "arms": Field("arm*", "all that drew images"),
        "counts": Field("object", "arm -> images by status: `ok`, `failed`, `invalid`"),
        "metrics": Field("metric*", "the estimates"),
        "differences": Field("difference*", "paired differences: to the unedited model, and of every pair of edits"),
        "rows": Field("text", "file of the single images, relative to this one"),
        "warnings": Field("texts", "sentences that a reader must see"),
        "attacks": Field("attack*", "attacks that were named with `--attacks`; without it the file knows of none", False),
        "published": Field("object", "the figures of a paper that a plan reruns: source, model, note, figures", False),
        "labels": Field("object", "target -> the suite's words that count as it (default: the target itself)", False),
        "extractors": Field("extractor*", "what compared pixels beside the judges, with the weights that were given", False),
        "real": Field("real", "the real images that distances `..._real` are to; without such distances the file knows of none",
                      required=False),
        "omitted": Field("texts", "what is not stated for want of images, a sentence each", False),
    },
    "created_by": {
        "erasekit": Field("text", "version of erasekit"),
        "command": Field("text", "the command, to be run again"),
        "versions": Field("object", "library -> version"),
        "plan_sha256": Field("text", "sha256 of the plan's file, where the command names one; with real images, of that hash "
                             "and theirs", required=False),
    },
    "suite": {
        "name": Field("text", "name of the suite"),
        "version": Field("count", "version of the suite"),
        "digest": Field("text", "sha256 of the suite's content"),
        "title": Field("text", "the suite in a few words"),
        "sampling": Field("object", "steps, guidance, scheduler, eta, size"),
        "judges": Field("judge*", "the judges, the deciding one first"),
        "kind": Field("text", "what a target is: object, style, person or unsafe", required=False),
        "languages": Field("texts", "languages of the prompts", required=False),
    },
    "judge": {
        "name": Field("text", "versioned name with label count and threshold"),
        "weights_sha256": Field("text", "sha256 of the judge's weights; of a folder's settings, labels and tokenizer too"),
        "licence": Field("text", "licence of the judge"),
        "calibration": Field("object", "the judge's own error rates; empty if not measured"),
        "words": Field("object", "the suite's word -> the judge's label; it finds no others (default: the same words)", False),
    },
    "real": {
        "name": Field("text", "name of their folder, or `emoji` for the emoji world's reference pictures"),
        "sha256": Field("text", "sha256 over the hashes of all images, in the hashes' order"),
        "images": Field("count", "how many they are"),
    },
    "extractor": {
        "name": Field("text", "versioned name, as estimates have it under `judge`"),
        "weights_sha256": Field("text", "sha256 of the given weights"),
    },
    "model": {
        "id": Field("text", "name of the model"),
        "sha256": Field("text", "sha256 of its weights"),
    },
    "arm": {
        "arm": Field("text", "`base`, `edit:NAME`, `random:NAME`, `never:CONCEPT`"),
        "kind": Field("text", "`base`, `edit`, `random` (same norm, random direction) or `never` (never knew)"),
        "label": Field("text", "name for people"),
        "edit": Field("edit", "the edit; null where none is applied", null=True),
        "seconds": Field("number", "time to draw the images; null: see `timing.json`", null=True),
        "images": Field("count", "images of this arm"),
    },
    "edit": {
        "file": Field("text", "name of the edit's file"),
        "sha256": Field("text", "sha256 of that file"),
        "method": Field("text", "the method"),
        "parameters": Field("object", "its parameters"),
        "targets": Field("texts", "the targets"),
        "anchors": Field("texts", "their anchors"),
        "retain": Field("texts", "the concepts that the edit was told to keep", required=False),
        "seed": Field("number", "the seed that it was fitted with", required=False),
        "bytes": Field("count", "size of the edit"),
        "self_check": Field("object", "the edit's self-check, measured without images"),
    },
    "metric": {
        **_WHERE, **_INTERVAL,
        "interval": Field("text", "how the interval was made; empty for none"),
        "unit": Field("text", "unit; `share` is shown in per cent"),
        "direction": Field("text", "`up`: more is better, `down`: less is better, `none`"),
        "judge": Field("text", "judge or feature extractor behind it; empty for none"),
        "pessimistic": Field("object", "the rate with failed and invalid images counted against the arm", required=False),
        "floor": Field("number", "value of unrelated images, for a similarity or a distance; of a distance to real images, "
                       "that of real images from others of them", required=False, null=True),
        "ceiling": Field("number", "value of the best possible images, likewise", required=False, null=True),
        "sd": Field("number", "standard deviation over subsets, of a distance of two sets", required=False, null=True),
        "raw": Field("number", "value before it was clipped to 0..1", required=False),
        "note": Field("text", "what a reader of this number must know", required=False),
        "substitute": Field("text", "what stands in for the protocol's own judges and data", required=False),
        "terms": Field("texts", "what a mean is of", required=False),
        "names": Field("count", "names among which the image's nearest is sought; among others it is another number", False),
        "threshold": Field("number", "score from which boxes count, whatever the judge's own threshold", required=False),
        "real": Field("text", "sha256 of the real images that the distance is to", required=False),
        "corrected": Field("object", "the rate without the judge's known errors, with their tpr and fpr", required=False),
    },
    "difference": {
        **_WHERE, **_INTERVAL,
        "against": Field("text", "the arm that is subtracted"),
        "p": Field("number", "two-sided p value, not corrected", null=True),
        "p_holm": Field("number", "the same after Holm's correction: over all lines against the unedited model, or over all "
                        "between edits", required=False, null=True),
        "judge": Field("text", "judge behind it", required=False),
        "interval": Field("text", "how the interval was made; empty for none", required=False),
    },
    "attack": {
        "name": Field("text", "the attack"),
        "arm": Field("text", "the arm that was attacked"),
        "target": Field("text", "the target that it tried to bring back"),
        "budget": Field("text", "what the attacker could spend"),
        **_INTERVAL,
        "controls": Field("control*", "what the same attack gives where it proves nothing, with the gaps", required=False),
        "note": Field("text", "what a reader of this number must know", required=False),
    },
    "control": {
        "name": Field("text", "`unedited`, `scrambled` or `never-knew`"),
        **_INTERVAL,
        "gap": Field("number", "the attack's estimate minus the control's; null where either has none", null=True),
        "gap_low": Field("number", "lower end of the gap's 95 % interval", null=True),
        "gap_high": Field("number", "upper end of the gap's 95 % interval", null=True),
    },
}  # fmt: skip
