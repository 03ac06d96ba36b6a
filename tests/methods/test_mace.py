"""MACE: the oracles of its paper, resuming, pictures and masks, and what a user can get wrong; on tiny random models."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

import erasekit
from erasekit.backbones import backbone
from erasekit.concept import EraseRequest
from erasekit.edit import Dense, Edit, LowRank
from erasekit.errors import DivergenceError, TrainingError, UsageError
from erasekit.methods import make_config, resolve
from erasekit.methods._mace_concept import Concept, Source, sources
from erasekit.methods._mace_fusion import Fusion
from erasekit.methods._mace_loss import attention, loss, timesteps
from erasekit.methods._templates import TEMPLATES, prompt_pairs
from erasekit.methods.mace import MACE, MACEConfig, _bench, _refined
from erasekit.methods.mace_refine import MACERefine, MACERefineConfig, refine
from erasekit.training import images, segments
from erasekit.training.loop import Step
from erasekit.training.maps import cross_attentions, maps

QUICK = {"steps": 2, "rate": 1e-2, "count": 2, "sampling_steps": 2, "templates": "none"}


def fit(model, targets="cat", *, anchor="dog", retain=(), seed=0, checkpoint=None, progress=None, **options) -> Edit:
    request = EraseRequest.build(targets, anchor=anchor, retain=retain, seed=seed)
    config = make_config(MACE, QUICK | options)
    return MACE().fit(backbone(model), request, config, checkpoint=checkpoint, progress=progress)


def opened(pipe, targets="cat", **options):
    """A bench on the refined weights and its configuration, without training."""
    request = EraseRequest.build(targets, anchor="dog")
    config = MACEConfig(**(QUICK | options))
    found = _refined(backbone(pipe), request, config, lambda *_: None)
    return _bench(backbone(pipe), request, config, found), config


def state(pipe) -> dict[str, str]:
    found = {f"{part}.{k}": hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()
             for part in ("unet", "vae", "text_encoder") for k, v in getattr(pipe, part).state_dict().items()}  # fmt: skip
    flags = {f"{k} flag": f"{p.requires_grad} {p.grad} {id(p)}" for k, p in pipe.unet.named_parameters()}
    return found | flags | {f"{k} mode": f"{m.training} {len(m._forward_hooks)}" for k, m in pipe.unet.named_modules()}


def same(a: Edit, b: Edit) -> bool:
    one, other = ({(op.site, k): v for op in e.ops for k, v in op.tensors().items()} for e in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- the paper's numbers ------------------------------------------------------------------------------------------


def test_defaults_and_presets_are_the_papers() -> None:
    config = MACEConfig()
    assert (config.steps, config.rate, config.clip, config.decay, config.rank, config.batch) == (50, 1e-4, 1, 0.01, 1, 1)
    assert (config.t1, config.t2, config.slope, config.focus, config.use_pooler) == (200, 400, 0.05, True, True)
    assert (config.count, config.guidance, config.sampling_steps) == (8, 7.5, 30)
    assert set(MACE.presets) == set(MACERefine.presets)
    for name, preset in MACERefine.presets.items():
        mine, its = make_config(MACE, dict(MACE.presets[name].values)), make_config(MACERefine, dict(preset.values))
        shared = ("templates", "preserve_scale", "preserve_weight", "lamb", "refine_scale", "eps")
        assert all(getattr(mine, key) == getattr(its, key) for key in shared)
        assert MACE.presets[name].anchor == preset.anchor
        assert mine.rate == (1e-5 if name in ("object", "explicit") else 1e-4)
        assert mine.steps == (120 if name == "explicit" else 50) and mine.focus == (name != "explicit")
        assert mine.mask == ("whole" if name == "style" else "attention")
    assert "style" in resolve("mace:style")[1].values["picture"]


def test_oracle_5_timesteps_are_drawn_around_300() -> None:
    found = timesteps(MACEConfig(), range(1000))
    assert float(found.sum()) == pytest.approx(1) and bool((found > 0).all())
    assert 200 <= int(found.argmax()) <= 400 and float(found[200:401].sum()) > 0.8
    for away in (1, 50, 100, 250):
        assert float(found[300 - away]) == pytest.approx(float(found[300 + away]), rel=1e-9)
    one = 1 / (1 + numpy.exp(-0.05 * (250 - 200))) - 1 / (1 + numpy.exp(-0.05 * (250 - 400)))
    two = 1 / (1 + numpy.exp(-0.05 * (420 - 200))) - 1 / (1 + numpy.exp(-0.05 * (420 - 400)))
    assert float(found[250] / found[420]) == pytest.approx(one / two)
    uniform = timesteps(MACEConfig(focus=False), range(1000))
    assert float(uniform.min()) == float(uniform.max()) == pytest.approx(1e-3)


# -- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_norm_inside_mask_and_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    found = [torch.rand(2, 2, side * side, 5, generator=draw).softmax(-1) for side in (4, 2)]
    masks = torch.rand(2, 4, 4, generator=draw) > 0.5
    tokens = [1, 3]
    naive = {True: 0.0, False: 0.0}
    for b in range(2):
        for probability, side in zip(found, (4, 2), strict=True):
            energy = 0.0
            for head in range(2):
                for i in range(side):
                    for j in range(side):
                        if masks[b, i * 4 // side, j * 4 // side]:
                            energy += sum(float(probability[b, head, i * side + j, t]) ** 2 for t in tokens)
            naive[True] += energy / 2
            naive[False] += energy**0.5 / 2
    for squared, wanted in naive.items():
        assert float(attention(found, masks, tokens, squared=squared)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_an_empty_mask_gives_zero_and_no_gradient(squared: bool) -> None:
    found = torch.rand(1, 2, 16, 5).softmax(-1).requires_grad_()
    value = attention([found], torch.zeros(1, 4, 4, dtype=torch.bool), [1], squared=squared)
    value.backward()
    assert float(value.detach()) == 0 and torch.equal(found.grad, torch.zeros_like(found))


@pytest.mark.parametrize("use_pooler", [True, False])
def test_the_loss_on_a_model_is_that_of_its_explicit_attention(sd1, use_pooler: bool) -> None:
    """Against diffusers' unfused processor on a model whose weights are the refined ones, token by token."""
    bench, config = opened(sd1, use_pooler=use_pooler, templates="prompt")
    step = Step(5, 3)
    with bench as tools:
        concept = Concept(tools, config, "cat", Source())
        found = float(loss(tools, config, concept, step).detach())
        again = float(loss(tools, config, concept, step).detach())
        pictures = concept.pictures()
    draw = step.generator("draw")
    picked = int(torch.randint(2, (1,), generator=draw))
    sentence = TEMPLATES["prompt"][int(torch.randint(15, (), generator=draw))].format("cat")
    timestep = int(torch.multinomial(timesteps(config, range(1000)), 1, generator=draw))
    level = sd1.scheduler.alphas_cumprod[timestep].double()
    noise = torch.randn(1, 4, 16, 16, generator=step.generator("noise"))
    latents = (level.sqrt() * pictures.latents[picked] + (1 - level).sqrt() * noise).float()
    ids = sd1.tokenizer(sentence)["input_ids"]
    words = [ids.index(sd1.tokenizer("cat")["input_ids"][1])]
    tokens = words + list(range(len(ids) - 1, 77)) * use_pooler
    kept: list[torch.Tensor] = []
    for attention_ in cross_attentions(sd1.unet).values():
        attention_.set_processor(AttnProcessor())
        scores = attention_.get_attention_scores
        attention_.get_attention_scores = lambda q, k, mask=None, s=scores: kept.append(s(q, k, mask)) or kept[-1]
    edit = MACERefine().fit(backbone(sd1), EraseRequest.build("cat", anchor="dog"), MACERefineConfig(templates="prompt"))
    with edit.applied(sd1), torch.no_grad():
        sd1.unet(latents, timestep, encoder_hidden_states=backbone(sd1).encode([sentence]))
    wanted = 0.0
    for probability in kept:  # (heads, positions, tokens)
        side = int(probability.shape[1] ** 0.5)
        rows = [i * side + j for i in range(side) for j in range(side)
                if pictures.masks[picked, i * 16 // side, j * 16 // side]]  # fmt: skip
        wanted += float(probability[:, rows][:, :, tokens].square().sum())
    assert found == again == pytest.approx(wanted, rel=1e-4) and wanted > 0


def test_oracle_6_values_learn_through_deeper_layers_alone(sd1) -> None:
    bench, config = opened(sd1)
    with bench as tools:
        concept = Concept(tools, config, "cat", Source())
        value = loss(tools, config, concept, Step(0, 0))
        names = [name for name in tools.student.trained if name.endswith(".up")]
        found = torch.autograd.grad(value, [tools.student.trained[n] for n in names], allow_unused=True)
    sizes = {n: 0.0 if g is None else float(g.abs().max()) for n, g in zip(names, found, strict=True)}
    last = list(cross_attentions(sd1.unet))[-1]
    assert sizes.pop(f"{last}.to_v.up") == 0 and min(sizes.values()) > 0


# -- the first stage is what the LoRAs stand on --------------------------------------------------------------------


def test_the_student_starts_with_the_refined_weights(sd1) -> None:
    edit = MACERefine().fit(backbone(sd1), EraseRequest.build("cat", anchor="dog"), MACERefineConfig(templates="none"))
    bench, _ = opened(sd1)
    with bench as tools, tools.student.active():
        for op in edit.ops:
            layer = sd1.unet.get_submodule(op.module)
            own = tools.student._weights[op.module]
            assert layer._parameters["weight"] is own
            frozen = tools.backbone._weights["unet"].get(f"{op.module}.weight")
            assert torch.allclose(own, frozen + op.delta(frozen), atol=1e-6) and not torch.equal(own, frozen)


# -- the third stage ------------------------------------------------------------------------------------------------


def gathered(pipe, names: list[str], *, zero: bool = False, right: float = 1.0, **options):
    """A fusion of random LoRAs, its configuration, and by concept (factors, features)."""
    model = backbone(pipe)
    config = MACEConfig(**(QUICK | options))
    pairs = prompt_pairs(EraseRequest.build(names, anchor="dog"), TEMPLATES["prompt"])
    with torch.no_grad():
        found = refine(model, pairs, config)
    fusion, parts = Fusion(replace(found, right=right * found.right)), []
    for i, name in enumerate(names):
        draw = torch.Generator().manual_seed(i)
        weights = {site.module: model.weight(site) for site in model.sites("cross.kv")}
        factors = {m: (0.0 if zero else 1.0) * torch.randn(len(w), 1, generator=draw) for m, w in weights.items()}
        factors = {m: (up, 0.1 * torch.randn(1, 32, generator=draw)) for m, up in factors.items()}
        features = model.encode([template.format(name) for template in TEMPLATES["prompt"]])
        fusion.add(factors, features, [3] * len(features))
        parts.append((factors, features))
    return fusion, config, parts, {s.module: model.weight(s).detach().double() for s in model.sites("cross.kv")}


def deltas(pipe, fusion: Fusion, config: MACEConfig, weights: dict) -> dict[str, torch.Tensor]:
    ops, _, _ = fusion.solved(backbone(pipe), config, lambda *_: None)
    return {op.module: op.delta(weights[op.module].float()).double() for op in ops}


@pytest.mark.parametrize(
    ("family", "l1", "right"), [("sd1", None, 1.0), ("sd2", 1e-2, 1.0), ("sd1", 1e-3, 0.0)]
)
def test_fusion_is_the_papers_solution_row_by_row(family: str, l1: float | None, right: float, request) -> None:
    """Without a refinement (right = 0) the ops are factors of rank 2, else whole matrices."""
    pipe = request.getfixturevalue(family)
    scale = 1e-2
    fusion, config, parts, weights = gathered(pipe, ["cat", "fox"], right=right, refine_scale=l1, preserve_scale=scale,
                                              prior_count=500.0, lamb=0.3, eps=1e-4)  # fmt: skip
    found = deltas(pipe, fusion, config, weights)
    kinds = {type(op) for op in fusion.solved(backbone(pipe), config, lambda *_: None)[0]}
    assert kinds == ({LowRank} if right == 0 else {Dense})
    captions = fusion.found.kept.matrix * scale / (l1 or scale**2)  # l2 is the scale itself
    prior = captions + 1e-4 * captions.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    for module, weight in weights.items():
        start = weight + weight @ fusion.found.right
        top, bottom = 0.3 * start + weight @ prior, 0.3 * torch.eye(32, dtype=torch.float64) + prior
        for factors, features in parts:
            up, down = (t.double() for t in factors[module])
            for row in features.double().flatten(0, 1):
                top = top + torch.outer((start + up @ down) @ row, row)
                bottom = bottom + torch.outer(row, row)
        wanted = top @ torch.linalg.inv(bottom) - weight
        assert (found[module] - wanted).norm() < 2e-5 * wanted.norm()


def test_oracle_3_one_concept_is_its_lora_and_none_the_refinement(sd1) -> None:
    options = {"preserve_scale": 0.0, "preserve_weight": 0.0, "lamb": 1e-6}
    for zero in (False, True):
        fusion, config, parts, weights = gathered(sd1, ["cat"], zero=zero, **options)
        found = deltas(sd1, fusion, config, weights)
        for module, weight in weights.items():
            up, down = (t.double() for t in parts[0][0][module])
            rows = parts[0][1].double().flatten(0, 1).T
            wanted = (weight @ fusion.found.right + up @ down) @ rows
            assert (found[module] @ rows - wanted).norm() < 1e-5 * wanted.norm()


def test_oracle_4_two_concepts_keep_their_own_better_than_the_average_does(sd1) -> None:
    """Over both, since their sentences share rows on which two random LoRAs contradict each other."""
    options = {"preserve_scale": 0.0, "preserve_weight": 0.0, "lamb": 1e-6}
    fusion, config, parts, weights = gathered(sd1, ["cat", "fox"], **options)
    found = deltas(sd1, fusion, config, weights)
    for module, weight in weights.items():
        start = weight @ fusion.found.right
        changes = [start + factors[module][0].double() @ factors[module][1].double() for factors, _ in parts]
        rows = [features.double().flatten(0, 1).T for _, features in parts]

        def missed(change: torch.Tensor, changes=changes, rows=rows) -> float:
            return sum(float(((change - own) @ e).square().sum()) for own, e in zip(changes, rows, strict=True))

        assert missed(found[module]) < 0.99 * missed(sum(changes) / 2)


def test_a_record_compares_with_each_concepts_own_lora(sd1, monkeypatch) -> None:
    """On some of the columns: here the second of the three of each concept."""
    monkeypatch.setattr("erasekit.methods._mace_fusion.spread", lambda count: torch.tensor([1, 4]))
    fusion, config, parts, weights = gathered(sd1, ["cat", "fox"])
    ops, records, _ = fusion.solved(backbone(sd1), config, lambda *_: None)
    for op, record in zip(ops, records, strict=True):
        weight, missed, size = weights[op.module], 0.0, 0.0
        for factors, features in parts:
            column = features[0, 4].double()
            up, down = (t.double() for t in factors[op.module])
            own = weight @ (fusion.found.right @ column) + up @ (down @ column)
            missed += float((op.delta(weight.float()).double() @ column - own).square().sum())
            size += float((weight @ column + own).square().sum())
        assert record["residual"] == pytest.approx((missed / size) ** 0.5, rel=1e-4)


def test_memory_for_a_concept_is_its_factors(sd1) -> None:
    """Not a matrix of the width squared is kept for each concept."""
    def numbers(fusion: Fusion) -> int:
        pairs = [t for parts in fusion.factors.values() for pair in parts for t in pair]
        pulls = [t for parts in fusion.pulls.values() for t in parts]
        return sum(t.numel() for t in [fusion.second, *fusion.columns, *pairs, *pulls])

    one, two, four = (numbers(gathered(sd1, names)[0]) for names in (["cat"], ["cat", "fox"], ["cat", "fox", "a", "of"]))
    assert four - two == 2 * (two - one)
    each = sum(len(backbone(sd1).weight(s)) + 2 * 32 for s in backbone(sd1).sites("cross.kv")) + 3 * 32
    assert two - one == each


# -- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_the_targets_get_less_attention_and_the_model_is_as_it_was(family: str, request) -> None:
    pipe = request.getfixturevalue(family)
    before = state(pipe)
    edit = fit(pipe, ["cat", "fox"], steps=12, rate=4e-2, preserve_scale=0.0, lamb=1e-2, use_pooler=False,
               templates="prompt")  # fmt: skip
    assert state(pipe) == before
    check = edit.self_check
    assert check["residual"] < 0.9 and check["training"]["steps"] == 24
    assert [note["target"] for note in check["concepts"]] == ["cat", "fox"]
    names = {name for name, _ in pipe.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert {op.module for op in edit.ops} == names and check["modules"] == len(names)

    def read(word: str) -> float:
        text = backbone(pipe).encode([f"a photo of {word}"])
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))
        with torch.no_grad(), maps(pipe.unet) as found:
            pipe.unet(latents, 300, encoder_hidden_states=text)
        return float(sum(m[..., 4].square().sum() for m in found.values()))

    plain = [read("cat"), read("fox")]
    with edit.applied(pipe):
        assert all(now < then for now, then in zip([read("cat"), read("fox")], plain, strict=True))


def test_what_is_retained_is_held_by_the_prior(sd1) -> None:
    held = fit(sd1, retain=("fox",), preserve_weight=1e9).self_check
    free = fit(sd1, retain=("fox",), preserve_weight=0.0).self_check
    assert held["retained_drift"] < 1e-2 * free["retained_drift"]
    assert any("not protected" in line for line in free["warnings"])
    first, third = (held[stage]["retained_weight"] for stage in ("prior", "fusion"))
    assert first == pytest.approx(1e-4 * third) and first > 0
    own = fit(sd1, retain=("fox",), refine_scale=1e-4).self_check
    assert [own[stage]["caption_weight"] for stage in ("prior", "fusion")] == pytest.approx([60, 60])


def test_many_concepts_are_one_pass_each_and_one_edit(sd1) -> None:
    seen: list[tuple[int, int, str]] = []
    names = ["cat", "fox", "a", "b", "c", "e"]
    edit = fit(sd1, names, steps=1, count=1, sampling_steps=1, progress=lambda *report: seen.append(report))
    training = [(done, total) for done, total, what in seen if what.startswith("training: ")]
    assert training == [(i + 1, 6) for i in range(6)] and "for 'fox', 2 of 6" in str(seen)
    assert len(edit.self_check["concepts"]) == len(edit.self_check["training"]["loss"]) == 6
    each = sum(len(backbone(sd1).weight(site)) + 32 for site in backbone(sd1).sites("cross.kv"))
    assert edit.self_check["training"]["numbers"] == 6 * each


@cache
def plain_edit() -> Edit:
    return fit(tiny.sd1())


@pytest.mark.parametrize("options", [{"recompute": True}, {"precision": "bfloat16"}, {"ema": 0.5}, {"batch": 2},
                                     {"accumulate": 2}, {"rank": 2}, {"variant": "released"}])  # fmt: skip
def test_every_setting_gives_an_edit_and_leaves_the_model(sd1, options: dict) -> None:
    before = state(sd1)
    edit, plain = fit(sd1, **options), plain_edit()
    assert state(sd1) == before
    if "recompute" in options:
        pairs = zip(edit.ops, plain.ops, strict=True)
        assert all(torch.allclose(a.difference, b.difference, atol=1e-5) for a, b in pairs)
    else:
        assert not same(edit, plain)


def test_a_half_precision_model_is_trained_in_float32(sd1) -> None:
    sd1.unet.to(torch.bfloat16)
    edit = fit(sd1, rate=1e-5)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for op in edit.ops for t in op.tensors().values())


# -- ending and going on --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_any_step_of_any_concept_goes_on_to_the_same_edit(sd1, tmp_path: Path) -> None:
    options = {"targets": ["cat", "fox"], "steps": 3, "save_every": 2, "count": 1, "sampling_steps": 1}
    before, whole = state(sd1), fit(sd1, **options)
    whole.save(tmp_path / "whole.safetensors")
    for at in (1, 3, 4, 5, 6):

        def kill(done: int, total: int, what: str, at: int = at) -> None:
            if what.startswith("training") and done == at:
                raise KeyboardInterrupt

        place = tmp_path / f"run{at}" if at % 2 else tmp_path / f"run{at}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            fit(sd1, **options, checkpoint=place, progress=kill)
        assert state(sd1) == before
        resumed = fit(sd1, **options, checkpoint=place)
        resumed.save(tmp_path / "resumed.safetensors")
        assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()
        files = sorted(p.name for p in (place.iterdir() if at % 2 else tmp_path.glob(f"run{at}.*safetensors")))
        assert files == [f"checkpoint{n}.safetensors" if at % 2 else f"run{at}{n}.safetensors" for n in (".2", "")]


def test_a_finished_concept_is_not_worked_on_again(sd1, tmp_path: Path, monkeypatch) -> None:
    options = {"targets": ["cat", "fox"]}
    whole = fit(sd1, **options, checkpoint=tmp_path)
    monkeypatch.setattr(Concept, "_drawn", lambda self: pytest.fail("pictures were drawn again"))
    monkeypatch.setattr("erasekit.methods._mace_loss.loss", lambda *_: pytest.fail("a step was made again"))
    assert same(fit(sd1, **options, checkpoint=tmp_path), whole)


def test_a_run_that_filled_the_memory_goes_on_with_less(sd1, tmp_path: Path, monkeypatch) -> None:
    def full(done: int, total: int, what: str) -> None:
        if what.startswith("training") and done == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    options = {"targets": ["cat", "fox"], "steps": 1, "count": 1, "sampling_steps": 1, "checkpoint": tmp_path}
    with pytest.raises(TrainingError, match="set recompute=true"):
        fit(sd1, **options, progress=full)
    monkeypatch.setattr(Concept, "_drawn", lambda self: pytest.fail("pictures were drawn again"))
    fit(sd1, **options, recompute=True, at_once=1)


def test_the_checkpoint_of_another_run_is_refused(sd1, tmp_path: Path) -> None:
    options = {"targets": ["cat", "fox"], "steps": 1, "count": 1, "sampling_steps": 1}
    fit(sd1, **options, checkpoint=tmp_path)
    for other, named in [({"targets": ["cat", "a"]}, "targets"), ({"seed": 1}, "seed"), ({"rate": 1.0}, "parameters"),
                         ({"anchor": "a"}, "anchors"), ({"retain": ("of",)}, "retain")]:  # fmt: skip
        with pytest.raises(TrainingError, match=rf"another run \(other {named}"):
            fit(sd1, **(options | other), checkpoint=tmp_path)
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of the fox\n")
    fit(sd1, **options, prior_file=str(captions), checkpoint=tmp_path / "b")
    captions.write_text("a photo of the dog\n")
    with pytest.raises(TrainingError, match=r"another run \(other captions\)"):
        fit(sd1, **options, prior_file=str(captions), checkpoint=tmp_path / "b")


def test_the_pictures_of_a_killed_run_are_kept(sd1, tmp_path: Path) -> None:
    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("training") and done == 2:
            raise KeyboardInterrupt

    options = {"steps": 3, "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        fit(sd1, **options, checkpoint=tmp_path, progress=kill)
    drawn, Concept._drawn = Concept._drawn, lambda self: pytest.fail("pictures were drawn again")
    try:
        resumed = fit(sd1, **options, checkpoint=tmp_path)
    finally:
        Concept._drawn = drawn
    assert same(resumed, fit(sd1, **options))


# -- pictures and masks ---------------------------------------------------------------------------------------------


def test_heat_is_the_mean_attention_to_the_phrase(sd1) -> None:
    """Against the explicit maps of single passes; both guidance branches are in a batch, the first is not counted."""
    model = backbone(sd1)
    read = segments.positions(model, "a photo of the red fox", "red fox")
    assert read == [5, 6, 7, 8]  # r e d fox
    bench, _ = opened(sd1)
    latents, text = torch.randn(4, 4, 16, 16), model.encode(["", "", "a photo of the red fox", "a photo of the red fox"])
    with bench as tools:
        heat = segments.Heat(tools.denoise, read, 2)
        first = heat(latents, 700, text)
        assert torch.equal(first, tools.denoise(latents, 700, text))
        heat(latents, 300, text)
        wanted = torch.zeros(2, 16, 16)
        for timestep in (700, 300):
            with torch.no_grad(), maps(sd1.unet) as found:
                sd1.unet(latents[2:], timestep, encoder_hidden_states=text[2:])
            for probability in found.values():
                side = int(probability.shape[2] ** 0.5)
                flat = probability[..., read].mean(-1).mean(1).reshape(2, 1, side, side)
                wanted += torch.nn.functional.interpolate(flat, (16, 16), mode="bilinear")[:, 0] / len(found)
    torch.testing.assert_close(heat.total, wanted, rtol=1e-4, atol=1e-6)


def test_masks_are_cut_from_the_heat_and_whole_where_nothing_is_found() -> None:
    heat = torch.stack([torch.linspace(0, 1, 16).reshape(4, 4), torch.full((4, 4), 0.3), torch.full((4, 4), torch.nan)])
    found = segments.segmented(heat, threshold=0.5)
    assert torch.equal(found[0], heat[0] > 0.5) and not found[1:].any()
    whole = segments.found_or_whole(found)
    assert torch.equal(whole[0], found[0]) and whole[1:].all()


def test_pictures_are_those_of_the_seed_however_many_are_drawn_at_once(sd1) -> None:
    drawn = []
    for at_once in (1, 3):
        bench, config = opened(sd1, count=3, at_once=at_once)
        with bench as tools:
            drawn.append(Concept(tools, config, "cat", Source()).pictures())
    assert torch.allclose(drawn[0].latents, drawn[1].latents, atol=1e-3 * float(drawn[1].latents.abs().max()))
    assert drawn[0].latents.shape == (3, 4, 16, 16) and drawn[0].masks.shape == (3, 16, 16)
    assert 0 < float(drawn[0].masks.float().mean()) < 1 and drawn[0].counts == {"pictures": 3, "whole": 0, "missed": 0}
    bench, config = opened(sd1, mask="whole")
    with bench as tools:
        found = Concept(tools, config, "cat", Source()).pictures()
        assert found.masks.all() and found.counts == {"pictures": 2, "whole": 2, "missed": 0}


def folder(place: Path, names: list[str], *, size: tuple[int, int] = (40, 32), half: bool = False) -> Path:
    """Pictures of noise, or masks whose left half is white."""
    place.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = numpy.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=numpy.uint8)
        if half:
            pixels[:] = 0
            pixels[:, : size[0] // 2] = 255
        Image.fromarray(pixels).save(place / f"{name}.png")
    return place


def test_own_pictures_and_masks_are_read(sd1, tmp_path: Path) -> None:
    images, masks = folder(tmp_path / "images", ["x", "y"]), folder(tmp_path / "masks", ["x", "y"], half=True)
    options = {"images": str(images), "masks": str(masks)}
    bench, config = opened(sd1, **options)
    with bench as tools:
        (source,) = sources(config, tools.request)
        found = Concept(tools, config, "cat", source).pictures()
    wanted = torch.zeros(2, 16, 16, dtype=torch.bool)
    wanted[:, :, :8] = True
    assert torch.equal(found.masks, wanted) and found.latents.shape == (2, 4, 16, 16)
    before = state(sd1)
    with_masks, without = fit(sd1, **options), fit(sd1, images=str(images))
    assert state(sd1) == before and not same(with_masks, without) and not same(without, fit(sd1))
    assert with_masks.self_check["concepts"][0]["pictures"] == 2
    Image.new("L", (40, 32)).save(masks / "x.png")  # black: nothing there
    check = fit(sd1, **options).self_check
    assert check["concepts"][0]["whole"] == check["concepts"][0]["missed"] == 1
    assert any("nothing was found" in line for line in check["warnings"])
    Image.new("L", (40, 32), 255).save(masks / "x.png")  # white: it is everywhere
    check = fit(sd1, **options).self_check
    assert check["concepts"][0]["whole"] == 1 and check["concepts"][0]["missed"] == 0
    assert not any("nothing was found" in line for line in check["warnings"])


def test_masks_and_pictures_are_turned_upright(tmp_path: Path) -> None:
    """A camera held sideways writes so: the left of what is stored is the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored, upright = Image.new("L", (40, 32)), Image.new("L", (32, 40))
    stored.paste(255, (0, 0, 20, 32))
    stored.convert("RGB").save(tmp_path / "x.png", exif=exif)
    upright.paste(255, (0, 0, 32, 20))
    stored.save(tmp_path / "a.png", exif=exif)
    upright.save(tmp_path / "b.png")
    wanted = torch.zeros(1, 16, 16, dtype=torch.bool)
    wanted[:, :8] = True
    for name in ("a.png", "b.png"):
        assert torch.equal(segments.read_masks([tmp_path / name], [tmp_path / "x.png"], (16, 16), 2), wanted)
    assert torch.equal(images.pixels(tmp_path / "x.png", (32, 32))[:1, ::2, ::2] > 0, wanted)


def test_several_targets_have_a_folder_each_and_changed_files_are_another_run(sd1, tmp_path: Path) -> None:
    for name in ("cat", "fox"):
        folder(tmp_path / "images" / name, ["x"])
    options = {"targets": ["cat", "fox"], "images": str(tmp_path / "images"), "steps": 1}
    fit(sd1, **options, checkpoint=tmp_path / "run")
    folder(tmp_path / "images" / "fox", ["y", "x"])
    with pytest.raises(TrainingError, match=r"another run \(other images\)"):
        fit(sd1, **options, checkpoint=tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be read"):
        fit(sd1, **(options | {"targets": ["cat", "a"]}))


def test_what_is_wrong_with_files_is_one_clear_line(sd1, tmp_path: Path) -> None:
    images, masks, empty = folder(tmp_path / "images", ["x", "y"]), tmp_path / "masks", tmp_path / "empty"
    empty.mkdir()
    folder(masks, ["x"], half=True)
    cases = [({"images": str(empty)}, "holds no image"), ({"images": str(tmp_path / "none")}, "cannot be read"),
             ({"masks": str(masks)}, "masks belong to pictures"),
             ({"images": str(images), "masks": str(tmp_path / "none")}, "is no folder"),
             ({"images": str(images), "masks": str(masks)}, r"y.png is missing")]  # fmt: skip
    for options, named in cases:
        with pytest.raises(UsageError, match=named) as error:
            erasekit.erase(sd1, "cat", method="mace", **(QUICK | options))
        assert "\n" not in str(error.value)
    folder(masks, ["y"], size=(8, 8), half=True)
    with pytest.raises(UsageError, match="of the images' size"):
        fit(sd1, images=str(images), masks=str(masks))
    (masks / "y.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"y.png cannot be read"):
        fit(sd1, images=str(images), masks=str(masks))
    (images / "y.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"y.png cannot be read"):
        fit(sd1, images=str(images))


# -- what is asked in a wrong way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"), ({"mask": "sam"}, "attention"), ({"rank": 0}, "rank"), ({"count": 0}, "count"),
        ({"threshold": 1.0}, "threshold"), ({"t1": 500.0}, "t2"), ({"slope": 0.0}, "slope"), ({"picture": "a cat"}, "picture"),
        ({"variant": "other"}, "variant"), ({"preserve_scale": 0.0}, "singular"), ({"sampling_steps": 0}, "sampling_steps"),
        ({"templates": "people"}, "templates"), ({"at_once": 0}, "at_once"),
        ({"mask": "whole", "images": "a", "masks": "b"}, "mask=whole takes no masks"),
    ],
)  # fmt: skip
def test_bad_parameters_raise_naming_the_field(options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        MACEConfig(**options)


def test_timesteps_that_the_model_does_not_have_are_refused_before_any_picture(sd1, monkeypatch) -> None:
    monkeypatch.setattr(Concept, "_drawn", lambda self: pytest.fail("pictures were drawn"))
    with pytest.raises(UsageError, match="t1=2000 and t2=3000 are outside the model's 1000 timesteps") as error:
        fit(sd1, t1=2000.0, t2=3000.0, slope=1.0)
    assert "\n" not in str(error.value)
    assert timesteps(MACEConfig(t1=2000.0, t2=3000.0, slope=1.0, focus=False), range(1000)).isfinite().all()


def test_pictures_that_are_not_finite_stop_in_one_line_and_leave_the_model(sd1) -> None:
    before = state(sd1)
    with torch.no_grad():
        sd1.unet.conv_in.weight[0, 0] = float("inf")
    broken = state(sd1)
    with pytest.raises(DivergenceError, match="the pictures of 'cat' are not finite: load the model in float32") as error:
        fit(sd1)
    assert "\n" not in str(error.value) and state(sd1) == broken != before


def test_the_plan_counts_every_lora_and_changes_nothing(sd1) -> None:
    before = state(sd1)
    plan = erasekit.plan(sd1, ["cat", "fox"], method="mace", **QUICK)
    each = sum(len(backbone(sd1).weight(site)) + 32 for site in backbone(sd1).sites("cross.kv"))
    assert (plan.numbers, plan.steps) == (2 * each, 4) and plan.seconds > 0 and state(sd1) == before
    assert "2 targets" in plan.what
    pictures = [erasekit.plan(sd1, "cat", method="mace", **(QUICK | {"count": 32, "at_once": n})).memory for n in (1, 32)]
    batches = [erasekit.plan(sd1, "cat", method="mace", **(QUICK | {"batch": n})).memory for n in (1, 2)]
    with maps(sd1.unet) as found, torch.no_grad():
        sd1.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 77, 32))
    each = sum(4 * layer.numel() for layer in found.values())
    assert pictures[1] > 64 * each > pictures[0]  # both branches of all pictures that are drawn together
    assert batches[1] - batches[0] > each  # maps are kept for the pass back
