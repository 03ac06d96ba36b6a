"""The solvers against textbook formulas, and against the claims: exact, least change, nothing kept moves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasekit import solvers

D, N, OUT, K = 24, 5, 7, 4
CLEAR = Path("/proc/self/clear_refs")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(seed: int, n: int = N):
    """W, X, Y with the first column of Y equal to X's."""
    weight, inputs, wanted = draw(OUT, D, seed=seed), draw(D, n, seed=seed + 1), draw(D, n, seed=seed + 2)
    wanted[:, 0] = inputs[:, 0]
    return weight, inputs, wanted


def change(factor: solvers.RightFactor, weight: torch.Tensor) -> torch.Tensor:
    return factor.up(weight) @ factor.right


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).norm() <= tolerance * max(1.0, float(b.norm())))


@given(st.integers(0, 10_000), st.integers(1, D))
@settings(max_examples=25, deadline=None)
def test_exact_has_zero_residual_and_low_rank(seed, n):
    weight, inputs, wanted = problem(seed, n)
    factor = solvers.solve(inputs, wanted)
    delta = change(factor, weight)
    assert close((weight + delta) @ inputs, weight @ wanted, 1e-8)
    assert factor.columns.tolist() == list(range(1, n)) and factor.right.shape[0] == n - 1
    assert torch.linalg.matrix_rank(delta) <= n - 1


def test_exact_is_the_pseudoinverse_formula():
    weight, inputs, wanted = problem(3)
    expected = weight @ (wanted - inputs) @ torch.linalg.pinv(inputs)
    assert close(change(solvers.solve(inputs, wanted), weight), expected)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_any_other_feasible_change_is_larger(seed):
    weight, inputs, wanted = problem(seed)
    delta = change(solvers.solve(inputs, wanted), weight)
    away = draw(OUT, D, seed=seed + 9)
    away -= away @ inputs @ torch.linalg.pinv(inputs)
    assert close((weight + delta + away) @ inputs, weight @ wanted, 1e-8)
    assert (delta + away).norm() > delta.norm()


def test_equal_inputs_change_nothing():
    weight, inputs, _ = problem(0)
    factor = solvers.solve(inputs, inputs)
    assert factor.right.shape == (0, D) and change(factor, weight).abs().max() == 0
    assert factor.missed(weight).abs().max() == 0


def objective(delta, weight, inputs, wanted, prior, a):
    residual = (weight + delta) @ inputs - weight @ wanted
    return a * residual.square().sum() + (delta @ prior @ delta.T).trace()


@pytest.mark.parametrize("n", [N, 2 * D])
def test_damped_is_uce_and_minimises_the_objective(n):
    weight, inputs, wanted = problem(5, n)
    kept, a, b, lamb = draw(D, K, seed=11), 0.7, 3.0, 0.5
    matrix = lamb * torch.eye(D, dtype=torch.float64) + b * kept @ kept.T
    prior = solvers.prior(b * solvers.second_moment(kept), ridge=lamb)
    factor = solvers.solve(inputs, wanted, prior=prior, scale=a)
    delta = change(factor, weight)
    numerator = weight @ (matrix + a * wanted @ inputs.T)  # the textbook form, one d x d inverse
    assert close(weight + delta, numerator @ torch.linalg.inv(matrix + a * inputs @ inputs.T))
    best = objective(delta, weight, inputs, wanted, matrix, a)
    for seed in range(5):
        assert objective(delta + 1e-3 * draw(OUT, D, seed=seed), weight, inputs, wanted, matrix, a) > best
    compact = factor.compact()
    assert compact.right.shape[0] <= D and close(change(compact, weight), delta)
    assert close(factor.missed(weight), (weight + delta) @ inputs - weight @ wanted)
    assert close(compact.missed(weight), factor.missed(weight))


def test_ridge_is_uce_without_retained_and_tends_to_exact():
    weight, inputs, wanted = problem(6)
    exact = change(solvers.solve(inputs, wanted), weight)
    gaps = []
    for mu in (1e-1, 1e-4, 1e-8):
        ridge = change(solvers.solve(inputs, wanted, scale=1 / mu), weight)
        eye = torch.eye(D, dtype=torch.float64)
        uce = (mu * weight + weight @ wanted @ inputs.T) @ torch.linalg.inv(mu * eye + inputs @ inputs.T) - weight
        assert close(ridge, uce, 1e-13 / mu)  # the textbook inverse loses digits as mu falls
        gaps.append(float((ridge - exact).norm()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-6


def test_one_column_residual_is_lambda_over_lambda_plus_norm():
    weight, inputs, wanted = draw(OUT, D), draw(D, 1, seed=1), draw(D, 1, seed=2)
    factor = solvers.solve(inputs, wanted, scale=2.0)
    expected = 0.5 / (0.5 + float(inputs.square().sum()))
    gap = weight @ (wanted - inputs)
    assert float(factor.missed(weight).norm() / gap.norm()) == pytest.approx(expected, rel=1e-9)


def test_scale_to_infinity_is_the_weighted_exact_solution():
    weight, inputs, wanted = problem(7)
    prior = solvers.prior(solvers.second_moment(draw(D, 40, seed=3)), ridge=0.1)
    exact = solvers.solve(inputs, wanted, prior=prior)
    soft = solvers.solve(inputs, wanted, prior=prior, scale=1e9)
    assert close(change(soft, weight), change(exact, weight), 1e-6)
    assert exact.missed(weight).norm() < 1e-9


def test_weighted_exact_is_cheapest_in_its_own_measure():
    weight, inputs, wanted = problem(8)
    background = draw(D, 6, seed=4)
    prior = solvers.prior(solvers.second_moment(background), ridge=1e-3)
    plain, weighted = (change(solvers.solve(inputs, wanted, prior=p), weight) for p in (None, prior))
    assert (weighted @ background).norm() < 0.2 * (plain @ background).norm()
    assert weighted.norm() > plain.norm()


@pytest.mark.parametrize("weighted", [False, True])
def test_kept_columns_do_not_move_and_the_rest_is_exact(weighted):
    weight, inputs, wanted = problem(9)
    kept = draw(D, K, seed=5)
    prior = solvers.prior(solvers.second_moment(draw(D, 9, seed=6)), ridge=0.1) if weighted else None
    factor = solvers.solve(inputs, wanted, keep=kept, prior=prior)
    delta = change(factor, weight)
    assert (delta @ kept).norm() < 1e-10
    assert close((weight + delta) @ inputs, weight @ wanted)
    both = torch.cat([inputs, kept], 1), torch.cat([wanted, kept], 1)
    assert close(delta, change(solvers.solve(*both, prior=prior), weight))  # the stacked problem


def spectrum(count: int, lowest: float) -> torch.Tensor:
    """Columns (D, count) with singular values from 1 down to `lowest`."""
    left, right = (torch.linalg.qr(draw(n, D, seed=n)).Q for n in (D, count))
    return left * torch.logspace(0, math.log10(lowest), D, dtype=torch.float64) @ right.T


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
def test_reduced_columns_decide_a_rank_as_all_do(tolerance):
    """Also where a second moment, with the square of the condition, could not."""
    columns = spectrum(400, 3e-12)
    few = solvers.reduced(columns.split(50, 1))
    assert few.shape == (D, D) and torch.linalg.svdvals(few).sub(torch.linalg.svdvals(columns)).abs().max() < 1e-14
    whole, found = (solvers.orthonormal(c, tolerance=tolerance) for c in (columns, few))
    assert found.shape == whole.shape and 0 < found.shape[1] < D
    assert (found @ found.T - whole @ whole.T).norm() < 1e-3
    assert torch.equal(solvers.reduced([columns]), columns), "a single block is solved as it stands"


@pytest.mark.parametrize("weighted", [False, True])
def test_reduced_kept_columns_give_the_same_change(weighted):
    weight, inputs, wanted = problem(17)
    kept = draw(D, K, seed=5) @ draw(K, 300, seed=6)
    prior = solvers.prior(solvers.second_moment(draw(D, 9, seed=7)), ridge=0.1) if weighted else None
    whole, found = (
        solvers.solve(inputs, wanted, keep=keep, prior=prior) for keep in (kept, solvers.reduced(kept.split(70, 1)))
    )
    assert close(change(found, weight), change(whole, weight)) and found.rank == whole.rank
    assert (change(found, weight) @ kept).norm() < 1e-8


@pytest.mark.skipif(not CLEAR.exists(), reason="the high-water mark can be reset on Linux only")
def test_reduced_columns_need_no_more_memory_however_many_they_are():
    """At SD 1.4's width; the 12 blocks more are 57 MB in float64, that a decomposition of all would hold several times."""

    def peak(count: int) -> int:
        CLEAR.write_text("5")
        blocks = (torch.randn(768, 768, generator=torch.Generator().manual_seed(i)) for i in range(count))
        assert solvers.reduced(blocks).shape == (768, 768)
        return high_water()

    few, many = peak(4), peak(16)
    assert many - few < 28e6, f"{(many - few) / 1e6:.0f} MB more"


def high_water() -> int:
    line = next(line for line in CLEAR.with_name("status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_kept_span_wins_over_a_target_inside_it():
    weight, inputs, wanted = problem(10)
    kept = torch.cat([inputs, draw(D, 1, seed=7)], 1)
    factor = solvers.solve(inputs, wanted, keep=kept)
    assert (change(factor, weight) @ kept).norm() < 1e-9 and factor.miss > 0.1


def test_duplicate_columns_and_null_spaces_are_harmless():
    weight, inputs, wanted = problem(11)
    factor = solvers.solve(torch.cat([inputs, inputs], 1), torch.cat([wanted, wanted], 1))
    assert factor.rank == N and factor.miss < 1e-12
    assert close(change(factor, weight), change(solvers.solve(inputs, wanted), weight))


def test_conflicting_columns_leave_the_predicted_residual_and_are_found():
    weight, inputs, wanted = problem(12)
    doubled = torch.cat([inputs, inputs[:, 1:2]], 1), torch.cat([wanted, draw(D, 1, seed=8)], 1)
    factor = solvers.solve(*doubled)
    gap = doubled[1] - doubled[0]
    missing = weight @ gap @ (torch.eye(N + 1, dtype=torch.float64) - torch.linalg.pinv(doubled[0]) @ doubled[0])
    assert close(factor.missed(weight), -missing) and missing.norm() > 0.1
    assert solvers.conflicts(*doubled).tolist() == [[1, N]]
    assert solvers.conflicts(inputs, wanted).shape == (0, 2)


def test_more_columns_than_the_width_give_the_least_squares_compromise():
    weight, inputs, wanted = problem(13, 3 * D)
    factor = solvers.solve(inputs, wanted).compact()
    expected = torch.linalg.lstsq(inputs.T, (weight @ (wanted - inputs)).T).solution.T
    assert close(change(factor, weight), expected, 1e-8) and factor.right.shape[0] <= D


def test_tolerance_drops_small_directions():
    inputs = torch.diag(torch.tensor([1.0, 1e-3, 1e-12], dtype=torch.float64))
    wanted = inputs + 1
    assert solvers.solve(inputs, wanted).rank == 2
    cut = solvers.solve(inputs, wanted, tolerance=1e-2)
    assert cut.rank == 1 and cut.condition == 1.0


def test_columns_within_the_cut_cost_no_rank():
    _, inputs, wanted = problem(14)
    wanted[:, 1] = inputs[:, 1] * (1 + 1e-9)
    assert solvers.solve(inputs, wanted).columns.tolist() == [1, 2, 3, 4]
    assert solvers.solve(inputs, wanted, cut=1e-8).columns.tolist() == [2, 3, 4]


def test_inverse_serves_given_output_changes():
    _, inputs, _ = problem(15)
    asked = draw(OUT, N, seed=9)
    assert close(asked @ solvers.inverse(inputs).rows @ inputs, asked)


@pytest.mark.parametrize("width", [0, 1, 3, 7, D])
def test_gram_is_the_whole_product_whatever_the_bands(width):
    columns = draw(2 * D, width, seed=1)
    assert torch.allclose(solvers.gram(columns), columns.T @ columns, rtol=1e-12)
    assert torch.equal(solvers.gram(columns.float()), solvers.gram(columns.float().double()))
    assert torch.allclose(solvers.second_moment(columns), columns @ columns.T, rtol=1e-12)


def test_a_prior_needs_a_ridge():
    for ridge, moment in ((0.0, torch.zeros(3, 3)), (-1.0, torch.eye(3)), (math.nan, torch.eye(3))):
        with pytest.raises(ValueError, match="ridge"):
            solvers.prior(moment, ridge=ridge)


@pytest.mark.parametrize(("weight", "ridge"), [(1.0, 1e-12), (1e12, 0.5), (1e-12, 0.0)])
def test_a_moment_of_low_rank_has_a_prior_whatever_its_scale(weight, ridge):
    """Columns that nearly share a direction, as text features do, and repeat, as padding does."""
    columns = 30 + draw(512, 20, seed=1)
    moment = weight * solvers.second_moment(columns[:, [0] * 50 + list(range(20))])
    factor = solvers.solve(
        columns, columns + draw(512, 20, seed=2), prior=solvers.prior(moment, ridge=ridge), scale=1e12
    )
    assert factor.right.isfinite().all()


@pytest.mark.parametrize("scale", [1e12, 1e16, 1e20, 1e300])
def test_damping_below_rounding_is_exact_also_on_repeated_columns(scale):
    weight, inputs, wanted = problem(16)
    twice = [0, 1, 1, 2, 3, 3, 3, 4]
    exact = change(solvers.solve(inputs, wanted), weight)
    assert close(change(solvers.solve(inputs[:, twice], wanted[:, twice], scale=scale), weight), exact, 1e-6)
