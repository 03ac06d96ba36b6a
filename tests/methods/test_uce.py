"""UCE: the paper's oracles, parity with the textbook loop, and the forms and options on a tiny pipeline."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from uce_oracles import draw, fit, pairs_of, textbook, transformers_rows

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, LowRank
from erasekit.errors import UsageError
from erasekit.methods._cross import silent
from erasekit.methods._features import encoded
from erasekit.methods.uce import UCEConfig, gap, prompt_pairs, solve_right
from erasekit.methods.uce_text import Retained, gather_pairs

D, OUT = 12, 7


def edited(w: Tensor, x: Tensor, y: Tensor, r: Tensor | None = None, b: float = 1.0, **options: object) -> Tensor:
    """W by the method's own functions."""
    config = UCEConfig(**options)
    r = w.new_zeros(w.shape[1], 0) if r is None else r
    pairs = pairs_of(x, y)
    return w + gap(w, pairs, config) @ solve_right(pairs, Retained(r @ r.T, b, r), config).rows


def objective(w: Tensor, w_o: Tensor, x: Tensor, v: Tensor, r: Tensor, a: float, b: float, lamb: float) -> Tensor:
    return a * (w @ x - v).square().sum() + b * ((w - w_o) @ r).square().sum() + lamb * (w - w_o).square().sum()


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(OUT, D, seed=1), draw(D, 4, seed=2), draw(D, 4, seed=3), draw(D, 5, seed=4)


# -- the paper's oracles -----------------------------------------------------------------------------------------


def test_oracle_1_nothing_to_do_or_no_freedom(problem) -> None:
    w, x, y, _ = problem
    assert torch.equal(edited(w, x, x), w)
    assert (edited(w, x, y, erase_scale=1e-12) - w).norm() < 1e-9
    assert (edited(w, x, y, lamb=1e12) - w).norm() < 1e-8
    spanning = draw(D, 2 * D, seed=5)
    assert (edited(w, x, y, spanning, b=1e10) - w).norm() < 1e-7


@settings(max_examples=20, deadline=None)
@given(lamb=st.floats(1e-3, 1e3), a=st.floats(1e-2, 1e2), seed=st.integers(0, 1000))
def test_oracle_2_one_pair_leaves_exactly_lambda_over_lambda_plus_a_c2(lamb: float, a: float, seed: int) -> None:
    w, x, y = draw(OUT, D, seed=seed), draw(D, 1, seed=seed + 1), draw(D, 1, seed=seed + 2)
    left = (edited(w, x, y, lamb=lamb, erase_scale=a) @ x - w @ y).norm() / (w @ (y - x)).norm()
    assert float(left) == pytest.approx(lamb / (lamb + a * float(x.square().sum())), rel=1e-9)


def test_oracle_3_lambda_to_zero_is_the_least_change_exact_solution(problem) -> None:
    w, x, y, _ = problem
    exact = w + w @ (y - x) @ torch.linalg.pinv(x)
    assert (edited(w, x, y, lamb=1e-10) - exact).norm() / exact.norm() < 1e-9


def test_oracle_4_the_solution_is_the_minimum(problem) -> None:
    w, x, y, r = problem
    a, b, lamb = 0.7, 0.3, 0.5
    solution = edited(w, x, y, r, b=b, erase_scale=a, lamb=lamb).requires_grad_()
    value = objective(solution, w, x, w @ y, r, a, b, lamb)
    (gradient,) = torch.autograd.grad(value, solution)
    assert gradient.norm() < 1e-12 * value.item() * solution.norm().item() + 1e-11
    for seed in range(5):
        other = solution.detach() + 1e-3 * draw(OUT, D, seed=seed)
        assert objective(other, w, x, w @ y, r, a, b, lamb) > value


def test_oracle_5_equals_the_textbook_and_knows_no_order(problem) -> None:
    w, x, y, r = problem
    ours = edited(w, x, y, r, b=0.3, erase_scale=0.7, lamb=0.5)
    theirs = textbook(w, x, w @ y, r, 0.7, 0.3, 0.5)
    assert (ours - theirs).norm() / theirs.norm() < 1e-12
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(edited(w, x[:, order], y[:, order], r, b=0.3, erase_scale=0.7), ours, atol=1e-12)
    doubled = edited(w, torch.cat([x, x], 1), torch.cat([y, y], 1), r, b=0.3, erase_scale=0.7)
    assert torch.allclose(doubled, edited(w, x, y, r, b=0.3, erase_scale=1.4), atol=1e-12)


def test_oracle_6_what_is_retained_is_not_erased(problem) -> None:
    w, x, y, _ = problem
    assert (edited(w, x, y, x, b=1e10) @ x - w @ x).norm() < 1e-8
    assert (edited(w, x, y, x, b=0.0) @ x - w @ x).norm() > 0.1


# -- on a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("tokens", ["tail", "last"])
def test_equals_the_textbook_on_a_pipeline(family: str, tokens: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    wanted = [("cat", "dog"), ("red fox", "a cat in the style of dog"), ("horse", "")]
    kept = ["a photo of the moon", "bird"]
    edit = fit(pipe, [t for t, _ in wanted], anchor=[a for _, a in wanted], retain=tuple(kept), tokens=tokens)
    x, y = [], []
    for target, anchor in wanted:
        (rows, f), (others, g) = transformers_rows(pipe, target), transformers_rows(pipe, anchor)
        count = 1 if tokens == "last" else 77 - max(f, g)
        x.append(rows[f : f + count])
        y.append(others[g : g + count])
    r = [transformers_rows(pipe, p) for p in (["", *kept] if tokens == "tail" else kept)]
    r = torch.cat([rows if tokens == "tail" else rows[f : f + 1] for rows, f in r]).T
    x, y, b = torch.cat(x).T, torch.cat(y).T, 1 / 3 if tokens == "tail" else 1.0
    for op in edit.ops:
        w = pipe.unet.get_submodule(op.module).weight.detach()
        expected = textbook(w.double(), x, w.double() @ y, r, 1.0, b, 0.5) - w.double()
        assert (op.delta(w).double() - expected).norm() / expected.norm() < 2e-5
    assert len(edit.ops) == 2 * sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())


def test_low_rank_where_smaller_else_dense(sd1) -> None:
    assert all(isinstance(op, Dense) for op in fit(sd1, "cat", anchor="dog").ops)
    small = fit(sd1, "cat", anchor="dog", tokens="last")
    assert all(isinstance(op, LowRank) and op.rank == 1 for op in small.ops)


def test_last_reads_the_same_features_as_the_padded_prompt(sd1) -> None:
    model, prompts = backbone(sd1), ["cat", "a photo of the moon", ""]
    short = list(encoded(model, prompts, whole=False))
    full = list(encoded(model, prompts, whole=True))
    for (rows, last), (others, same) in zip(short, full, strict=True):
        assert last == same and torch.allclose(rows[last], others[same], atol=1e-5)


def test_expand_puts_both_into_the_template() -> None:
    request = EraseRequest.build(["kelly", "monet"], anchor=["art", ""])
    found = prompt_pairs(request, UCEConfig(expand="art"))
    assert ("painting by kelly", "painting by art") in found and ("style of monet", "") in found and len(found) == 12


def test_tensor_variant_takes_the_targets_own_output_away() -> None:
    w, x, y = draw(OUT, D, seed=1), draw(D, 6, seed=2), draw(D, 6, seed=3)
    asked = gap(w, pairs_of(x, y, blocks=2), UCEConfig(variant="tensor"))
    for columns in (slice(0, 3), slice(3, 6)):  # V* = W y - <W y, u> u, orthogonal to W x as a whole block
        own, anchor = w @ x[:, columns], w @ y[:, columns]
        u = own / own.norm()
        assert torch.allclose(own + asked[:, columns], anchor - (anchor * u).sum() * u)
        assert abs(float(((own + asked[:, columns]) * own).sum())) < 1e-10


def test_retaining_protects_and_the_self_check_says_so(sd1) -> None:
    loose = fit(sd1, "cat", anchor="dog", retain=("a cat",), preserve_scale=0.0).self_check
    held = fit(sd1, "cat", anchor="dog", retain=("a cat",), preserve_scale=1e6).self_check
    assert held["retained_drift"] < 1e-3 * loose["retained_drift"]
    said, quiet = ([w for w in check["warnings"] if "directions of the text" not in w] for check in (held, loose))
    assert held["residual"] > loose["residual"] and said and not quiet


def test_the_self_check_measures_what_is_left(sd1) -> None:
    edit = fit(sd1, "cat", anchor="dog")
    pairs = gather_pairs(backbone(sd1), [("cat", "dog")], UCEConfig(), progress=silent)
    worst = 0.0
    for op in edit.ops:
        w = sd1.unet.get_submodule(op.module).weight.detach()
        after = (w + op.delta(w)).double() @ pairs.x
        worst = max(worst, float((after - w.double() @ pairs.ys[0]).norm() / (w.double() @ pairs.ys[0]).norm()))
    assert edit.self_check["residual"] == pytest.approx(worst, rel=1e-6)
    assert edit.self_check["modules"] == len(edit.ops) == len(edit.self_check["sites"])


def test_moderate_is_erase_to_the_empty_prompt(sd1) -> None:
    a, b = fit(sd1, "blood", mode="moderate"), fit(sd1, "blood", anchor="")
    assert all(torch.equal(p.difference, q.difference) for p, q in zip(a.ops, b.ops, strict=True))
    with pytest.raises(UsageError, match="empty prompt"):
        fit(sd1, "blood", anchor="water", mode="moderate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "remove"}, "erase"),
        ({"tokens": "all"}, "tail"),
        ({"lamb": 0.0}, "lamb"),
        ({"erase_scale": float("nan")}, "erase_scale"),
        ({"preserve_scale": -1.0}, "preserve_scale"),
        ({"mode": "debias"}, "two attributes"),
        ({"mode": "debias", "attributes": ("a", "b"), "ratios": (0.5, 0.2)}, "ratios"),
        ({"mode": "debias", "attributes": ("a", "b")}, "labeller"),
    ],
)
def test_bad_parameters_raise_naming_the_field(options: dict, message: str, sd1) -> None:
    with pytest.raises(UsageError, match=message):
        fit(sd1, **options)
