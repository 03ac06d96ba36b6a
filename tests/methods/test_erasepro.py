"""ErasePro against the oracles of its derivation, on random CLIP encoders wide enough for 77 columns."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from erasekit import methods
from erasekit.backbones.sd import SDBackbone
from erasekit.concept import EraseRequest
from erasekit.edit import Edit, LowRank
from erasekit.errors import InfeasibleError, UsageError
from erasekit.methods._align import Walk
from erasekit.methods.erasepro import ErasePro, EraseProConfig, align

WIDTH, LAYERS = 256, 3
UNRELATED = ["", "a fox", "the photo in style of dog and cat"]


def wide(dtype: torch.dtype = torch.float64) -> StableDiffusionPipeline:
    """A pipeline whose text width holds three prompts at every position."""
    tokens = tiny.tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=4, max_position_embeddings=77, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(32,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=8, cross_attention_dim=WIDTH, attention_head_dim=4,
        )  # fmt: skip
        encoder = CLIPTextModel(config)
        for name, parameter in encoder.named_parameters():
            if "layer_norm" not in name:  # larger weights than the default: attention that is not near uniform
                parameter.data.normal_(std=0.06)
    pipe = StableDiffusionPipeline(
        vae=tiny.vae(), text_encoder=encoder.eval().to(dtype), unet=unet.eval().to(dtype), tokenizer=tokens,
        scheduler=tiny.scheduler("epsilon"), safety_checker=None, feature_extractor=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return pipe


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return wide()


@pytest.fixture
def backbone(pipe) -> SDBackbone:
    return SDBackbone.from_pipeline(pipe)


def fit(backbone, targets="cat", anchor="dog", retain=(), **parameters) -> Edit:
    config = methods.make_config(ErasePro, parameters)
    return ErasePro().fit(backbone, EraseRequest.build(targets, anchor=anchor, retain=retain), config)


@torch.no_grad()
def output(pipe, prompt: str) -> torch.Tensor:
    ids = pipe.tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state[0]


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def others(positions, length=77):
    return [i for i in range(length) if i not in positions]


def test_residual_rank_and_factors(backbone):
    edit = fit(backbone)
    check = edit.self_check
    assert check["modules"] == 3 * LAYERS + len(backbone.sites("cross.kv")) == len(edit.ops)
    assert check["residual"] < 1e-12 and check["residual_before_cast"] < 1e-12
    assert edit.rank_max == 1 and check["warnings"] == []
    assert all(0 < r["relative_update"] < 1 and r["rank"] == 1 for r in check["sites"])
    assert all(isinstance(op, LowRank) and torch.linalg.matrix_rank(op.up @ op.down) == 1 for op in edit.ops)
    rights = {tuple(op.down.flatten().tolist()) for op in edit.ops}
    assert len(rights) == LAYERS + 1  # one right factor a text layer, one for all cross-attention


def test_float32_residual():
    check = fit(SDBackbone.from_pipeline(wide(torch.float32))).self_check
    assert check["residual"] < 1e-6 and check["residual_before_cast"] < 1e-6
    assert {r["rank"] for r in check["sites"]} == {1}


def test_a_denoiser_in_half_precision_beside_an_encoder_in_float32_has_its_own_bound():
    pipe = wide(torch.float32)
    pipe.unet.half()
    sites = {record["site"]: record["residual_cast"] for record in fit(SDBackbone.from_pipeline(pipe)).self_check["sites"]}
    assert max(rest for site, rest in sites.items() if site.startswith("text_encoder")) < 1e-5
    assert 1e-5 < max(rest for site, rest in sites.items() if site.startswith("unet")) < 1e-2


def test_half_precision_reports_the_cast():
    edit = fit(SDBackbone.from_pipeline(wide(torch.float16)))
    assert edit.self_check["residual_before_cast"] < 1e-5 < edit.self_check["residual"] < 1e-2
    assert all(op.up.dtype == torch.float32 for op in edit.ops)


def test_all_positions_but_the_concepts_become_the_anchors(pipe, backbone):
    anchor, before = output(pipe, "dog"), {p: output(pipe, p) for p in UNRELATED}
    with fit(backbone).applied(pipe):
        edited = output(pipe, "cat")
        assert gap(edited[others([1])], anchor[others([1])]) < 1e-12
        assert 1e-3 < gap(edited[1], anchor[1]) < 1  # the skip path keeps the concept's own embedding
        assert all(gap(output(pipe, p)[0], before[p][0]) < 1e-12 for p in UNRELATED)
    assert torch.equal(output(pipe, ""), before[""])


def test_the_cross_attention_reads_the_anchor_at_every_position(pipe, backbone):
    wanted = output(pipe, "dog")
    names = [site.module for site in backbone.sites("cross.kv")]
    expected = {n: pipe.unet.get_submodule(n)(wanted) for n in names}
    with torch.no_grad(), fit(backbone).applied(pipe):
        edited = output(pipe, "cat")
        assert all(gap(pipe.unet.get_submodule(n)(edited), expected[n]) < 1e-12 for n in names)


def test_multi_token_targets_and_unequal_lengths(pipe, backbone):
    for target, anchor in [("zeb", "cat"), ("cat", "zeb"), ("zeb", "")]:
        wanted = output(pipe, anchor)
        edit = fit(backbone, target, anchor)
        assert edit.self_check["residual"] < 1e-12 and edit.rank_max <= 3
        with edit.applied(pipe):
            assert gap(output(pipe, target)[others(range(1, 4))], wanted[others(range(1, 4))]) < 1e-10


def test_empty_anchor_is_the_default(backbone):
    assert ErasePro.default_anchor == ""
    assert fit(backbone, "cat", None).anchors == ("",)


def swapped() -> StableDiffusionPipeline:
    pipe = wide()
    table = pipe.text_encoder.embeddings.token_embedding.weight.data
    cat, dog = (pipe.tokenizer(w).input_ids[1] for w in ("cat", "dog"))
    table[cat] = table[dog]
    return pipe


def test_nothing_to_do_is_an_error_and_changes_nothing():
    backbone = SDBackbone.from_pipeline(swapped())
    walk = align(backbone, EraseRequest.build("cat", anchor="dog"), EraseProConfig())
    assert walk.ops == [] and all(r["relative_update"] == 0 for r in walk.records)
    with pytest.raises(InfeasibleError, match="another anchor"):
        fit(backbone)


def test_the_features_of_the_original_model_would_not_be_exact(pipe, backbone, monkeypatch):
    assert exactness(pipe, fit(backbone), "cat", "dog") < 1e-12
    update = Walk._update
    monkeypatch.setattr(Walk, "_update", lambda *known: 0 * update(*known))  # the streams are carried without the edit
    monkeypatch.setattr(Walk, "_all_met", lambda *_: False)
    assert exactness(pipe, fit(backbone), "cat", "dog") > 1e-3


def test_compensation_leaves_later_layers_nothing(pipe, backbone):
    edit = fit(backbone, compensate=True)
    touched = {op.module for op in edit.ops}
    assert touched == {f"encoder.layers.0.self_attn.{n}_proj" for n in ("q", "k", "v", "out")}
    anchor = output(pipe, "dog")
    with edit.applied(pipe):
        assert gap(output(pipe, "cat"), anchor) < 1e-12


def test_retained_prompts_stay_at_every_position(pipe, backbone):
    before = output(pipe, "fox")
    free, kept = fit(backbone), fit(backbone, retain=["fox"])
    with free.applied(pipe):
        assert gap(output(pipe, "fox"), before) > 1e-3
    with kept.applied(pipe):
        assert gap(output(pipe, "fox"), before) < 1e-10
        assert gap(output(pipe, "cat")[others([1])], output(pipe, "dog")[others([1])]) < 1  # still an edit
    assert kept.self_check["retained_drift"] < 1e-10 and kept.self_check["warnings"] == []
    assert kept.self_check["residual"] < 1e-10


def test_retention_by_mode(backbone):
    drift = {m: fit(backbone, retain=["fox"], retain_mode=m).self_check["retained_drift"] for m in ("none", "soft")}
    assert 1e-6 < drift["soft"] < 0.5 * drift["none"]


def test_keep_empty_keeps_the_unconditional_prompt(pipe, backbone):
    before = output(pipe, "")
    with fit(backbone, keep_empty=True).applied(pipe):
        assert gap(output(pipe, ""), before) < 1e-10


def test_constraints_beyond_the_width_fall_back_aloud(pipe, backbone):
    many = ["fox", "a fox", "photo", "the style"]
    edit = fit(backbone, retain=many)
    (line,) = [line for line in edit.self_check["warnings"] if "retained columns are kept softly" in line]
    assert "erasable without moving them: 'cat' " in line and line.endswith("%")
    assert edit.self_check["residual"] < 1e-9
    none = fit(backbone, retain=many, retain_mode="none")
    assert edit.self_check["retained_drift"] < 0.5 * none.self_check["retained_drift"]


def exactness(pipe, edit, target, anchor) -> float:
    wanted = output(pipe, anchor)[others([1])]
    with edit.applied(pipe):
        return gap(output(pipe, target)[others([1])], wanted)


def test_joint_targets_are_all_exact_and_sequential_ones_are_not(pipe, backbone):
    joint = fit(backbone, ["cat", "fox"], ["dog", "dog"])
    assert joint.rank_max == 2
    assert max(exactness(pipe, joint, t, "dog") for t in ("cat", "fox")) < 1e-10
    twice = wide()
    first = fit(SDBackbone.from_pipeline(twice), "cat", "dog")
    first.fuse(twice)
    fit(SDBackbone.from_pipeline(twice), "fox", "dog").fuse(twice)
    wanted = output(pipe, "dog")[others([1])]
    assert gap(output(twice, "cat")[others([1])], wanted) > 1e-4


def test_many_targets_with_one_anchor_share_its_padding(pipe, backbone):
    targets = list("qwertyuip")
    edit = fit(backbone, targets, "dog")
    assert edit.self_check["warnings"] == [] and edit.rank_max == len(targets)
    assert max(exactness(pipe, edit, t, "dog") for t in targets) < 1e-10


def test_many_targets_with_many_anchors_stay_exact_where_it_counts(pipe, backbone):
    targets, anchors = list("qwertyuip"), list("123456789")
    edit = fit(backbone, targets, anchors)
    assert edit.self_check["residual"] < 1e-9 and "kept softly" in edit.self_check["warnings"][0]


def test_shared_first_token_is_named(backbone):
    asked = (["cat fox", "cat style"], ["dog fox", "photo style"])
    with pytest.raises(InfeasibleError) as error:
        fit(backbone, *asked)
    message = str(error.value)
    assert all(part in message for part in ("'cat fox'", "'cat style'", "token 'cat'", "on_conflict=average"))
    edit = fit(backbone, *asked, on_conflict="average")
    assert edit.self_check["residual"] > 1e-3 and "'cat style'" in edit.self_check["warnings"][0]


def test_retained_prompt_with_the_targets_first_token_is_named(backbone):
    with pytest.raises(InfeasibleError, match="retained 'cat fox'"):
        fit(backbone, "cat style", "dog style", retain=["cat fox"])
    soft = fit(backbone, "cat style", "dog style", retain=["cat fox"], retain_mode="soft").self_check
    assert soft["residual"] < 1e-9 and soft["retained_drift"] > 1e-3
    (line,) = [line for line in soft["warnings"] if "serve both" in line]
    assert all(part in line for part in ("'cat style' -> 'dog style'", "retained 'cat fox'", "token 'cat' at position 1"))
    none = fit(backbone, "cat style", "dog style", retain=["cat fox"], retain_mode="none").self_check
    assert not any("serve both" in line for line in none["warnings"]), "nothing was to be held there"
    averaged = fit(backbone, "cat style", "dog style", retain=["cat fox"], on_conflict="average")
    assert averaged.self_check["residual"] > 1e-3


def test_context_free_layer_conflicts_are_found_without_a_shared_prefix(backbone):
    """One token onto two: layer 0 then changes EOS at position 2, which a retained word has too."""
    with pytest.raises(InfeasibleError, match="endoftext"):
        fit(backbone, "cat", "dog fox", retain=["photo"])
    assert fit(backbone, "cat", "dog fox", retain=["photo"], sites="deep").self_check["modules"] > 0


def test_retained_prompts_that_give_way_are_counted_after_three(backbone):
    retain = ["cat fox", "cat photo", "cat of", "cat and", "cat the", "fox"]
    plain = fit(backbone, "cat style", "dog style", retain_mode="soft")
    warned = fit(backbone, "cat style", "dog style", retain=retain, retain_mode="soft").self_check["warnings"]
    assert plain.self_check["warnings"] == [] and sum("serve both" in line for line in warned) == 3
    assert any(line.startswith("2 more retained prompts") for line in warned)


@pytest.mark.parametrize("sites", ["progressive", "text", "deep", "kv", "v_only"])
def test_sites(backbone, sites):
    groups = {op_group(backbone, op) for op in fit(backbone, sites=sites).ops}
    text, cross = {"text.q", "text.k", "text.v"}, {"cross.k", "cross.v"}
    expected = {"progressive": text | cross, "text": text, "deep": cross, "kv": {"text.k", "text.v"} | cross}
    assert groups == expected.get(sites, text | {"cross.v"})


def op_group(backbone, op) -> str:
    return next(s.group for s in [*backbone.sites("all")] if s.module == op.module)


def test_fewer_layers_leave_more_to_the_denoiser(backbone):
    edit = fit(backbone, layers=1)
    assert {op.module.split(".")[2] for op in edit.ops if op.component == "text_encoder"} == {"0"}
    deep = lambda e: max(r["relative_update"] for r in e.self_check["sites"] if r["group"] == "cross.v")  # noqa: E731
    assert deep(fit(backbone)) < deep(edit) < deep(fit(backbone, sites="deep"))


def test_templates_soften_and_ridge_softens_more(backbone):
    short = fit(backbone, templates="bare;a photo of a {}")
    ridge = fit(backbone, templates="bare;a photo of a {}", tolerance=1e-10, ridge=1e-2)
    assert 1e-6 < short.self_check["residual"] < ridge.self_check["residual"]


def test_ridge_tends_to_exact(backbone):
    exact, tight = fit(backbone), fit(backbone, ridge=1e-9)
    assert 1e-12 < tight.self_check["residual"] < 1e-5
    assert max(gap(b.up @ b.down, a.up @ a.down) for a, b in zip(exact.ops, tight.ops, strict=True)) < 1e-3


def test_covariance_keeps_the_residual_and_lowers_drift(pipe, backbone):
    prompts = ["a photo of a fox", "the house in the photo"]
    before = [output(pipe, p) for p in prompts]
    drift = {}
    for covariance in (False, True):
        edit = fit(backbone, covariance=covariance, positions="content")
        assert edit.self_check["residual"] < 1e-9
        with edit.applied(pipe):
            drift[covariance] = sum(gap(output(pipe, p), b) for p, b in zip(prompts, before, strict=True))
    assert drift[True] < drift[False]


def test_content_positions_are_fewer_and_leave_padding_free(pipe, backbone):
    edit = fit(backbone, positions="content")
    assert edit.self_check["residual"] < 1e-12
    assert exactness(pipe, edit, "cat", "dog") > 1e-6


def test_model_stays_bitwise_and_progress_is_told(pipe, backbone):
    state = {n: p.clone() for n, p in [*pipe.text_encoder.named_parameters(), *pipe.unet.named_parameters()]}
    seen = []
    request = EraseRequest.build("cat", anchor="dog")
    ErasePro().fit(backbone, request, EraseProConfig(), progress=lambda *a: seen.append(a))
    assert [seen_[:2] for seen_ in seen] == [(i, LAYERS + 1) for i in range(1, LAYERS + 2)]
    assert all(torch.equal(p, state[n]) for m in (pipe.text_encoder, pipe.unet) for n, p in m.named_parameters())


def test_edits_are_deterministic(backbone):
    a, b = fit(backbone), fit(backbone)
    assert all(torch.equal(x.up, y.up) and torch.equal(x.down, y.down) for x, y in zip(a.ops, b.ops, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"templates": "no braces"}, {"templates": ()}, {"positions": "some"}, {"sites": "up"}, {"layers": 0},
        {"tolerance": -1.0}, {"ridge": -1}, {"eps": 0}, {"retain_mode": "maybe"}, {"on_conflict": "ignore"},
        {"keep_empty": True, "retain_mode": "none"}, {"unknown": 1}, {"ridge": "much"}, {"covariance": "perhaps"},
        {"ridge": "nan"}, {"layers": "2.5"}, {"ridge": "inf"}, {"eps": "inf"},
    ],
)  # fmt: skip
def test_wrong_parameters(wrong):
    with pytest.raises(UsageError) as error:
        methods.make_config(ErasePro, wrong)
    assert next(iter(wrong)) in str(error.value)


def test_parameters_from_text():
    config = methods.make_config(
        ErasePro, {"templates": "bare;a photo of {}", "layers": "none", "ridge": "1e-3", "covariance": "yes"}
    )
    assert config == EraseProConfig(templates=("bare", "a photo of {}"), ridge=1e-3, covariance=True)
    assert config.prompts == ("{}", "a photo of {}") and config.tau == 1e-2
    assert methods.describe_config(ErasePro)["ridge"]["doc"]
    with pytest.raises(UsageError, match="erasepro"):
        methods.get("nothing")


def test_long_template(backbone):
    with pytest.raises(UsageError, match="tokens"):
        fit(backbone, templates="photo " * 75 + "{}")


def test_an_anchor_of_more_tokens_than_its_target_is_warned_of(sd1):
    model = SDBackbone.from_pipeline(sd1)
    counts = {word: model.tokenize([word]).ends[0] for word in ("cat", "dog", "a photo of a dog")}
    assert counts["cat"] == counts["dog"] < counts["a photo of a dog"]
    config = EraseProConfig()
    long = align(model, EraseRequest.build("cat", anchor="a photo of a dog"), config).warnings
    short = align(model, EraseRequest.build("cat", anchor="dog"), config).warnings
    assert any("prefer an anchor" in w for w in long) and not any("prefer an anchor" in w for w in short)


def test_no_anchor_is_warned_of_with_where_to_find_one(sd1, sd1_folder):
    targets = ["cat", "fox", "tree", "red house", "style"]
    model, anchors = SDBackbone.from_pipeline(sd1), ["", "dog", "", "", ""]
    said = align(model, EraseRequest.build(targets, anchor=anchors), EraseProConfig()).warnings
    (line,) = [line for line in said if "no anchor" in line]
    assert line.startswith("no anchor for 'cat', 'tree', 'red house' and 1 more: most of the gap")
    assert "`erasekit suggest-anchors cat`" in line
    folder = SDBackbone.from_folder(sd1_folder)
    for name, end in ((folder.model_id, " lists (with the same --model)"), ("emoji", " lists")):  # emoji is its default
        folder.model_id = name
        named = align(folder, EraseRequest.build("red house", anchor=""), EraseProConfig()).warnings
        assert any(line.endswith(f"`erasekit suggest-anchors 'red house'`{end}") for line in named)
