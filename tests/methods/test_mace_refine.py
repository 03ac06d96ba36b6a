"""MACE's refinement: the paper's oracles for the first and third stage, parity with the plain loop, prior and options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.backbones.base import Tokens
from erasekit.concept import EraseRequest
from erasekit.errors import UsageError
from erasekit.methods import _prior, resolve
from erasekit.methods._cross import silent
from erasekit.methods._features import PROBES
from erasekit.methods._mace_fusion import fuse, fusion_metric
from erasekit.methods._templates import (
    OBJECT,
    PROMPT,
    STYLE,
    Pair,
    encoded_pairs,
    fill,
    prompt_pairs,
    shared_rows,
    unread,
)
from erasekit.methods.mace_refine import (
    MACERefine,
    MACERefineConfig,
    gather_columns,
    refine,
    solve_right,
)  # fmt: skip

D, OUT = 12, 7


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def refined(w: Tensor, x: Tensor, y: Tensor, prior: Tensor, lamb: float) -> Tensor:
    return w + w @ solve_right(x @ x.T, y @ x.T, prior, ridge=lamb)[0]


def textbook(w: Tensor, x: Tensor, y: Tensor, p: Tensor, l1: float, lamb: float) -> Tensor:
    """The paper's formula, one column at a time; p has the prior's columns."""
    top, bottom = lamb * w, lamb * torch.eye(w.shape[1], dtype=w.dtype)
    for f, g in zip(x.T, y.T, strict=True):
        top, bottom = top + torch.outer(w @ g, f), bottom + torch.outer(f, f)
    for e in p.T:
        top, bottom = top + l1 * torch.outer(w @ e, e), bottom + l1 * torch.outer(e, e)
    return top @ torch.linalg.inv(bottom)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(OUT, D, seed=1), draw(D, 5, seed=2), draw(D, 5, seed=3), draw(D, 2 * D, seed=4)


# -- oracle 1: the solve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("l1", "lamb"), [(0.0, 1e-3), (1.0, 0.0), (1e-6, 7.0)])
def test_oracle_1_generic_phrase_equal_to_the_target_changes_nothing(problem, l1: float, lamb: float) -> None:
    w, x, _, p = problem
    assert torch.equal(refined(w, x, x, l1 * p @ p.T, lamb), w)


def test_oracle_1_a_prior_without_bound_leaves_the_weights(problem) -> None:
    w, x, y, p = problem
    for l1, lamb in ((0.0, 1e12), (1e12, 0.0)):
        assert (refined(w, x, y, l1 * p @ p.T, lamb) - w).norm() < 1e-8
    assert (refined(w, x, y, 0 * p @ p.T, 1e-3) - w).norm() > 0.1


def test_equals_the_textbook_and_is_the_minimum(problem) -> None:
    w, x, y, p = problem
    l1, lamb = 0.3, 0.7
    found = refined(w, x, y, l1 * p @ p.T, lamb)
    assert torch.allclose(found, textbook(w, x, y, p, l1, lamb), rtol=1e-10, atol=1e-12)
    found.requires_grad_()
    value = (found @ x - w @ y).square().sum() + l1 * ((found - w) @ p).square().sum()
    (gradient,) = torch.autograd.grad(value + lamb * (found - w).square().sum(), found)
    assert gradient.norm() < 1e-10


# -- oracle 2: which rows face each other -----------------------------------------------------------------------


def facing(model, target: str, anchor: str, phrase: str) -> tuple[list[int], list[int]]:
    tokens = model.tokenize([target, anchor])
    mine, its = (ids[: end + 1].tolist() for ids, end in zip(tokens.ids, tokens.ends, strict=True))
    inside = {row for span in model.concept_spans(target, phrase) for row in span}
    return shared_rows(mine, its, length=77, phrase=inside)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_oracle_2_rows_of_equal_number_without_the_phrase(family: str, request) -> None:
    model = backbone(request.getfixturevalue(family))
    assert facing(model, "a photo of cat", "a photo of cat", "none") == (list(range(77)), list(range(77)))
    # BOS a photo of [horse: five letters] in style EOS pad...  against one token in the same place
    mine, its = facing(model, "a photo of horse in style", "a photo of cat in style", "horse")
    assert mine == [0, 1, 2, 3, *range(9, 77)] and its == [0, 1, 2, 3, *range(5, 73)]
    back, forth = facing(model, "a photo of cat in style", "a photo of horse in style", "cat")
    assert back == its and forth == mine
    mine, its = facing(model, "a photo of cat in style", "a photo of in style", "cat")  # an empty anchor
    assert mine == [0, 1, 2, 3, *range(5, 77)] and its == [0, 1, 2, 3, *range(4, 76)]


def test_oracle_2_a_word_that_both_phrases_have_is_left_out_and_no_row_is_used_twice(sd1) -> None:
    mine, its = facing(backbone(sd1), "a photo of the cat and fox", "a photo of the dog and fox", "the cat")
    assert mine == its == [0, 1, 2, 3, 6, 7, *range(8, 77)]
    mine, its = shared_rows([0, 5, 5, 9], [0, 5, 9], length=8)
    assert (mine, its) == ([0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6])


# -- on a model -------------------------------------------------------------------------------------------------


def fit(pipe, targets: object = "cat", *, anchor: object = "dog", retain: tuple = (), **options: object):
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    return MACERefine().fit(backbone(pipe), request, MACERefineConfig(**options))


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """Rows of transformers' own encoder and the position of the first EOS."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        rows = pipe.text_encoder(batch["input_ids"])[0][0].double()
    return rows, int(batch["attention_mask"].sum()) - 1


def template_columns(pipe, template: str, target: str, anchor: str) -> tuple[Tensor, Tensor]:
    """Shared rows by counting the template's own tokens, and not by comparing ids."""
    before, after = (len(pipe.tokenizer(part)["input_ids"]) - 2 for part in template.split("{}"))
    (f, end_f), (g, end_g) = (transformers_rows(pipe, " ".join(template.format(c).split())) for c in (target, anchor))
    count = 77 - max(end_f, end_g) + after
    x = torch.cat([f[: 1 + before], f[end_f - after : end_f - after + count]])
    return x.T, torch.cat([g[: 1 + before], g[end_g - after : end_g - after + count]]).T


def few(columns: Tensor) -> Tensor:
    """No more columns than rows, with the same sum of outer products: all that the formula reads of them."""
    values, vectors = torch.linalg.eigh(columns @ columns.T)
    return vectors * values.clamp(min=0).sqrt()


@pytest.mark.parametrize(("family", "own"), [("sd1", None), ("sd2", 1e-2)])
def test_equals_the_textbook_on_a_pipeline(family: str, own: float | None, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    wanted, kept, count_kept = [("cat", "dog"), ("red fox", "a cat"), ("horse", "")], ("moon", "owl"), 2
    scale, weight, count = 1e-2, 30.0, 900.0
    edit = fit(
        pipe, [t for t, _ in wanted], anchor=[a for _, a in wanted], retain=kept, refine_scale=own, preserve_scale=scale,
        preserve_weight=weight, prior_count=count, retain_templates=count_kept, lamb=0.5, eps=1e-6,
    )  # fmt: skip
    columns = [template_columns(pipe, template, t, a) for t, a in wanted for template in OBJECT]
    x, y = (torch.cat(blocks, 1) for blocks in zip(*columns, strict=True))
    l1 = own or scale**2
    general = [(l1 * count / len(_prior.CAPTIONS)) ** 0.5 * transformers_rows(pipe, c)[0].T for c in _prior.CAPTIONS]
    names = [transformers_rows(pipe, template.format(k))[0].T for k in kept for template in OBJECT[:count_kept]]
    names = [(l1 * weight / count_kept) ** 0.5 * rows for rows in names]
    p = torch.cat([*general, *names], 1)
    ridge = 0.5 + 1e-6 * float(p.square().sum(1).mean())
    (x, y), p = few(torch.cat([x, y])).split(len(x)), few(p)
    for op in edit.ops:
        w = pipe.unet.get_submodule(op.module).weight.detach()
        expected = textbook(w.double(), x, y, p, 1.0, ridge) - w.double()
        assert (op.delta(w).double() - expected).norm() / expected.norm() < 5e-5
    assert len(edit.ops) == 2 * sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
    assert edit.self_check["prior"]["ridge"] == pytest.approx(ridge, rel=1e-5)


def test_oracle_1_on_a_model_and_the_next_stages_start(sd1) -> None:
    model = backbone(sd1)
    with torch.no_grad():
        same = [Pair("a photo of cat", "a photo of cat", "cat")]
        assert refine(model, same, MACERefineConfig()).right.norm() < 1e-12
        pairs = prompt_pairs(EraseRequest.build("cat", anchor="dog"), OBJECT)
        found = refine(model, pairs, MACERefineConfig())
    op = fit(sd1).ops[0]
    w = sd1.unet.get_submodule(op.module).weight.detach()
    assert torch.allclose(found.refined(w).float(), w + op.delta(w), atol=1e-6)


def test_prompts_are_reduced_as_they_come(sd1) -> None:
    model = backbone(sd1)
    pairs = prompt_pairs(EraseRequest.build(["cat", "fox", "horse", "owl", "sun"], anchor="dog"), OBJECT)
    sizes = [len(batch) for batch in encoded_pairs(model, pairs, whole=False, progress=silent)]
    assert max(sizes) <= 16 and sum(sizes) == len(pairs) == 150
    columns = gather_columns(model, pairs, progress=silent)
    assert columns.x.shape == columns.y.shape and 32 <= columns.x.shape[1] <= PROBES
    assert columns.xx.shape == columns.yx.shape == (32, 32)
    turned = gather_columns(model, pairs[::-1], progress=silent)
    assert torch.allclose(turned.xx, columns.xx) and torch.allclose(turned.yx, columns.yx)


# -- the prior --------------------------------------------------------------------------------------------------


def test_effective_weights_are_written_into_the_self_check(sd1) -> None:
    prior = fit(sd1, retain=("fox",)).self_check["prior"]
    assert prior["captions"] == len(_prior.CAPTIONS) and prior["retained_prompts"] == 30
    assert prior["caption_weight"] == pytest.approx(6e-3) and prior["retained_weight"] == pytest.approx(8e-4 / 30)
    few, own = MACERefineConfig(retain_templates=3).weights, MACERefineConfig(refine_scale=1e-4).weights
    assert few.captions == pytest.approx(6e-3) and few.retained == pytest.approx(8e-4 / 3)
    assert own.captions == pytest.approx(60) and own.retained == pytest.approx(8 / 30)


def test_retaining_protects_and_a_weight_of_zero_is_said(sd1) -> None:
    held = fit(sd1, retain=("fox",), preserve_weight=1e12).self_check
    free = fit(sd1, retain=("fox",), preserve_weight=0.0).self_check
    assert held["retained_drift"] < 1e-2 * free["retained_drift"]
    assert any("not protected" in line for line in free["warnings"])
    assert not any("not protected" in line for line in held["warnings"])


def test_a_file_of_captions_takes_the_place_of_the_built_in_ones(sd1, tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a photo of the fox\n\n  a photo of the fox \ncat and dog\n", encoding="utf-8")
    assert _prior.read_captions(str(file)) == ("a photo of the fox", "cat and dog")
    check = fit(sd1, prior_file=str(file)).self_check["prior"]
    assert check["captions"] == 2 and check["captions_sha256"] != fit(sd1).self_check["prior"]["captions_sha256"]
    file.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        fit(sd1, prior_file=str(file))
    file.write_text("\n \n")
    with pytest.raises(UsageError, match="no captions"):
        fit(sd1, prior_file=str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        fit(sd1, prior_file=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": "people"}, "object"),
        ({"refine_scale": 0.0}, "refine_scale"),
        ({"preserve_scale": 0.0}, "singular"),
        ({"prior_count": 0.0}, "singular"),
        ({"lamb": float("nan")}, "lamb"),
        ({"eps": 0.0}, "eps"),
        ({"retain_templates": 0}, "retain_templates"),
    ],
)
def test_bad_parameters_raise_naming_the_field(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MACERefineConfig(**options)


def test_presets_have_the_papers_values() -> None:
    def config(name: str) -> MACERefineConfig:
        return MACERefineConfig(**resolve(f"mace-refine:{name}")[1].values)

    weights = {1: 8e3, 5: 5e4, 10: 8e4, 50: 1.2e5, 100: 2e5}
    assert {n: config(f"people-{n}").preserve_weight for n in weights} == weights
    assert config("explicit").preserve_scale == 7e-7 and config("explicit").preserve_weight == 0
    assert (config("object").lamb, config("object").weights.captions) == (100, 0)
    assert config("style").templates == "style" and resolve("mace-refine:style")[1].anchor == "art"
    assert resolve("mace-refine:explicit")[1].anchor == "a person wearing clothes"


def test_templates_are_as_many_as_the_papers_and_fill_tidily() -> None:
    assert [len(set(names)) for names in (OBJECT, STYLE, PROMPT)] == [30, 30, 15]
    assert all(template.count("{}") == 1 for template in OBJECT + STYLE + PROMPT)
    assert fill("a photo of {} at night", "") == "a photo of at night"


def test_a_name_that_tokenizes_to_nothing_is_said() -> None:
    class Deaf:
        def tokenize(self, prompts):
            return Tokens(torch.zeros(len(prompts), 77), tuple(2 if p == "cat" else 1 for p in prompts))

    request = EraseRequest.build("cat", anchor="\u200b")
    assert len(unread(Deaf(), request)) == 1 and "no tokens" in unread(Deaf(), request)[0]


# -- oracles 3 and 4: the fusion's solve ------------------------------------------------------------------------


def lora(seed: int) -> tuple[Tensor, Tensor]:
    return draw(OUT, 1, seed=seed), draw(1, D, seed=seed + 1)


def fused(w: Tensor, start: Tensor, loras: list, rows: list[Tensor], prior: Tensor, lamb: float) -> Tensor:
    seconds = [e @ e.T for e in rows]
    return fuse(w, start, loras, seconds, prior=prior, metric=fusion_metric(seconds, prior, lamb=lamb))


def test_oracle_3_one_concept_is_its_lora_and_none_is_nothing(problem) -> None:
    w, _, _, p = problem
    start, (up, down), none = w + 0.1 * draw(OUT, D, seed=7), lora(8), torch.zeros(D, D, dtype=w.dtype)
    assert (fused(w, start, [(up, down)], [p], none, 0.0) - start - up @ down).norm() < 1e-13 * 100
    zero = (torch.zeros_like(up), down)
    assert torch.equal(fused(w, start, [zero, zero], [p, draw(D, 9, seed=9)], none, 1e-3), start)
    with pytest.raises(torch.linalg.LinAlgError):
        fusion_metric([none], none, lamb=0.0)


def test_oracle_4_two_concepts_keep_their_own_better_than_the_average_does(problem) -> None:
    w = problem[0]
    loras, rows = [lora(10), lora(20)], [draw(D, 4, seed=30), draw(D, 4, seed=31)]
    joint = fused(w, w, loras, rows, torch.zeros(D, D, dtype=w.dtype), 1e-6)
    average = w + sum(up @ down for up, down in loras) / 2
    for (up, down), e in zip(loras, rows, strict=True):
        asked = (w + up @ down) @ e
        assert (joint @ e - asked).norm() < 1e-3 * (average @ e - asked).norm()


def test_fusion_is_the_minimum_of_its_objective(problem) -> None:
    w, _, _, p = problem
    start, loras, rows = w + 0.1 * draw(OUT, D, seed=7), [lora(10), lora(20)], [draw(D, 30, seed=3), draw(D, 8, seed=4)]
    found = fused(w, start, loras, rows, 0.2 * p @ p.T, 0.3).requires_grad_()
    value = 0.2 * ((found - w) @ p).square().sum() + 0.3 * (found - start).square().sum()
    for (up, down), e in zip(loras, rows, strict=True):
        for column in e.T:
            value = value + ((found - start - up @ down) @ column).square().sum()
    (gradient,) = torch.autograd.grad(value, found)
    assert gradient.norm() < 1e-9
