"""The SD backbone: the walked tower is the real encoder, the folder and the pipeline agree, nothing is changed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasekit.backbones import backbone
from erasekit.backbones.sd import SDBackbone
from erasekit.errors import ModelError, UsageError

PROMPTS = ["", "a photo of a cat", "the fox, in style of zebra and dog", "zebra!"]


def walk(tower, tokens, deltas):
    hidden = tower.embed(tokens)
    for layer in range(tower.depth):
        hidden = tower.layer(hidden, layer, deltas.get(layer))
    return tower.output(hidden)


def random_deltas(tower, roles="qkv"):
    draw = torch.Generator().manual_seed(1)
    new = lambda: 0.1 * torch.randn(32, 32, generator=draw)  # noqa: E731
    return {i: {role: new() for role in (*roles, "out")} for i in range(tower.depth)}


@pytest.fixture(params=["sd1", "sd2"])
def pipe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["sd1_folder", "sd2_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def ids_of(pipe, prompts):
    return pipe.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids


def test_tokenize_is_the_pipelines_own(pipe):
    tokens = SDBackbone.from_pipeline(pipe).tokenize(PROMPTS)
    assert torch.equal(tokens.ids, ids_of(pipe, PROMPTS))
    assert tokens.ends[0] == 1
    assert all(tokens.ids[i, end] == pipe.tokenizer.eos_token_id for i, end in enumerate(tokens.ends))


def test_encode_equals_the_encoder(pipe):
    with torch.no_grad():
        expected = pipe.text_encoder(ids_of(pipe, PROMPTS)).last_hidden_state
    assert torch.allclose(SDBackbone.from_pipeline(pipe).encode(PROMPTS), expected, atol=2e-6)


def test_shared_beginnings_are_computed_once_and_the_same(pipe, monkeypatch):
    prompts = ["a cat", "a cat", "a cat in a photo", "a cat in a fox", "the dog", "a cat", "a cat"]
    model, seen = SDBackbone.from_pipeline(pipe), []
    plain = model.tower._linear
    monkeypatch.setattr(model.tower, "_linear", lambda x, *rest: (seen.append((rest[0], len(x))), plain(x, *rest))[1])
    ids = ids_of(pipe, prompts)
    with torch.no_grad():
        expected = pipe.text_encoder(ids).last_hidden_state
    assert torch.allclose(model.encode(prompts), expected, atol=2e-6)
    neighbours = zip([[], *ids.tolist()], ids.tolist(), strict=False)
    different = sum(one[: p + 1] != two[: p + 1] for one, two in neighbours for p in range(77))
    assert different < 5 * 77 and {count for _, count in seen} == {different} and len(seen) == 6 * model.tower.depth


def test_large_batches_are_walked_in_parts(pipe, monkeypatch):
    model = SDBackbone.from_pipeline(pipe)
    whole = model.encode(PROMPTS * 2)
    monkeypatch.setattr("erasekit.backbones._clip.ROWS", 3 * 77)
    assert torch.allclose(model.encode(PROMPTS * 2), whole, atol=2e-6)


def test_tower_with_deltas_equals_the_edited_encoder(pipe):
    model = SDBackbone.from_pipeline(pipe)
    deltas = random_deltas(model.tower)
    edited = copy.deepcopy(pipe.text_encoder)
    with torch.no_grad():
        for i, changes in deltas.items():
            for role, delta in changes.items():
                name = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}[role]
                getattr(edited.encoder.layers[i].self_attn, name).weight += delta
        expected = edited(ids_of(pipe, PROMPTS)).last_hidden_state
    found = walk(model.tower, model.tokenize(PROMPTS), deltas)
    assert torch.allclose(found, expected, atol=2e-6)
    assert not torch.allclose(found, model.encode(PROMPTS), atol=1e-3)


def test_tower_is_exact_in_double(sd1):
    sd1.text_encoder.double()
    with torch.no_grad():
        expected = sd1.text_encoder(ids_of(sd1, PROMPTS)).last_hidden_state
    assert torch.allclose(SDBackbone.from_pipeline(sd1).encode(PROMPTS), expected, atol=1e-13, rtol=0)


def test_inputs_are_what_the_modules_read(sd1):
    model, seen = SDBackbone.from_pipeline(sd1), {}
    attention = sd1.text_encoder.encoder.layers[1].self_attn
    attention.q_proj.register_forward_hook(lambda m, args, out: seen.update(q=args[0]))
    attention.out_proj.register_forward_hook(lambda m, args, out: seen.update(out=args[0]))
    with torch.no_grad():
        sd1.text_encoder(ids_of(sd1, PROMPTS))
    hidden = model.tower.layer(model.tower.embed(model.tokenize(PROMPTS)), 0)
    assert torch.allclose(model.tower.attention_input(hidden, 1), seen["q"], atol=2e-6)
    assert torch.allclose(model.tower.context(hidden, 1), seen["out"], atol=2e-6)


def test_the_pipeline_stays_bitwise(pipe):
    before = {n: p.clone() for m in (pipe.text_encoder, pipe.unet) for n, p in m.named_parameters()}
    model = SDBackbone.from_pipeline(pipe)
    walk(model.tower, model.tokenize(PROMPTS), random_deltas(model.tower))
    after = {n: p for m in (pipe.text_encoder, pipe.unet) for n, p in m.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_folder_equals_pipeline(folder):
    from diffusers import StableDiffusionPipeline

    live = backbone(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    lazy = backbone(folder)
    assert lazy.family == live.family == folder.name[:3]
    assert lazy.model_id == live.model_id == folder.name, "no path of this machine reaches an edit's file"
    assert torch.equal(lazy.encode(PROMPTS), live.encode(PROMPTS))
    assert lazy.sites("all") == live.sites("all")
    assert all(torch.equal(lazy.weight(s), live.weight(s)) for s in lazy.sites("all"))


def test_sites_have_the_models_counts(sd1):
    model = SDBackbone.from_pipeline(sd1)
    cross = sum(name.endswith("attn2.to_k") for name, _ in sd1.unet.named_modules())
    assert len(model.sites("text.qkv")) == 6 and len(model.sites("cross.kv")) == 2 * cross > 0
    assert {s.group for s in model.sites("all")} == {"text.q", "text.k", "text.v", "cross.k", "cross.v"}
    depths = [s.depth for s in model.sites("all")]
    assert depths == sorted(depths)
    with pytest.raises(UsageError, match=r"text\.qkv"):
        model.sites("text.mlp")


def prefixed(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    path = to / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in load_file(path).items()}
    save_file(tensors, path)
    return to


def test_prefixed_encoder_files(sd1_folder, tmp_path):
    assert torch.equal(
        backbone(prefixed(sd1_folder, tmp_path / "m")).encode(PROMPTS), backbone(sd1_folder).encode(PROMPTS)
    )


def test_reads_shards_and_variants(sd1_folder, tmp_path):
    copy_ = shutil.copytree(sd1_folder, tmp_path / "m")
    text = copy_ / "text_encoder" / "model.safetensors"
    tensors = load_file(text)
    names = sorted(tensors)
    table = {}
    for shard, part in enumerate([names[::2], names[1::2]]):
        file = f"model-{shard}-of-2.safetensors"
        save_file({n: tensors[n] for n in part}, text.with_name(file))
        table |= dict.fromkeys(part, file)
    text.unlink()
    text.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    unet = copy_ / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found, expected = backbone(copy_), backbone(sd1_folder)
    assert torch.equal(found.encode(PROMPTS), expected.encode(PROMPTS))
    assert all(torch.equal(found.weight(s), expected.weight(s)) for s in found.sites("cross.kv"))


def test_needs_neither_vae_nor_the_rest_of_the_denoiser(sd1_folder, tmp_path):
    copy_ = shutil.copytree(sd1_folder, tmp_path / "m")
    shutil.rmtree(copy_ / "vae")
    path = copy_ / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "attn2" in n}, path)
    model = backbone(copy_)
    assert model.encode(["a cat"]).shape == (1, 77, 32)
    assert model.weight(model.sites("cross.v")[0]).shape[1] == 32


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
@pytest.mark.parametrize("harm", ["truncated", "nan", "missing", "garbage"])
def test_broken_files_are_one_clear_error(sd1_folder, tmp_path, part, harm):
    copy_ = shutil.copytree(sd1_folder, tmp_path / "m")
    path = copy_ / f"{part}.safetensors"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-4096])
    elif harm == "nan":
        tensors = load_file(path)
        for tensor in tensors.values():
            tensor.view(-1)[0] = float("nan")
        save_file(tensors, path)
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"not a model" * 100)
    with pytest.raises(ModelError) as error:
        model = backbone(copy_)
        model.encode(["a cat"])
        for site in model.sites("all"):
            model.weight(site)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_an_offloaded_part_is_one_clear_error(part, sd1):
    import erasekit

    getattr(sd1, part).to("meta")
    for method in ("erasepro", "uce"):
        with pytest.raises(ModelError, match=rf"the weight at {part}/.* is offloaded: call pipe.remove_all_hooks"):
            erasekit.erase(sd1, "cat", anchor="dog", method=method)


def test_folder_without_index(sd1_folder, tmp_path):
    copy_ = shutil.copytree(sd1_folder, tmp_path / "m")
    (copy_ / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"model_index\.json"):
        backbone(copy_)


def test_other_families_are_refused(sd1):
    with pytest.raises(UsageError, match="StableDiffusionPipeline"):
        backbone(sd1.unet)


def test_long_prompt(sd1):
    model = SDBackbone.from_pipeline(sd1)
    assert model.tokenize(["cat " * 75]).ends == (76,)
    with pytest.raises(UsageError, match="78 tokens"):
        model.tokenize(["cat " * 76])


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a photo of a cat", "cat", [range(5, 6)]),
        ("Cat and cats and CAT, concat", "cat", [range(1, 2), None]),
        ("a zeb  ra cat", "zeb ra", [range(2, 7)]),
        ("the dog", "cat", []),
        ("a cat", "", []),
    ],
)
def test_concept_spans(sd1, prompt, concept, expected):
    model = SDBackbone.from_pipeline(sd1)
    spans = model.concept_spans(prompt, concept)
    assert len(spans) == len(expected)
    ids = model.tokenize([prompt]).ids[0]
    wanted = model.tokenize([concept]).ids[0][1 : 1 + len(spans[0])] if spans else None
    for span, exact in zip(spans, expected, strict=True):
        assert exact is None or span == exact
        assert torch.equal(ids[span.start : span.stop], wanted)


def test_the_denoiser_is_the_pipelines_own_or_read_once_on_demand(sd1, sd1_folder):
    live, lazy = backbone(sd1), backbone(sd1_folder)
    assert live.denoiser() is sd1.unet and lazy._unet is None
    unet = lazy.denoiser()
    assert lazy.denoiser() is unet
    own = sd1.unet.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in unet.state_dict().items())
    assert lazy.noise_schedule()["prediction_type"] == live.noise_schedule()["prediction_type"] == "epsilon"


def test_an_edit_in_closed_form_reads_no_denoiser(sd1_folder, monkeypatch):
    import erasekit
    from erasekit.backbones import sd

    monkeypatch.setattr(sd, "_read_unet", None)  # would raise where it is called
    erasekit.erase(sd1_folder, "cat", anchor="dog", method="uce")


def test_a_damaged_denoiser_is_one_clear_line(sd1_folder, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(sd1_folder, copied)
    lazy = backbone(copied)
    (copied / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the unet"):
        lazy.denoiser()
