"""SPEED: the note's six oracles, parity with the textbook loop over explicit copies, what it refuses and warns of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit, LowRank
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import make_config, resolve
from erasekit.methods.speed import SPEED, SPEEDConfig, solve
from erasekit.methods.speed_retain import centroids, curate, dominant, unrelated, weak_directions
from erasekit.methods.speed_text import Problem

D, OUT, TARGETS = 24, 10, 3
EXACT = {"tau": 1e-9, "prior_filter": False, "aug_num": 0}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem_of(retained: int = 8, *, seed: int = 0, x: Tensor | None = None, y: Tensor | None = None) -> Problem:
    x = draw(D, TARGETS, seed=seed + 1) if x is None else x
    y = draw(D, TARGETS, seed=seed + 2) if y is None else y
    return Problem(x, y - x, x, draw(D, retained, seed=seed + 3), draw(D, 4, seed=seed + 4))


def update(w: Tensor, problem: Problem, **options: object) -> Tensor:
    """D P by the method's own functions, without copies unless asked."""
    config = SPEEDConfig(**({"aug_num": 0} | options))
    found = solve(w, problem, draw(problem.retained.shape[1], config.aug_num, config.rank, seed=9), config)
    return found.up @ found.right


def refined(w: Tensor, shift: Tensor, c0: Tensor, eps: Tensor, config: SPEEDConfig) -> list[Tensor]:
    """The paper's retain set: one column at a time, every copy built."""
    shifts = [float((shift @ c).norm()) for c in c0.T]
    mean = sum(shifts) / len(shifts)
    kept = [i for i, s in enumerate(shifts) if s > mean] if config.prior_filter else list(range(len(shifts)))
    vh = torch.linalg.svd(w, full_matrices=False).Vh[-config.rank :]
    weak = vh.T @ vh
    copies = [c0[:, i] + weak @ e for i in kept for e in eps[i]]
    moved = [float((shift @ c).norm()) for c in copies]
    chosen = [c for c, m in zip(copies, moved, strict=True) if m > sum(moved) / len(moved)]
    return [c0[:, i] for i in kept] + chosen


def textbook(
    w: Tensor, c1: Tensor, anchor: Tensor, c0: Tensor, c2: Tensor, eps: Tensor, config: SPEEDConfig, targets: int
) -> Tensor:
    """The paper's formulas with explicit inverses, means over the targets."""
    d = w.shape[1]
    own, to, eye = torch.zeros(d, d).double(), torch.zeros(d, d).double(), torch.eye(d).double()
    for a, c in zip(anchor.T, c1.T, strict=True):
        own, to = own + torch.outer(c, c) / targets, to + torch.outer(a, c) / targets
    retained = refined(w, w @ (to - own) @ torch.linalg.inv(eye + own), c0, eps, config)
    u, s, _ = torch.linalg.svd(sum(torch.outer(c, c) for c in retained) / len(retained))
    p = u[:, s < config.tau] @ u[:, s < config.tau].T
    m = torch.linalg.inv(own @ p + config.alpha * eye)
    inner = torch.linalg.inv(c2.T @ p @ m @ c2 + config.lamb * torch.eye(4).double())
    return w @ (to - own) @ p @ (eye - m @ c2 @ inner @ c2.T @ p) @ m


def annihilator(columns: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(columns)
    rank = int((s > 1e-9 * s[0]).sum())
    return u[:, rank:] @ u[:, rank:].T


def gone(part: Tensor, whole: Tensor) -> float:
    return float(part.norm() / whole.norm())


@pytest.mark.parametrize(
    ("out", "retained", "options"),
    [
        (OUT, 8, {}),
        (OUT, 40, {}),
        (2 * D, 40, {"rank": 2, "lamb": 0.5}),
        (2 * D, 10, {"rank": 3, "alpha": 0.05, "tau": 0.02, "prior_filter": False}),
        (D, 60, {"tau": 1.2, "prior_filter": False}),
        (OUT, 30, {"aug_num": 1, "tau": 0.5, "lamb": 3.0}),
    ],
)
def test_equals_the_textbook_with_every_copy_built(out: int, retained: int, options: dict) -> None:
    config, w, p = SPEEDConfig(**options), draw(out, D, seed=7), problem_of(retained)
    eps = draw(retained, config.aug_num, D, seed=8)
    found = solve(w, p, eps @ weak_directions(w, config.rank), config)
    expected = textbook(w, p.x, p.x + p.gap, p.retained, p.invariants, eps, config, TARGETS)
    assert gone(found.up @ found.right - expected, expected) < 1e-9
    assert 0 < found.top.shape[1] < D and (found.curated.copies > 0).any()


# -- the paper's oracles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, EXACT])
def test_oracle_1_the_update_lies_in_the_null_space(options: dict) -> None:
    w, p = draw(OUT, D, seed=1), problem_of()
    found = solve(w, p, draw(8, SPEEDConfig(**options).aug_num, 1, seed=2), SPEEDConfig(**options))
    dp = found.up @ found.right
    assert gone(dp @ found.top, dp) < 1e-12 and gone(dp @ p.invariants, dp) < 1e-12
    if options:
        assert gone(dp @ p.retained, dp) < 1e-12
        assert gone(update(w, p, **options, lamb=1.0) @ p.invariants, dp) > 1e-3


def test_oracle_2_equals_ridge_regression_in_the_space_that_annihilates_both() -> None:
    w, p, alpha = draw(OUT, D, seed=1), problem_of(), 0.3
    z = annihilator(torch.cat([p.retained, p.invariants], 1)) @ p.x
    ridge = torch.linalg.inv(z.T @ z + TARGETS * alpha * torch.eye(TARGETS).double())
    expected = w @ p.gap @ ridge @ z.T
    assert gone(update(w, p, **EXACT, alpha=alpha) - expected, expected) < 1e-11


def test_oracle_3_alpha_to_zero_is_the_exact_constrained_solution() -> None:
    w, p = draw(OUT, D, seed=1), problem_of()
    exact = w @ p.gap @ torch.linalg.pinv(annihilator(torch.cat([p.retained, p.invariants], 1)) @ p.x)
    near = [gone(update(w, p, **EXACT, alpha=alpha) - exact, exact) for alpha in (1e-2, 1e-4, 1e-9)]
    assert near[0] > near[1] > near[2] and near[1] < 1e-3 and near[2] < 1e-8
    dp = update(w, p, **EXACT, alpha=1e-10)
    assert gone(dp @ p.x - w @ p.gap, w @ p.gap) < 1e-9


def test_oracle_4_nothing_to_do_or_nothing_erasable() -> None:
    w, x = draw(OUT, D, seed=1), draw(D, TARGETS, seed=2)
    assert not update(w, problem_of(x=x, y=x)).any()
    spanned = problem_of()
    spanned = replace(spanned, x=spanned.retained[:, :3], marks=spanned.retained[:, :3])
    found = solve(w, spanned, draw(8, 0, 1, seed=1), SPEEDConfig(**EXACT))
    assert (found.up @ found.right).norm() < 1e-12 * w.norm() and spanned.outside(found.top).max() < 1e-7
    free = problem_of()
    lost = annihilator(free.retained) @ free.x
    found = solve(w, free, draw(8, 0, 1, seed=1), SPEEDConfig(**EXACT))
    torch.testing.assert_close(free.outside(found.top), lost.norm(dim=0) / free.x.norm(dim=0))


def test_oracle_5_what_is_retained_stays_and_the_rest_may_change() -> None:
    w, p = draw(OUT, D, seed=1), problem_of()
    dp, other = update(w, p, **EXACT), draw(D, 1, seed=20)
    assert gone(dp @ p.retained, w @ p.retained) < 1e-12 and gone(dp @ other, w @ other) > 1e-2


@pytest.mark.parametrize("columns", [draw(D, 1, seed=3), draw(D, 1, seed=3).repeat(1, 5)])
def test_oracle_6_identical_shifts_leave_the_set_unfiltered(columns: Tensor) -> None:
    w, p = draw(OUT, D, seed=1), replace(problem_of(), retained=columns)
    found = solve(w, p, draw(columns.shape[1], 0, 1, seed=1), SPEEDConfig(aug_num=0))
    assert found.curated.emptied and torch.equal(found.curated.columns, columns) and found.curated.count > 0


def test_retained_invariants_need_no_softening() -> None:
    """P C2 = 0: the formula's inverse is singular at lambda = 0; the term is inert at any lambda."""
    w, p = draw(OUT, D, seed=1), problem_of()
    held = replace(p, retained=torch.cat([p.retained, p.invariants], 1))
    hard, soft = update(w, held, **EXACT), update(w, held, **EXACT, lamb=0.5)
    assert torch.isfinite(hard).all() and gone(hard - soft, hard) < 1e-10
    assert gone(hard - update(w, p, **EXACT), hard) < 1e-10
    assert gone(update(w, p, **EXACT, lamb=1e-12) - hard, hard) < 1e-9


# -- the pieces -------------------------------------------------------------------------------------------------


def test_filter_and_augmentation_keep_what_is_above_the_means() -> None:
    columns = torch.eye(4).double()
    pulls, weak = torch.diag(torch.tensor([1.0, 2.0, 5.0, 6.0]).double()), columns[:, :1]
    noise = torch.tensor([[0.0, 9.0]] * 4).double()[..., None]
    options = {"pulls": pulls, "along": pulls @ weak, "gram": columns}
    found = curate(columns, weak, noise, **options, prior_filter=True)
    assert torch.equal(found.columns, columns[:, 2:]) and found.copies.tolist() == [1, 1] and found.count == 4
    assert found.sums.tolist() == [[9.0], [9.0]] and found.squares.tolist() == [[162.0]]
    assert curate(columns, weak, noise, **options, prior_filter=False).columns.shape[1] == 4


@pytest.mark.parametrize("rank", [1, 3])
def test_the_root_has_the_second_moment_of_columns_and_copies(rank: int) -> None:
    columns, weak, noise = draw(D, 5, seed=1), draw(D, rank, seed=2), draw(5, 6, rank, seed=3)
    reach = draw(4, D, seed=4)
    options = {"pulls": reach @ columns, "along": reach @ weak, "gram": torch.eye(4).double(), "prior_filter": True}
    found = curate(columns, weak, noise, **options)

    def strong(many: list[Tensor]) -> list[int]:
        shifts = [float((reach @ c).norm()) for c in many]
        return [i for i, shift in enumerate(shifts) if shift > sum(shifts) / len(shifts)]

    kept = strong(list(columns.T))
    copies = [columns[:, i] + weak @ z for i in kept for z in noise[i]]
    chosen = [columns[:, i] for i in kept] + [copies[i] for i in strong(copies)]
    moment = sum(torch.outer(c, c) for c in chosen) / len(chosen)
    assert found.count == len(chosen) > len(kept)
    assert gone(found.root() @ found.root().T - moment, moment) < 1e-13


def test_a_relative_threshold_does_not_depend_on_the_scale() -> None:
    def held(scale: float, relative: bool) -> int:
        p = problem_of(40)
        z, gram = draw(40, 0, 0, seed=1), torch.eye(TARGETS).double()
        found = curate(
            scale * p.retained, p.x[:, :0], z, pulls=p.pulls, along=p.reach @ p.x[:, :0], gram=gram, prior_filter=False
        )
        return dominant(found, tau=0.5, relative=relative).shape[1]

    assert 0 < held(1.0, True) == held(100.0, True) < D
    assert held(1.0, False) < held(100.0, False) == D


@pytest.mark.parametrize("w", [draw(40, D, seed=1), draw(D, D, seed=2), draw(OUT, D, seed=3)])
def test_weak_directions_are_the_last_singular_vectors(w: Tensor) -> None:
    vh = torch.linalg.svd(w, full_matrices=False).Vh.flip(0)[:3]
    assert torch.allclose((weak_directions(w, 3).T * vh).sum(1).abs(), torch.ones(3).double(), atol=1e-10)


def test_weak_directions_of_a_wide_weight_without_full_rank_are_unit_vectors_without_gain() -> None:
    w = draw(OUT, D, seed=3)
    w[0] = w[1]
    weak = weak_directions(w, 1)
    assert weak.norm() == pytest.approx(1) and (w @ weak).norm() < 1e-12


def test_centroids_find_clusters_are_seeded_and_bear_equal_rows() -> None:
    middles = 50 * draw(3, D, seed=1)
    rows = middles.repeat(5, 1) + 0.01 * draw(15, D, seed=2)
    found = centroids(rows, 3, torch.Generator().manual_seed(0))
    expected = torch.stack([rows[i::3].mean(0) for i in range(3)])
    assert torch.cdist(found, expected).amin(1).max() < 1e-9 and torch.cdist(expected, found).amin(1).max() < 1e-9
    assert torch.equal(found, centroids(rows, 3, torch.Generator().manual_seed(0)))
    assert torch.equal(centroids(rows[:1].repeat(4, 1), 3, torch.Generator().manual_seed(0)), rows[:1].repeat(3, 1))


def test_names_with_a_target_as_whole_words_are_dropped() -> None:
    names = ["Cat", "a black cat", "catfish", "VAN  Gogh's ear", "van", "dog"]
    assert unrelated(names, ["cat", "van gogh"]) == ["catfish", "van", "dog"]


def test_targets_that_read_the_same_are_named() -> None:
    x, request = draw(D, 1, seed=1).repeat(1, 3), EraseRequest.build(["a", "b", "c"], anchor=["d", "d", "e"])
    found = problem_of(x=x, y=draw(D, 2, seed=2)[:, [0, 0, 1]]).conflicts(request)
    assert len(found) == 2 and "'a' and 'c'" in found[0]


# -- on a model -------------------------------------------------------------------------------------------------


def fit(
    pipe: object, targets: object = "cat", *, name: str = "speed", anchor: object = "dog", retain=(), seed=0, **options
):
    method, preset = resolve(name)
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    return SPEED().fit(backbone(pipe), request, make_config(method, {**preset.values, **options}))


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """All rows (d, 77) of transformers' own encoder, and the last subject token."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        return pipe.text_encoder(batch["input_ids"])[0][0].double().T, int(batch["attention_mask"].sum()) - 2


def last(pipe, *prompts: str) -> Tensor:
    return torch.stack([rows[:, f] for rows, f in (transformers_rows(pipe, p) for p in prompts)], 1)


def check_against_textbook(pipe, edit: Edit, c1, anchor, c0, config: SPEEDConfig, seed: int) -> None:
    empty, _ = transformers_rows(pipe, "")
    middle = centroids(empty[:, 1:].T, 3, torch.Generator().manual_seed(seed)).T
    generator = torch.Generator().manual_seed(seed)
    for op in edit.ops:
        w = pipe.unet.get_submodule(op.module).weight.detach()
        z = torch.randn(c0.shape[1], config.aug_num, 1, generator=generator, dtype=torch.float64)
        eps = z @ weak_directions(w.double(), 1).T
        invariant = torch.cat([empty[:, :1], middle], 1)
        expected = textbook(w.double(), c1, anchor, c0, invariant, eps, config, len(edit.targets))
        assert gone(op.delta(w).double() - expected, expected) < 1e-3  # the features are float32, tau amplifies


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_equals_the_textbook_on_a_pipeline(family: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    retain = ("fox", "horse", "a photo", "bird", "style", "moon and sun", "of the")
    edit = fit(pipe, ["cat", "tree"], anchor=["dog", ""], retain=retain, seed=3)
    check_against_textbook(
        pipe, edit, last(pipe, "cat", "tree"), last(pipe, "dog", ""), last(pipe, *retain), SPEEDConfig(), 3
    )
    assert len(edit.ops) == sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
    assert all(isinstance(op, LowRank) and op.rank <= 2 for op in edit.ops)


def test_explicit_pairs_all_rows_and_retains_the_empty_prompt(sd1) -> None:
    """76 pairs a target in 32 dimensions: reduced to 64 columns with the same edit."""
    edit = fit(sd1, ["cat", "blood"], name="speed:explicit", anchor="")
    rows = {p: transformers_rows(sd1, p)[0][:, 1:] for p in ("cat", "blood", "")}
    c1, anchor = torch.cat([rows["cat"], rows["blood"]], 1), torch.cat([rows[""], rows[""]], 1)
    config = SPEEDConfig(tokens="all", alpha=0.7, lamb=0.5)
    check_against_textbook(sd1, edit, c1, anchor, rows[""], config, 0)


def test_what_is_edited_and_what_the_seed_draws(sd1) -> None:
    retain = ("fox", "horse", "bird", "moon")
    v, k, both = (fit(sd1, retain=retain, edited=edited) for edited in ("v", "k", "kv"))
    assert {op.module[-4:] for op in v.ops} == {"to_v"} and {op.module[-4:] for op in k.ops} == {"to_k"}
    assert len(both.ops) == len(v.ops) + len(k.ops)
    other = fit(sd1, retain=retain, seed=1)
    assert any(not torch.equal(a.down, b.down) for a, b in zip(v.ops, other.ops, strict=True))


def test_the_self_check_says_what_is_left_to_erase(sd1) -> None:
    check = fit(sd1, ["cat", "tree"], retain=("fox", "a cat", "CAT and fox", "bird"), aug_num=0).self_check
    assert check["warnings"][0].startswith("2 of 4 retained concepts")
    assert check["erasable"].keys() == {"cat", "tree"} and all(0.1 < f < 1 for f in check["erasable"].values())
    assert check["sites"][0].keys() >= {"retained", "unfiltered", "free", "condition"}
    alone = fit(sd1, retain=("fox",)).self_check["warnings"]
    assert any("shifts alike at" in line for line in alone)
    assert any("only the empty prompt" in line for line in fit(sd1).self_check["warnings"])


def test_targets_in_the_span_of_what_is_retained(sd1) -> None:
    spanning = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
    with pytest.raises(InfeasibleError, match="retain less"):
        fit(sd1, retain=spanning, tau=1e-9, prior_filter=False)
    warnings = fit(sd1, ["cat", "fox", "tree"], retain=spanning[:30], tau=1e-5, prior_filter=False, aug_num=0)
    text = " | ".join(warnings.self_check["warnings"])
    assert "targets share" in text and "under 10% of" in text and "cat" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edited": "q"}, "kv"),
        ({"tokens": "tail"}, "all"),
        ({"threshold": "none"}, "relative"),
        ({"tau": 0.0}, "tau"),
        ({"alpha": float("nan")}, "alpha"),
        ({"lamb": -1.0}, "lamb"),
        ({"aug_num": -1}, "aug_num"),
        ({"rank": 0}, "rank"),
        ({"rank": 33}, "rank 33 is above"),
        ({"retain": ("a cat", "Cat in the fox")}, "every retained concept"),
    ],
)
def test_bad_parameters_raise_naming_the_field(options: dict, message: str, sd1) -> None:
    with pytest.raises(UsageError, match=message):
        fit(sd1, **options)
