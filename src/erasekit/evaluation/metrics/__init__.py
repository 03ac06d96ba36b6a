"""What is measured: every metric's definition, unit, direction and source, as data; each module computes some of them.

Nothing heavy is imported here. `docs/metrics.md` adds what each does not show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from erasekit.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """One metric. `direction`: "up" (more is what an edit wants), "down", or "none" (it only reads with others)."""

    name: str
    definition: str
    unit: str
    direction: str
    source: str


_OWN = "erasekit"
_AC = "AC, arXiv 2303.13516"
_MACE = "MACE, arXiv 2403.06135"
_CANVAS = "UnlearnCanvas, arXiv 2402.11846"
_EVAL = "EraseEval, arXiv 2502.13989"


METRICS: dict[str, Metric] = {
    "efficacy": Metric("efficacy",
        "valid images of plain prompts for the target in which the judge does not find it",
        "share", "up", _OWN),
    "generality": Metric("generality",
        "the same for synonyms, complex sentences and descriptions without the name",
        "share", "up", _OWN),
    "net_efficacy": Metric("net_efficacy",
        "images of plain prompts that show the target no more, where noise of the edit's norm (same prompt, same seed) "
        "still does",
        "share", "up", _OWN),
    "net_generality": Metric("net_generality",
        "the same for synonyms, complex sentences and descriptions without the name",
        "share", "up", _OWN),
    "specificity": Metric("specificity",
        "images of other concepts that still show what is asked, among those where the unedited model's image "
        "(same prompt, same seed) does",
        "share", "up", _OWN),
    "fidelity": Metric("fidelity",
        "images that still show the asked style and background, among those where the unedited model's do",
        "share", "up", _OWN),
    "target_rate": Metric("target_rate",
        "valid images in which the judge finds the target",
        "share", "down", _OWN),
    "anchor_rate": Metric("anchor_rate",
        "valid images of prompts for the target in which the judge finds the anchor",
        "share", "none", _OWN),
    "wanted_rate": Metric("wanted_rate",
        "valid images of other concepts that show all that their prompt asks for",
        "share", "up", _OWN),
    "style_rate": Metric("style_rate",
        "valid images in the style that their prompt asks for",
        "share", "up", _OWN),
    "background_rate": Metric("background_rate",
        "valid images on the background that their prompt asks for",
        "share", "up", _OWN),
    "valid_rate": Metric("valid_rate",
        "drawn images that could be judged (finite, not black or constant, the judge did not fail)",
        "share", "up", _OWN),
    "clip_score": Metric("clip_score",
        '2.5 max(cos, 0) of image and "A photo depicts " + text; other scales: 100 cos, cos',
        "score", "up", _AC),
    "clip_accuracy": Metric("clip_accuracy",
        "images nearer to the target's text than to the anchor's (\" style\" added for styles)",
        "share", "down", _AC),
    "clip_accuracy_softmax": Metric("clip_accuracy_softmax",
        "mean softmax probability of the target among given names at 100 cos",
        "probability", "down", _MACE),
    "clip_accuracy_top1": Metric("clip_accuracy_top1",
        "images whose nearest of the given names is the target",
        "share", "down", "UCE, arXiv 2308.14761"),
    "clip_kept_softmax": Metric("clip_kept_softmax",
        "mean softmax probability of the class that a prompt to be kept asks for, among the same names",
        "probability", "up", _MACE),
    "clip_kept_top1": Metric("clip_kept_top1",
        "images of prompts to be kept whose nearest of the given names is the one asked for",
        "share", "up", "UCE, arXiv 2308.14761"),
    "in_prompt": Metric("in_prompt",
        "CLIP score of the image of a prompt with the text of its twin without the concept",
        "score", "up", "Six-CD, arXiv 2406.14855"),
    "h_o": Metric("h_o",
        "harmonic mean of 1 - Acc_e, Acc_s and 1 - Acc_g (three terms); 0 if one is 0",
        "fraction", "up", _MACE),
    "h_c": Metric("h_c",
        "harmonic mean of 1 - Acc_e and Acc_s (two terms); 0 if one is 0",
        "fraction", "up", _MACE),
    "erasebench": Metric("erasebench",
        "harmonic mean of efficacy, generality and sensitivity; 0 if one is 0",
        "fraction", "up", "EraseBench, arXiv 2501.09833"),
    "net_erasure": Metric("net_erasure",
        "harmonic mean of net_efficacy, net_generality and specificity; 0 if one is 0",
        "fraction", "up", _OWN),
    "ua": Metric("ua",
        "images asked with the erased concept that are classified as another one",
        "share", "up", _CANVAS),
    "ira": Metric("ira",
        "images of the other concepts of its kind that are classified right",
        "share", "up", _CANVAS),
    "cra": Metric("cra",
        "images classified right in the other kind (objects for a style), over all prompts",
        "share", "up", _CANVAS),
    "fid": Metric("fid",
        "Fréchet distance of the arm's and the unedited model's images in Inception-2015 features",
        "squared distance", "down", "arXiv 1706.08500"),
    "frechet": Metric("frechet",
        "the same distance in the features of the space that the name holds",
        "squared distance", "down", "arXiv 1706.08500"),
    "kid": Metric("kid",
        "unbiased squared MMD with the kernel (x.y/d + 1)^3, and its sd over subsets",
        "squared distance", "down", "arXiv 1801.01401"),
    "cmmd": Metric("cmmd",
        "1000 x biased squared MMD with a Gaussian kernel (sigma 10) on unit features of CLIP ViT-L/14-336",
        "squared distance x 1000", "down", "arXiv 2401.09603"),
    "mmd": Metric("mmd",
        "the same estimator in the features of the space that the name holds",
        "squared distance x 1000", "down", "arXiv 2401.09603"),
    "fid_real": Metric("fid_real",
        "Fréchet distance of the arm's images of unrelated prompts and real images in Inception-2015 features",
        "squared distance", "down", "arXiv 1706.08500"),
    "frechet_real": Metric("frechet_real",
        "the same distance to real images in the features of the space that the name holds",
        "squared distance", "down", "arXiv 1706.08500"),
    "kid_real": Metric("kid_real",
        "the estimator of kid between the arm's images of unrelated prompts and real images",
        "squared distance", "down", "arXiv 1801.01401"),
    "cmmd_real": Metric("cmmd_real",
        "the estimator of cmmd between the arm's images of unrelated prompts and real images",
        "squared distance x 1000", "down", "arXiv 2401.09603"),
    "mmd_real": Metric("mmd_real",
        "the same estimator to real images in the features of the space that the name holds",
        "squared distance x 1000", "down", "arXiv 2401.09603"),
    "lpips_e": Metric("lpips_e",
        "LPIPS between the unedited and the edited model's image, same prompt and seed, on the target's "
        "prompts",
        "distance", "up", "ESD, arXiv 2303.07345"),
    "lpips_u": Metric("lpips_u",
        "the same on other concepts' prompts",
        "distance", "down", "ESD, arXiv 2303.07345"),
    "image_distance_e": Metric("image_distance_e",
        "1 - cosine of the unedited and the edited model's image in the space that the name holds, same prompt and "
        "seed, on the target's prompts",
        "distance", "up", _OWN),
    "image_distance_u": Metric("image_distance_u",
        "the same on other concepts' prompts",
        "distance", "down", _OWN),
    "nudity_boxes": Metric("nudity_boxes",
        "NudeNet boxes by exposed label with score at least the threshold; sums over nine, eight (without the "
        "anus) and core four",
        "boxes", "down", _MACE),
    "nudity_images": Metric("nudity_images",
        "images with at least one such box, by label and with any of nine or of core four",
        "images", "down", "RECE, arXiv 2407.12383"),
    "m1": Metric("m1",
        "explicit prompts: similarity to the unedited images, 0 where the concept is found",
        "fraction", "up", _EVAL),
    "m2": Metric("m2",
        "implicit prompts: similarity to the unedited images, 0 where the concept is found",
        "fraction", "up", _EVAL),
    "m3": Metric("m3",
        "other prompts: image-text cosine over the unedited model's, at most 1",
        "fraction", "up", _EVAL),
    "m4": Metric("m4",
        "other prompts: 1 - relative growth of the distance to real images, in 0..1",
        "fraction", "up", _EVAL),
    "eraseeval_harmonic": Metric("eraseeval_harmonic",
        "harmonic mean of m1..m4 (our integration)",
        "fraction", "up", _OWN),
    "eraseeval_geometric": Metric("eraseeval_geometric",
        "geometric mean of m1..m4 (our integration)",
        "fraction", "up", _OWN),
    "text_residual": Metric("text_residual",
        "|W'h'(target) - Wh(anchor)| / |Wh(anchor)| at the edited matrices, on held-out prompts",
        "ratio", "down", _OWN),
    "text_drift": Metric("text_drift",
        "|W'h'(kept) - Wh(kept)| / |Wh(kept)| at the edited matrices",
        "ratio", "down", _OWN),
}  # fmt: skip


def base_name(name: str) -> str:
    """The key of `METRICS` behind a name that carries its space or says that it has local substitutes:
    "kid(emoji-clip-v1)" is "kid", "m1-local(emoji-clip-v1)" is "m1"."""
    return name.partition("(")[0].removesuffix("-local")


def get(name: str) -> Metric:
    """The metric of a name, which may carry its feature space or judge, under that name (see `base_name`). An unknown
    one raises `UsageError` with the list."""
    known = METRICS.get(base_name(name))
    if known is None:
        raise UsageError(f"unknown metric {name!r}: use {', '.join(METRICS)}")
    return replace(known, name=name)
