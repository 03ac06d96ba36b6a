"""CLIP judges from folders, against transformers called directly; tiny random models built offline."""

import base64
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from erasekit.errors import ModelError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import clip as module
from erasekit.evaluation.judges import folder as folders
from erasekit.evaluation.metrics import distribution

SIDE = 24
LONG = "a photo of a cat and " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-clip"
    tokens = tiny.tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {key: getattr(tokens, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text, vision = tower | ends | {"vocab_size": len(tokens)}, tower | {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        for parameter in model.parameters():  # transformers' start is too small to tell two pictures apart
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.2)
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Tiny\n")
    return path


@pytest.fixture(scope="module")
def judge(folder):
    return judges.get(f"clip:{folder}")


def pictures(n=4, h=40, w=60, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8)
    return pixels, torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)


def decode(data):
    return torch.from_numpy(np.frombuffer(base64.b64decode(data["embedding"]), "<f2").astype(np.float32))


def test_the_tokenizer_is_in_the_hash(judge, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "tiny-clip")
    assert judges.get(f"clip:{copy}").weights_sha256 == judge.weights_sha256
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 5}))
    assert judges.get(f"clip:{copy}").weights_sha256 != judge.weights_sha256


def test_name_licence_hash(judge, folder):
    assert judge.name == "clip[ViT-32x2/8 tiny-clip]" and judge.licence == "mit" and len(judge.weights_sha256) == 64
    assert isinstance(judge, judges.TextJudge)


def test_usual_sizes_have_their_names():
    vision = type("V", (), {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224})
    assert module.kind_of(vision) == "ViT-B/32"
    large = type("V", (), {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 336})
    space = f"clip[{module.kind_of(large)} openai/clip-vit-large-patch14-336]"
    assert distribution.key("CMMD", space) == "cmmd", "the judge that the bare name means must have it"


def test_image_embeddings_are_transformers_own(judge, folder):
    pixels, images = pictures()
    model = CLIPModel.from_pretrained(folder).eval()
    process = CLIPImageProcessorPil.from_pretrained(folder)
    for row, verdict in enumerate(judge.judge(images, [""] * 4)):
        inputs = process(images=Image.fromarray(pixels[row]), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.visual_projection(model.vision_model(pixel_values=inputs).pooler_output)[0]
        assert verdict.status == "ok" and verdict.data["dim"] == 16
        assert torch.allclose(decode(verdict.data), expected / expected.norm(), atol=6e-4)


def test_text_embeddings_are_transformers_own_and_long_texts_are_cut(judge, folder):
    texts = ["a cat", "a photo of the fox", LONG]
    model = CLIPModel.from_pretrained(folder).eval()
    found = judges.text_embeddings(judge, texts)
    assert found.shape == (3, 16) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    for text, vector in zip(texts, found, strict=True):
        ids = judge.tokenizer(text)["input_ids"]
        if len(ids) > 77:
            ids = [*ids[:76], ids[-1]]  # cut, and the end token kept
        with torch.no_grad():
            hidden = model.text_model(input_ids=torch.tensor([ids]))
            expected = model.text_projection(hidden.pooler_output)[0]
        assert torch.allclose(vector, expected / expected.norm(), atol=1e-5), text
    assert judges.text_embeddings(judge, []).shape == (0, 16)


def test_scores_are_the_models_own_logits(judge, folder):
    pixels, images = pictures(2)
    model, texts = CLIPModel.from_pretrained(folder).eval(), ["a cat", "the dog in style"]
    inputs = CLIPImageProcessorPil.from_pretrained(folder)(
        images=[Image.fromarray(p) for p in pixels], return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**judge.tokenizer(texts, padding=True, return_tensors="pt"), **inputs).logits_per_image
    vectors = torch.stack([decode(v.data) for v in judge.judge(images, ["", ""])])
    assert torch.allclose(vectors @ judge.text_embeddings(texts).T, logits / model.logit_scale.exp(), atol=2e-3)


def test_a_batch_is_its_images(judge):
    _, images = pictures(35)  # more than one inner batch
    together = judge.image_embeddings(images)
    alone = torch.cat([judge.image_embeddings(one[None]) for one in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_red_is_the_first_channel(judge, monkeypatch):
    seen, inner = [], judge.model.get_image_features

    def features(pixel_values):
        seen.append(pixel_values)
        return inner(pixel_values)

    monkeypatch.setattr(judge.model, "get_image_features", features)
    images = torch.zeros(3, 3, 30, 30)
    images[torch.arange(3), torch.arange(3)] = 1
    judge.image_embeddings(images)
    mean, std = (torch.tensor(getattr(judge.processor, k)) for k in ("image_mean", "image_std"))
    for channel, x in enumerate(seen[0]):
        expected = (torch.eye(3)[channel] - mean) / std
        assert torch.allclose(x.mean((1, 2)), expected, atol=1e-4)


def test_constant_pictures_are_invalid_and_vectors_of_nan_failed(judge, monkeypatch):
    _, images = pictures(2)
    images[0] = 0
    assert [v.status for v in judge.judge(images, ["", ""])] == ["invalid", "ok"]
    monkeypatch.setattr(
        judge.model, "get_image_features", lambda pixel_values: torch.full((len(pixel_values), 16), torch.nan)
    )
    assert [v.status for v in judge.judge(images, ["", ""])] == ["invalid", "failed"]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_calibration_beside_the_folder_is_the_judges(copy):
    judge = judges.get(f"clip:{copy}")
    assert judges.calibration(judge) == {}
    own = {"judge": judge.name, "weights_sha256": judge.weights_sha256, "retrieval_top1": None}
    copy.with_name("copy.calibration.json").write_text(json.dumps(own))
    assert judges.calibration(judge) == own


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors"], "holds no weights"),
        (["preprocessor_config.json", "processor_config.json"], "has no preprocessor_config.json"),
        (["tokenizer.json", "vocab.json"], "has no tokenizer.json"),
    ],
)
def test_incomplete_folders(copy, files, message):
    for file in files:
        (copy / file).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=message):
        judges.get(f"clip:{copy}")


def test_truncated_weights(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot load the judge"):
        judges.get(f"clip:{copy}")


def test_a_missing_weight_is_not_filled_with_noise(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*visual_projection"):
        judges.get(f"clip:{copy}")


def test_another_kind_of_model(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="'vit', not a CLIPModel"):
        judges.get(f"clip:{copy}")


def test_shards_are_all_needed(copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lacks the weight file model-00002"):
        judges.get(f"clip:{copy}")


def test_a_hub_id_is_downloaded_only_when_named(folder, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or folder
    )
    assert judges.get("clip:someone/tiny").name == "clip[ViT-32x2/8 someone/tiny]"
    assert [name for name, _ in asked] == ["someone/tiny"]
    with pytest.raises(ModelError, match="does not exist"):
        judges.get("classifier:someone/tiny")  # folders only
    assert len(asked) == 1

    def offline(name, **options):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"cannot download .*offline.*local folder"):
        judges.get("clip:someone/tiny")


@pytest.mark.parametrize(("card", "licence"), [
    ("---\nlicense: cc-by-4.0\n---\n", "cc-by-4.0"), ("# no front matter\nlicense: mit\n", "not stated"), (None, "not stated"),
])  # fmt: skip
def test_licence(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert folders.licence(tmp_path).startswith(licence)
