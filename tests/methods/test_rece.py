"""RECE: the note's five oracles, parity with a plain loop over matrices and prompts, and the options."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from erasekit import solvers
from erasekit.backbones import backbone
from erasekit.backbones.base import Site, Tokens
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods import resolve
from erasekit.methods._cross import silent
from erasekit.methods._rece_map import SharedMap, attack, erase, residual
from erasekit.methods._rece_text import Rows, gather
from erasekit.methods.rece import RECE, RECEConfig, attack_embedding, attack_residual
from erasekit.methods.uce import UCE, UCEConfig
from erasekit.methods.uce_text import gather_pairs

D, K, N = 12, 5, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(seed: int = 0) -> list[Tensor]:
    return [draw(9 + k, D, seed=100 * seed + k) for k in range(K)]


def moved(original: Sequence[Tensor], seed: int = 50) -> list[Tensor]:
    return [w + 0.3 * draw(*w.shape, seed=seed + k) for k, w in enumerate(original)]


def gram(matrices: Sequence[Tensor]) -> Tensor:
    return sum(w.T @ w for w in matrices)


def plain_map() -> SharedMap:
    return SharedMap(torch.zeros(D, 0).double(), torch.zeros(0, D).double(), 1.0)


# -- the paper's oracles -----------------------------------------------------------------------------------------


def test_oracle_1_the_attack_on_an_unedited_model_is_the_prompt_and_a_heavy_penalty_leaves_nothing() -> None:
    w, c = weights(), draw(N, D, seed=9)
    assert (attack_embedding(w, w, c, reg=1e-13) - c).norm() / c.norm() < 5e-12
    assert attack_embedding(w, w, c, reg=1e14).norm() < 1e-9
    edited = moved(w)
    assert attack_residual(w, w, c, c) == 0 and attack_residual(edited, w, c, torch.zeros_like(c)) == 1


def test_oracle_1_a_heavy_penalty_leaves_the_uce_edit(sd1) -> None:
    loose, held = fit(sd1, reg=1e12, epochs=2), fit(sd1, epochs=0)
    for a, b in zip(deltas(loose), deltas(held), strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()


def test_oracle_2_the_attack_is_stationary() -> None:
    original, c, r = weights(), draw(N, D, seed=9), 0.7
    edited = moved(original)
    found = attack_embedding(edited, original, c, reg=r)
    for x, row in zip(found, c, strict=True):
        left = sum(w.T @ (w @ x - o @ row) for w, o in zip(edited, original, strict=True)) + r * x
        assert left.norm() < 1e-11 * row.norm()


@pytest.mark.parametrize("original", [False, True])
def test_oracle_3_free_erasing_is_exact_and_makes_the_attack_harder(original: bool) -> None:
    w, c, anchor = weights(), draw(D, N, seed=9), draw(D, N, seed=10)
    g, now, rows = gram(w), plain_map(), Rows(c, anchor, None)
    metric = solvers.prior(torch.zeros(D, D).double(), ridge=1e-11)
    curve = []
    for _ in range(3):  # 4 columns a round, 12 in all
        found = attack(g, now, rows, reg=1e-3)
        curve.append(residual(g, now, c, found))
        after = erase(now, found, anchor, metric, scale=1.0, lamb=1e-11, original=original)
        for matrix in w:
            aim = matrix @ now.matrix() @ anchor
            assert (matrix @ after.matrix() @ found - aim).norm() < 1e-7 * aim.norm()
        now = after
    curve.append(residual(g, now, c, attack(g, now, rows, reg=1e-3)))
    assert curve == sorted(curve) and curve[0] < 1e-8 and curve[1] > 1e-5 and curve[3] > 0.1


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("targets", ["cat", ("cat", "red fox", "horse")])
def test_oracle_4_no_epoch_is_uce_bit_for_bit(family: str, targets, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(family)
    ours = fit(pipe, targets, epochs=0, retain=("bird",))
    theirs = UCE().fit(backbone(pipe), EraseRequest.build(targets, anchor="dog", retain=("bird",)), UCEConfig())
    assert len(ours.ops) == len(theirs.ops) and len(ours.self_check["attack_residual"]) == 1
    for a, b in zip(ours.ops, theirs.ops, strict=True):
        assert type(a) is type(b) and all(torch.equal(t, b.tensors()[key]) for key, t in a.tensors().items())


def test_oracle_4_in_factors_too() -> None:
    model = Wide()
    request = EraseRequest.build("cat", anchor="dog")
    ours, theirs = RECE().fit(model, request, RECEConfig(epochs=0)), UCE().fit(model, request, UCEConfig())
    for a, b in zip(ours.ops, theirs.ops, strict=True):
        assert isinstance(a, LowRank) and isinstance(b, LowRank)
        assert torch.equal(a.up, b.up) and torch.equal(a.down, b.down)


def test_oracle_5_the_attack_measures_any_closed_form_edit(sd1) -> None:
    """What the fit reports of its own attack is what the attack finds from outside, on the weights of the edit."""
    model, rows = backbone(sd1), transformers_rows(sd1, "cat")[0]
    original = [model.weight(site) for site in model.sites("cross.kv")]
    edit = fit(sd1, epochs=2, reg=0.01)
    curve = edit.self_check["attack_residual"]
    for found, expected in ((fit(sd1, epochs=0), curve[0]), (fit(sd1, epochs=1, reg=0.01), curve[1]), (edit, curve[2])):
        current = [w + op.delta(w) for w, op in zip(original, found.ops, strict=True)]
        x = attack_embedding(current, original, rows, reg=0.01)
        assert attack_residual(current, original, rows, x) == pytest.approx(expected, rel=1e-3)
    assert curve[0] < curve[1] < curve[2] and not edit.self_check["warnings"]
    assert edit.self_check["attack_length"][-1] == pytest.approx(float(x.norm() / rows.norm()), rel=1e-3)


def test_every_edit_of_this_form_has_an_embedding_that_undoes_it_but_a_longer_one() -> None:
    """x = T^-1 c: for reg to 0 the attack succeeds whatever was erased; what grows is its length."""
    w, c, anchor = weights(), draw(D, N, seed=9), draw(D, N, seed=10)
    g, rows, now = gram(w), Rows(c, anchor, None), plain_map()
    metric = solvers.prior(torch.zeros(D, D).double(), ridge=0.1)
    lengths = []
    for _ in range(3):
        found = attack(g, now, rows, reg=1e-12)
        assert residual(g, now, c, found) < 1e-12
        assert torch.allclose(found, torch.linalg.solve(now.matrix(), c))
        lengths.append(float(found.norm()))
        now = erase(now, found, anchor, metric, scale=1.0, lamb=0.1)
    assert lengths == sorted(lengths)


def test_one_row_ends_past_the_anchor_by_the_formula() -> None:
    c, anchor, nothing = draw(D, 1, seed=9), draw(D, 1, seed=9) + draw(D, 1, seed=10), torch.zeros(D, D).double()
    metric = solvers.prior(nothing, ridge=1e-12)
    free = {"scale": 1.0, "lamb": 1e-12}
    uce = erase(plain_map(), c, anchor, metric, **free)
    found = attack(gram(weights()), uce, Rows(c, anchor, None), reg=1e-12)
    s = (c * anchor).sum() / (c * c).sum()
    assert s > 0 and torch.allclose(found, c + (c - anchor) / s, rtol=1e-7)
    past = (1 + s) * (anchor - c) * (c * found).sum() / (found * found).sum()
    assert torch.allclose(erase(uce, found, anchor, metric, **free)(c), anchor + past, rtol=1e-7)


# -- against the plain loop -------------------------------------------------------------------------------------


def transformers_rows(pipe, prompt: str) -> tuple[Tensor, int]:
    """Rows of transformers' own encoder and the last subject token, as the 2023 scripts find it."""
    batch = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        rows = pipe.text_encoder(batch["input_ids"])[0][0].double()
    return rows, int(batch["attention_mask"].sum()) - 2


def updated(w: Tensor, pairs, kept, *, lamb: float, a: float, b: float, held: Tensor) -> Tensor:
    """UCE's d x d formula for one matrix, one row at a time; `held` is what preserved rows should give."""
    top, bottom = lamb * w, lamb * torch.eye(w.shape[1], dtype=w.dtype)
    for c, anchor in pairs:
        top, bottom = top + a * torch.outer(w @ anchor, c), bottom + a * torch.outer(c, c)
    for p in kept:
        top, bottom = top + b * torch.outer(held @ p, p), bottom + b * torch.outer(p, p)
    return top @ torch.linalg.inv(bottom)


def attacked(now: Sequence[Tensor], first: Sequence[Tensor], c: Tensor, old: Tensor | None, config) -> Tensor:
    """The minimiser of the summed squares, as one least-squares problem of all outputs stacked."""
    r, eye = config.reg**0.5, torch.eye(len(c), dtype=c.dtype)
    rows, aims = list(now), [w @ c for w in first]
    if config.penalty == "zero":
        rows, aims = [*rows, r * eye], [*aims, 0 * c]
    if config.penalty == "standard":
        rows, aims = [*rows, r * eye], [*aims, r * old]
    if config.penalty == "surrogate" and config.surrogate in ("outputs", "both"):
        rows, aims = [*rows, *(r * w for w in now)], [*aims, *(r * w @ c for w in now)]
    if config.penalty == "surrogate" and config.surrogate in ("input", "both"):
        rows, aims = [*rows, r * eye], [*aims, r * c]
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(aims)[:, None]).solution[:, 0]


def textbook(first: Sequence[Tensor], prompts, kept: Tensor, config: RECEConfig, *, empty: Tensor) -> list[Tensor]:
    """RECE matrix by matrix and row by row. `prompts`: ((rows, last), (rows, last), old rows) of each target."""
    tail = []
    for (c, f), (anchor, g), _ in prompts:
        count = 77 - max(f, g)
        tail += list(zip(c[f : f + count], anchor[g : g + count], strict=True))
    b = max(0.1, 1 / (len(kept) // 77))
    now = [updated(w, tail, kept, lamb=0.5, a=1.0, b=b, held=w) for w in first]
    if config.preserve_empty == "each":
        kept = torch.cat([kept, *[empty] * (len(prompts) - 1)])
    for _ in range(config.epochs):
        pairs = [
            (attacked(now, first, row, old if old is None else old[i], config), anchor[i])
            for (c, _), (anchor, _), old in prompts
            for i, row in enumerate(c)
        ]
        held = first if config.preserve_target == "original" else now
        scales = {"lamb": config.lamb, "a": config.erase_scale, "b": config.preserve_scale}
        now = [updated(w, pairs, kept, held=h, **scales) for w, h in zip(now, held, strict=True)]
    return now


def fit(pipe, targets="cat", *, anchor="dog", retain: tuple[str, ...] = (), **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain)
    return RECE().fit(backbone(pipe), request, RECEConfig(**options))


def deltas(edit: Edit) -> list[Tensor]:
    return [op.difference if isinstance(op, Dense) else op.up @ op.down for op in edit.ops]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("sd1", {"epochs": 3}),
        ("sd2", {"epochs": 2, "reg": 1e-3, "preserve_target": "original", "preserve_empty": "each"}),
        ("sd1", {"penalty": "standard", "old": ("fox",), "lamb": 0.3, "erase_scale": 0.5, "preserve_scale": 0.7}),
        ("sd1", {"penalty": "surrogate", "epochs": 2}),
        ("sd2", {"penalty": "surrogate", "surrogate": "input"}),
        ("sd1", {"penalty": "surrogate", "surrogate": "both", "preserve_target": "original"}),
    ],
)
def test_equals_the_plain_loop_on_a_pipeline(family: str, options: dict, request: pytest.FixtureRequest) -> None:
    pipe, config = request.getfixturevalue(family), RECEConfig(**options)
    wanted, retain = [("cat", "dog"), ("red fox", "")], ("a photo of the moon",)
    edit = fit(pipe, [t for t, _ in wanted], anchor=[a for _, a in wanted], retain=retain, **options)
    old = transformers_rows(pipe, config.old[0])[0] if config.old else None
    prompts = [(transformers_rows(pipe, t), transformers_rows(pipe, a), old) for t, a in wanted]
    empty = transformers_rows(pipe, "")[0]
    kept = torch.cat([empty, transformers_rows(pipe, retain[0])[0]])
    first = [pipe.unet.get_submodule(op.module).weight.detach().double() for op in edit.ops]
    expected = textbook(first, prompts, kept, config, empty=empty)
    for w, after, delta in zip(first, expected, deltas(edit), strict=True):
        assert (w + delta - after).norm() / (after - w).norm() < 5e-5


class Wide:
    """A text side of random rows, wide enough that an edit of 77 columns a round is smaller as factors."""

    family, model_id, width = "sd1", "wide", 400

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        return Tokens(torch.zeros(len(prompts), 77, dtype=torch.long), tuple(1 + len(p.split()) for p in prompts))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        seeds = [sum(map(ord, prompt)) for prompt in prompts]
        return torch.stack([draw(77, self.width, seed=seed) for seed in seeds]).float()

    def sites(self, *groups: str) -> list[Site]:
        return [Site("unet", f"attn2.to_{role}", f"cross.{role}", 2) for role in "kv"]

    def weight(self, site: Site) -> Tensor:
        return draw(500, self.width, seed=ord(site.group[-1])).float() / 20

    def fingerprint(self, site: Site) -> dict[str, str]:
        return {}


@pytest.mark.parametrize("preserve_target", ["current", "original"])
def test_factors_stay_factors_and_are_the_same_edit(preserve_target: str) -> None:
    model = Wide()
    config = RECEConfig(epochs=1, preserve_target=preserve_target)
    edit = RECE().fit(model, EraseRequest.build("cat", anchor="dog"), config)
    assert all(isinstance(op, LowRank) and op.rank == 76 + 77 for op in edit.ops)
    assert edit.self_check["sites"][0]["rank"] == 153
    first = [model.weight(site).double() for site in model.sites()]
    cat, dog, empty = (rows.double() for rows in model.encode(["cat", "dog", ""]))
    expected = plain_columns(first, cat, dog, empty, config)
    for w, after, delta in zip(first, expected, deltas(edit), strict=True):
        assert (w + delta - after).norm() / (after - w).norm() < 1e-5


def plain_columns(first, c: Tensor, anchor: Tensor, p: Tensor, config: RECEConfig) -> list[Tensor]:
    """One target and round of `textbook` with rows in blocks, for a width at which its loop is slow."""
    eye = torch.eye(c.shape[1], dtype=c.dtype)

    def step(w: Tensor, held: Tensor, x: Tensor, y: Tensor, lamb: float, b: float) -> Tensor:
        top = lamb * w + w @ y.T @ x + b * held @ p.T @ p
        return torch.linalg.solve(lamb * eye + x.T @ x + b * p.T @ p, top, left=False)

    now = [step(w, w, c[1:], anchor[1:], 0.5, 1.0) for w in first]
    cross = sum(w.T @ o for w, o in zip(now, first, strict=True))
    x = torch.linalg.solve(config.reg * eye + gram(now), cross @ c.T).T
    held = first if config.preserve_target == "original" else now
    return [step(w, h, x, anchor, config.lamb, config.preserve_scale) for w, h in zip(now, held, strict=True)]


def test_many_targets_reduce_to_twice_the_width_and_keep_every_product(sd1) -> None:
    model = backbone(sd1)
    groups = [(word, anchor) for word in ("cat", "fox", "bird", "horse") for anchor in ("dog", "moon")]
    pairs, rows = gather(model, groups, progress=silent)
    same = gather_pairs(model, groups, UCEConfig(), progress=silent)
    assert (
        torch.equal(pairs.x, same.x) and torch.equal(pairs.ys[0], same.ys[0]) and torch.equal(pairs.block, same.block)
    )
    c, a = (torch.cat([model.encode([g[i]])[0] for g in groups]).double() for i in (0, 1))
    assert rows.target.shape == (32, 64) and rows.old is None
    assert torch.allclose(rows.target @ rows.target.T, c.T @ c, rtol=1e-5, atol=1e-4)
    assert torch.allclose(rows.anchor @ rows.target.T, a.T @ c, rtol=1e-5, atol=1e-4)


# -- options, presets, errors -----------------------------------------------------------------------------------


def test_each_preserves_the_empty_prompt_once_a_target(sd1) -> None:
    one, other = (fit(sd1, preserve_empty=word) for word in ("once", "each"))
    assert all(torch.equal(a, b) for a, b in zip(deltas(one), deltas(other), strict=True))
    one, other = (fit(sd1, ["cat", "fox"], preserve_empty=word) for word in ("once", "each"))
    assert not torch.equal(deltas(one)[0], deltas(other)[0])


def test_holding_the_original_drifts_less(sd1) -> None:
    current, original = (
        fit(sd1, epochs=3, retain=("moon",), preserve_scale=10.0, preserve_target=word).self_check["retained_drift"]
        for word in ("current", "original")
    )
    assert original < current


def test_the_presets_are_the_readmes() -> None:
    found = {name: resolve(f"rece:{name}")[1] for name in RECE.presets}
    assert {name: (p.values["epochs"], p.values["reg"], p.anchor) for name, p in found.items()} == {
        "nudity": (3, 0.1, ""),
        "unsafe": (2, 0.1, ""),
        "style": (1, 1e-3, "art"),
        "hard-object": (1, 1e-3, ""),
        "easy-object": (1, 0.1, ""),
    }
    default = RECEConfig()
    assert (default.lamb, default.preserve_scale, default.erase_scale, default.penalty) == (0.1, 0.1, 1.0, "zero")


def test_the_self_check_warns_where_the_attack_became_easier(sd1, monkeypatch: pytest.MonkeyPatch) -> None:
    from erasekit.methods import rece

    values = iter([0.5, 0.4])
    monkeypatch.setattr(rece, "residual", lambda *_: next(values))
    assert "fell from 0.5 to 0.4" in fit(sd1).self_check["warnings"][-1]


def test_the_self_check_warns_where_what_is_retained_holds_the_target(sd1) -> None:
    held = fit(sd1, retain=("a cat",), preserve_target="original", preserve_scale=1e9)
    assert "0% of the way" in held.self_check["warnings"][-1]


def test_what_reads_the_same_and_what_is_singular_say_so() -> None:
    with pytest.raises(InfeasibleError, match="another anchor"):
        RECE().fit(Same(), EraseRequest.build("cat", anchor="dog"), RECEConfig())
    flat = [torch.zeros(3, D, dtype=torch.float64)]
    with pytest.raises(InfeasibleError, match="raise reg"):
        attack_embedding(flat, flat, draw(N, D, seed=1), reg=0.0)


class Same(Wide):
    """Every prompt reads alike."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return super().encode(["x"] * len(prompts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"reg": 0.0}, "reg"),
        ({"lamb": float("nan")}, "lamb"),
        ({"erase_scale": 0.0}, "erase_scale"),
        ({"preserve_scale": -1.0}, "preserve_scale"),
        ({"penalty": "ridge"}, "surrogate"),
        ({"penalty": "standard"}, "go together"),
        ({"old": ("fox",)}, "go together"),
        ({"surrogate": "input"}, "needs penalty=surrogate"),
        ({"preserve_target": "first"}, "original"),
        ({"preserve_empty": "never"}, "each"),
        ({"penalty": "standard", "old": ("fox", "bird")}, "2 old prompts for 1 targets"),
    ],
)
def test_bad_parameters_raise_naming_the_field(options: dict, message: str, sd1) -> None:
    with pytest.raises(UsageError, match=message):
        fit(sd1, **options)
