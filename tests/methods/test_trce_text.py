"""TRCE's end-of-text mapping: the paper's oracles for the first stage, parity with the plain loop, positions, options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, LowRank
from erasekit.errors import UsageError
from erasekit.methods import _prior, resolve
from erasekit.methods._cross import silent
from erasekit.methods._templates import OBJECT, PROMPT, Pair, prompt_pairs
from erasekit.methods.trce_text import TRCEText, TRCETextConfig, facing_rows, gather_columns, map_ends, solve_mapping

D, OUT, N = 12, 7, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mapped(w: Tensor, x: Tensor, y: Tensor, matrix: Tensor, ridge: float) -> Tensor:
    factor = solve_mapping(x, y, matrix, ridge=ridge, pairs=x.shape[1])
    return w + factor.up(w) @ factor.right


def textbook(w: Tensor, x: Tensor, y: Tensor, prior: Tensor, pairs: int) -> Tensor:
    """The paper's d x d formula: outer products averaged over the prompts, one at a time, and the prior."""
    top, bottom = w @ prior, prior.clone()
    for malicious, safe in zip(x.T, y.T, strict=True):
        top = top + torch.outer(w @ safe, malicious) / pairs
        bottom = bottom + torch.outer(malicious, malicious) / pairs
    return top @ torch.linalg.inv(bottom)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = draw(D, 2 * D, seed=4)
    return draw(OUT, D, seed=1), draw(D, N, seed=2), draw(D, N, seed=3), p @ p.T


# -- the paper's oracles -----------------------------------------------------------------------------------------


def test_oracle_1_safe_equal_to_malicious_or_a_prior_without_bound_changes_nothing(problem) -> None:
    w, x, y, moment = problem
    assert torch.equal(mapped(w, x, x, moment, 1e-3), w)
    assert (mapped(w, x, y, 1e12 * moment, 1e-3) - w).norm() < 1e-9


def test_oracle_1_without_a_prior_the_ends_are_the_safe_ones(problem) -> None:
    w, x, y, moment = problem
    assert (mapped(w, x, y, 1e-10 * moment, 1e-12) @ x - w @ y).norm() < 1e-7
    twice, both = torch.cat([x, x], 1), torch.cat([y, draw(D, N, seed=9)], 1)  # each row asked to go to two places
    average = (both[:, :N] + both[:, N:]) / 2
    assert (mapped(w, twice, both, 1e-10 * moment, 1e-12) @ x - w @ average).norm() < 1e-5


def test_oracle_2_a_row_orthogonal_to_all_ends_in_the_priors_metric_stays(problem) -> None:
    w, x, y, moment = problem
    metric = moment + 1e-3 * torch.eye(D, dtype=w.dtype)
    basis = torch.linalg.qr(x).Q
    free = draw(D, 3, seed=5)
    rows = metric @ (free - basis @ (basis.T @ free))  # x' metric^-1 rows = 0
    change = mapped(w, x, y, moment, 1e-3) - w
    assert (change @ rows).norm() < 1e-10 * rows.norm() and (change @ x).norm() > 0.1


@pytest.mark.parametrize("columns", [N, 3 * D])
def test_equals_the_textbook_and_is_the_minimum(problem, columns: int) -> None:
    w, _, _, moment = problem
    x, y = draw(D, columns, seed=6), draw(D, columns, seed=7)
    prior = 0.3 * moment + 1e-3 * torch.eye(D, dtype=w.dtype)
    factor = solve_mapping(x, y, 0.3 * moment, ridge=1e-3, pairs=columns)
    assert factor.right.shape[0] <= D
    found = w + factor.up(w) @ factor.right
    assert torch.allclose(found, textbook(w, x, y, prior, columns), rtol=1e-9, atol=1e-11)
    found.requires_grad_()
    value = (found @ x - w @ y).square().sum() / columns + torch.trace((found - w) @ prior @ (found - w).T)
    (gradient,) = torch.autograd.grad(value, found)
    assert gradient.norm() < 1e-10


# -- on a model -------------------------------------------------------------------------------------------------


def fit(pipe, targets: object = "cat", *, anchor: object = "dog", retain: tuple = (), **options: object):
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    return TRCEText().fit(backbone(pipe), request, TRCETextConfig(**options))


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """Rows of transformers' own encoder and the position of the first EOS."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        rows = pipe.text_encoder(batch["input_ids"])[0][0].double()
    return rows, int(batch["attention_mask"].sum()) - 1


@pytest.mark.parametrize(("family", "variant"), [("sd1", "paper"), ("sd2", "paper"), ("sd1", "released")])
def test_equals_the_textbook_on_a_pipeline(family: str, variant: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    wanted, kept, eta = [("cat", "dog"), ("red fox", "a cat"), ("horse", "")], ("moon", "owl"), 0.05
    edit = fit(pipe, [t for t, _ in wanted], anchor=[a for _, a in wanted], retain=kept, variant=variant, eta=eta)
    x, y = [], []
    for target, anchor in wanted:
        for template in PROMPT:
            for columns, concept in ((x, target), (y, anchor)):
                prompt = " ".join(template.format(concept).split())
                rows, end = transformers_rows(pipe, prompt)
                columns.append(rows[end if variant == "paper" else len(prompt.split()) + 1])
    weight = (eta if variant == "paper" else eta**2) * 6e5 / 3e4
    moments = [[rows.T @ rows for rows, _ in (transformers_rows(pipe, p) for p in prompts)]
               for prompts in (_prior.CAPTIONS, [f"a photo of {k}" for k in kept])]  # fmt: skip
    prior = weight * sum(sum(group) / len(group) for group in moments)
    prior = prior + 1e-3 * prior.diagonal().mean() * torch.eye(len(prior), dtype=prior.dtype)
    for op in edit.ops:
        w = pipe.unet.get_submodule(op.module).weight.detach()
        expected = textbook(w.double(), torch.stack(x, 1), torch.stack(y, 1), prior, len(x)) - w.double()
        assert (op.delta(w).double() - expected).norm() / expected.norm() < 5e-5
    assert len(edit.ops) == 2 * sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
    assert edit.self_check["prior"]["caption_weight"] == pytest.approx(weight)
    assert edit.self_check["prior"]["retained_weight"] == pytest.approx(weight / 2)


def test_a_few_prompts_are_factors_and_many_are_whole(sd1) -> None:
    assert all(isinstance(op, LowRank) and op.rank == 15 for op in fit(sd1).ops)
    assert all(isinstance(op, Dense) for op in fit(sd1, ["cat", "fox", "owl"], templates="object").ops)


def test_the_mapping_is_a_first_stage(sd1) -> None:
    with torch.no_grad():
        pairs = prompt_pairs(EraseRequest.build("cat", anchor="dog"), PROMPT)
        found = map_ends(backbone(sd1), pairs, TRCETextConfig())
    op = fit(sd1).ops[0]
    w = sd1.unet.get_submodule(op.module).weight.detach()
    assert torch.allclose(found.mapped(w).float(), w + op.delta(w), atol=1e-6)


# -- rows -------------------------------------------------------------------------------------------------------


def test_positions_are_the_tokenizers_or_the_released_codes(sd1) -> None:
    model, pair = backbone(sd1), Pair("a photo of red fox", "a photo of cat", "red fox")
    ends = model.tokenize(pair[:2]).ends
    assert ends == (8, 5)  # BOS a photo of r e d fox EOS
    every = {"rows": (0.5, 1.0, 2.0, 3.0)}
    assert facing_rows(model, pair, ends, 77, TRCETextConfig(**every)) == [
        (0.5, 0, 0), (1.0, 8, 5), (2.0 * 68, 76, 76), *((3.0, row, 76) for row in (4, 5, 6, 7)),
    ]  # fmt: skip
    # five words: "end" 6 is a letter of the word, base weight 77 - words - 2
    assert facing_rows(model, pair, ends, 77, TRCETextConfig(variant="released", **every)) == [
        (0.5, 0, 0), (1.0, 6, 5), (2.0 * (77 - 5 - 2), 76, 76), (3.0, 4, 76), (3.0, 5, 76),
    ]  # fmt: skip
    assert facing_rows(model, pair, ends, 9, TRCETextConfig()) == [(1.0, 8, 5)]


def test_weighted_rows_are_columns_times_the_roots(sd1) -> None:
    model, pair = backbone(sd1), Pair("a photo of red fox", "a photo of cat", "red fox")
    x, y = gather_columns(model, [pair], TRCETextConfig(rows=(4.0, 1.0, 0.25, 9.0)), progress=silent)
    (f, _), (g, _) = (transformers_rows(sd1, prompt) for prompt in pair[:2])
    wanted = [(2.0, 0, 0), (1.0, 8, 5), (17**0.5, 76, 76), *((3.0, row, 76) for row in (4, 5, 6, 7))]
    assert torch.allclose(x, torch.stack([root * f[i] for root, i, _ in wanted], 1), atol=1e-5)
    assert torch.allclose(y, torch.stack([root * g[j] for root, _, j in wanted], 1), atol=1e-5)


# -- options ----------------------------------------------------------------------------------------------------


def test_retaining_protects_and_a_weight_of_zero_is_said(sd1) -> None:
    held = fit(sd1, retain=("fox",), retain_weight=1e8).self_check
    free = fit(sd1, retain=("fox",), retain_weight=0.0).self_check
    assert held["retained_drift"] < 1e-2 * free["retained_drift"]
    assert any("not protected" in line for line in free["warnings"])


def test_presets_have_the_papers_values() -> None:
    _, explicit = resolve("trce-text:explicit")
    assert explicit.anchor == "a person wearing clothes" and TRCETextConfig(**explicit.values).eta == 0.01
    assert TRCETextConfig(**resolve("trce-text:unsafe")[1].values).eta == 0.02
    weights = TRCETextConfig(variant="released").weights(0)  # 1e-4 / 3e4 on the sums over 6e5 captions
    assert weights.captions == pytest.approx(1e-4 / 3e4 * 6e5)
    assert len(OBJECT) == 2 * len(PROMPT) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta"),
        ({"rows": (0.0, 0.0, 0.0, 0.0)}, "rows"),
        ({"rows": (1.0,)}, "rows"),
        ({"rows": (0.0, -1.0, 0.0, 0.0)}, "rows"),
        ({"templates": "people"}, "prompt"),
        ({"variant": "code"}, "released"),
        ({"retain_weight": -1.0}, "retain_weight"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_bad_parameters_raise_naming_the_field(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TRCETextConfig(**options)
