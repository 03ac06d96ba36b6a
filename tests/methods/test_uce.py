"""UCE: the note's seven oracles, parity with the textbook loop, and the forms and options on a tiny pipeline."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, LowRank
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods._cross import silent
from erasekit.methods._features import encoded
from erasekit.methods.uce import UCE, UCEConfig, gap, prompt_pairs, solve_right
from erasekit.methods.uce_debias import fit_debias, image_labeller, steps
from erasekit.methods.uce_text import Pairs, Retained, gather_pairs, gather_retained, preserve_scale

D, OUT = 12, 7


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs_of(x: Tensor, y: Tensor, blocks: int = 1) -> Pairs:
    return Pairs(x, (y,), torch.arange(x.shape[1]) * blocks // x.shape[1])


def edited(w: Tensor, x: Tensor, y: Tensor, r: Tensor | None = None, b: float = 1.0, **options: object) -> Tensor:
    """W by the method's own functions."""
    config = UCEConfig(**options)
    r = w.new_zeros(w.shape[1], 0) if r is None else r
    pairs = pairs_of(x, y)
    return w + gap(w, pairs, config) @ solve_right(pairs, Retained(r @ r.T, b, r), config).rows


def textbook(w: Tensor, x: Tensor, v: Tensor, r: Tensor, a: float, b: float, lamb: float) -> Tensor:
    """The paper's d x d formula, one column at a time."""
    top, bottom = lamb * w, lamb * torch.eye(w.shape[1], dtype=w.dtype)
    for c, out in zip(x.T, v.T, strict=True):
        top, bottom = top + a * torch.outer(out, c), bottom + a * torch.outer(c, c)
    for c in r.T:
        top, bottom = top + b * torch.outer(w @ c, c), bottom + b * torch.outer(c, c)
    return top @ torch.linalg.inv(bottom)


def objective(w: Tensor, w_o: Tensor, x: Tensor, v: Tensor, r: Tensor, a: float, b: float, lamb: float) -> Tensor:
    return a * (w @ x - v).square().sum() + b * ((w - w_o) @ r).square().sum() + lamb * (w - w_o).square().sum()


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(OUT, D, seed=1), draw(D, 4, seed=2), draw(D, 4, seed=3), draw(D, 5, seed=4)


# -- the note's oracles -----------------------------------------------------------------------------------------


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


def test_oracle_7_alpha_follows_the_shares() -> None:
    config = UCEConfig(mode="debias", attributes=("cat", "dog"), labeller=lambda edit: [])
    alphas = steps(torch.tensor([[0.5, 0.5], [0.53, 0.47], [1.0, 0.0]], dtype=torch.float64), config)
    assert alphas[:2].abs().max() == 0
    assert alphas[2].tolist() == pytest.approx([-0.05, 0.05])


# -- on a model -------------------------------------------------------------------------------------------------


def fit(pipe: object, targets: object = "cat", *, anchor: object = None, retain: tuple = (), **options: object):
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    return UCE().fit(backbone(pipe), request, UCEConfig(**options))


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """Rows of transformers' own encoder and the last subject token, as the 2023 scripts find it."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        rows = pipe.text_encoder(batch["input_ids"])[0][0].double()
    return rows, int(batch["attention_mask"].sum()) - 2


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


def test_the_empty_anchor_faces_bos_and_eos_faces_eos(sd1) -> None:
    model, config = backbone(sd1), UCEConfig(variant="tensor")  # keeps every column as it is
    pairs = gather_pairs(model, [("cat", "")], config, progress=silent)
    cat, empty = model.encode(["cat", ""]).double()
    assert torch.equal(pairs.ys[0].T, empty[:76]) and torch.equal(pairs.x.T, cat[1:])


def test_low_rank_where_smaller_else_dense(sd1) -> None:
    assert all(isinstance(op, Dense) for op in fit(sd1, "cat", anchor="dog").ops)
    small = fit(sd1, "cat", anchor="dog", tokens="last")
    assert all(isinstance(op, LowRank) and op.rank == 1 for op in small.ops)


def test_many_pairs_reduce_to_twice_the_width_and_give_the_same_edit(sd1) -> None:
    model, config = backbone(sd1), UCEConfig()
    groups = [(word, anchor) for word in ("cat", "fox", "bird", "horse") for anchor in ("dog", "moon")]
    reduced = gather_pairs(model, groups, config, progress=silent)
    full = [gather_pairs(model, [group], UCEConfig(variant="tensor"), progress=silent) for group in groups]
    x, y = torch.cat([p.x for p in full], 1), torch.cat([p.ys[0] for p in full], 1)
    assert reduced.x.shape[1] == 64 < x.shape[1]
    assert torch.allclose(reduced.x @ reduced.x.T, x @ x.T) and torch.allclose(reduced.ys[0] @ reduced.x.T, y @ x.T)


def test_last_reads_the_same_features_as_the_padded_prompt(sd1) -> None:
    model, prompts = backbone(sd1), ["cat", "a photo of the moon", ""]
    short = list(encoded(model, prompts, whole=False))
    full = list(encoded(model, prompts, whole=True))
    for (rows, last), (others, same) in zip(short, full, strict=True):
        assert last == same and torch.allclose(rows[last], others[same], atol=1e-5)


def test_preserve_scale_follows_the_scripts(sd1) -> None:
    assert preserve_scale(UCEConfig(), 1) == 1 and preserve_scale(UCEConfig(), 4) == 0.25
    assert preserve_scale(UCEConfig(), 1000) == 0.1 and preserve_scale(UCEConfig(tokens="last"), 1000) == 1
    kept = gather_retained(backbone(sd1), ["a", "b", "a"], UCEConfig(), progress=silent)
    assert kept.scale == pytest.approx(1 / 3) and kept.probes.shape[1] == 3


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
    assert held["residual"] > loose["residual"] and held["warnings"] and not loose["warnings"]


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


# -- debias -----------------------------------------------------------------------------------------------------


def share_reader(pipe, target: str, attributes: tuple[str, ...], seen: list):
    """A labeller that reads the shares off one projection: which attribute the target's output leans to."""
    rows, f = transformers_rows(pipe, target)
    name = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_v"))
    w = pipe.unet.get_submodule(name).weight.detach().double()
    marks = [w @ g[i] for g, i in (transformers_rows(pipe, attribute) for attribute in attributes)]
    axis = marks[0] / marks[0].norm() - marks[1] / marks[1].norm()

    def label(edit) -> list[list[float]]:
        op = next(op for op in edit.ops if op.module == name)
        now = (w + op.delta(w)) @ rows[f]
        share = float(torch.sigmoid((now @ axis) / (axis.norm() * now.norm()) * 3 + 1.5))
        seen.append(share)
        return [[share, 1 - share]]

    return label


def test_debias_walks_to_the_asked_shares(sd1) -> None:
    seen: list[float] = []
    attributes = ("dog", "fox")
    labeller = share_reader(sd1, "cat", attributes, seen)
    before = {n: p.clone() for n, p in sd1.unet.named_parameters()}
    edit = fit(sd1, "cat", mode="debias", attributes=attributes, labeller=labeller, rounds=60)
    assert abs(seen[0] - 0.5) > 0.1 and abs(seen[-1] - 0.5) <= 0.05
    assert not edit.self_check["warnings"] and "labeller" not in edit.parameters
    assert all(torch.equal(p, before[n]) for n, p in sd1.unet.named_parameters())


def test_debias_one_round_is_the_rule(sd1) -> None:
    """v* = V + sum alpha ||V|| U/||U||, solved with the textbook formula."""
    config = UCEConfig(mode="debias", attributes=("dog", "fox"), labeller=lambda e: [[1.0, 0.0]], rounds=1, tokens="last")
    model, request = backbone(sd1), EraseRequest.build("cat")
    edit = fit_debias(model, request, config, progress=silent)
    assert "still off for: cat" in edit.self_check["warnings"][0]
    templates = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")
    columns = {
        word: torch.stack([rows[f] for rows, f in (transformers_rows(sd1, t.format(word)) for t in templates)], 1)
        for word in ("cat", "dog", "fox")
    }
    op = edit.ops[0]
    w = sd1.unet.get_submodule(op.module).weight.detach().double()
    own = w @ columns["cat"]
    v = own.clone()
    for alpha, word in ((-0.05, "dog"), (0.05, "fox")):
        toward = w @ columns[word]
        v += alpha * own.norm(dim=0) * toward / toward.norm(dim=0)
    expected = textbook(w, columns["cat"], v, w.new_zeros(w.shape[1], 0), 1.0, 0.1, 0.5) - w
    assert (op.delta(w).double() - expected).norm() / expected.norm() < 2e-5


def test_debias_errors(sd1) -> None:
    options = {"mode": "debias", "attributes": ("dog", "fox")}
    with pytest.raises(InfeasibleError, match="already"):
        fit(sd1, "cat", labeller=lambda edit: [[0.5, 0.5]], **options)
    with pytest.raises(UsageError, match="one row"):
        fit(sd1, "cat", labeller=lambda edit: [[1.0]], **options)


def test_the_image_labeller_samples_under_the_edit_and_puts_it_back(sd1) -> None:
    seen = []

    def classify(images: Tensor, attributes: tuple[str, ...]) -> list[float]:
        seen.append(images)
        return [1.0, 0.0]

    attributes = ("dog", "fox")
    label = image_labeller(sd1, classify, targets=["cat"], attributes=attributes, seeds=range(2), steps=1)
    before = {n: p.clone() for n, p in sd1.unet.named_parameters()}
    fit(sd1, "cat", mode="debias", attributes=attributes, labeller=label, rounds=2, step=5.0)
    assert all(torch.equal(p, before[n]) for n, p in sd1.unet.named_parameters())
    assert seen[0].shape[0] == 2 and not torch.equal(seen[0], seen[1])
