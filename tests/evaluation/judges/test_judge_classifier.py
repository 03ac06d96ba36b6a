"""Classifier folders as judges, against transformers called directly; tiny random ViTs built offline."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import classifier

LABELS = ("van gogh", "Monet", "kid's drawing", "photo", "ink", "oil")


def build(path, labels, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ViTForImageClassification(ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
            id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}, **options))  # fmt: skip
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.4)
    model.save_pretrained(path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "styles", LABELS)


@pytest.fixture(scope="module")
def judge(folder):
    return judges.get(f"classifier:{folder}")


def imagenet_labels():
    names = [f"thing {i}, res {i}" for i in range(1000)]
    for word, index, others in classifier.FIELD:
        names[index] = ", ".join([word, *others])
    names[134], names[517] = "crane", "crane"
    return names


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "vit-1k", imagenet_labels())


def pictures(n=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 30, 40, 3), dtype=np.uint8)
    return pixels, torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)


def direct(folder, pixels):
    model, process = (
        ViTForImageClassification.from_pretrained(folder).eval(),
        ViTImageProcessorPil.from_pretrained(folder),
    )
    with torch.no_grad():
        return model(**process(images=[Image.fromarray(p) for p in pixels], return_tensors="pt")).logits


def test_verdicts_are_transformers_own(judge, folder):
    pixels, images = pictures(6)
    shares = direct(folder, pixels).softmax(-1)
    assert judge.name == "classifier-styles[6]@top1" and judge.licence.startswith("not stated")
    for p, verdict in zip(shares, judge.judge(images, [""] * 6), strict=True):
        order = [LABELS[i] for i in p.argsort(descending=True).tolist()]
        assert (
            verdict.data["best"] == order[0]
            and verdict.data["found"] == order[:1]
            and verdict.data["top5"] == order[:5]
        )
        assert verdict.data["scores"] == pytest.approx(
            {label: float(x) for label, x in zip(LABELS, p) if x >= 0.02}, abs=2e-5
        )
        assert json.loads(json.dumps(verdict.data)) == verdict.data
    assert len({v.data["best"] for v in judge.judge(images, [""] * 6)}) > 1  # or the comparison says little


def test_labels_that_answer_for_themselves(tmp_path):
    folder = build(tmp_path / "many", LABELS, problem_type="multi_label_classification")
    judge = judges.get(f"classifier:{folder}")
    pixels, images = pictures(3)
    assert judge.name == "classifier-many[6]@0.5"
    for p, verdict in zip(direct(folder, pixels).sigmoid(), judge.judge(images, [""] * 3), strict=True):
        assert set(verdict.data["found"]) == {label for label, x in zip(LABELS, p) if x > 0.5}


def test_a_batch_is_its_images(judge):
    _, images = pictures(35)
    alone = torch.cat([judge.probabilities(one[None]) for one in images])
    assert torch.allclose(judge.probabilities(images), alone, atol=1e-5)


def test_red_is_the_first_channel(judge, monkeypatch):
    seen, inner = [], judge.model.forward
    monkeypatch.setattr(judge.model, "forward", lambda x: seen.append(x) or inner(x))
    images = torch.zeros(3, 3, 20, 20)
    images[torch.arange(3), torch.arange(3)] = 1
    judge.probabilities(images)
    assert torch.allclose(seen[0].mean((2, 3)), torch.eye(3) * 2 - 1, atol=1e-5)  # ViT's mean and std are 0.5


def test_statuses(judge, monkeypatch):
    _, images = pictures(2)
    images[1] = 0.3
    assert [v.status for v in judge.judge(images, ["", ""])] == ["ok", "invalid"]
    monkeypatch.setattr(judge, "probabilities", lambda some: torch.full((len(some), 6), torch.nan))
    assert [v.status for v in judge.judge(images, ["", ""])] == ["failed", "invalid"]


def test_a_calibration_beside_the_folder_is_the_judges(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "styles")
    judge = judges.get(f"classifier:{copy}")
    assert judges.calibration(judge) == {}
    own = {"judge": judge.name, "weights_sha256": judge.weights_sha256, "labels": {"Monet": {"tpr": None, "fpr": None}}}
    beside = tmp_path / "styles.calibration.json"
    beside.write_text(json.dumps(own))
    again = judges.get(f"classifier:{copy}")
    assert judges.calibration(again) == own and again.weights_sha256 == judge.weights_sha256
    for wrong, line in ((json.dumps(own | {"weights_sha256": "0" * 64}), "is of another judge than classifier-styles"),
                        (json.dumps(own)[:-9], "styles.calibration.json is damaged and holds no calibration: delete it")):
        beside.write_text(wrong)
        stale = judges.get(f"classifier:{copy}")
        assert stale.judge(pictures(1)[1], [""])[0].status == "ok", "or it could not be calibrated again"
        with pytest.raises(ModelError, match=line) as caught:
            judges.calibration(stale)
        assert "`erasekit judges calibrate`" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_found_by_any_name_and_its_calibration_beside_it(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "styles")
    (tmp_path / "link").symlink_to(copy)
    monkeypatch.chdir(copy)
    judge = judges.get("classifier:.")
    assert judge.name == "classifier-styles[6]@top1" and judges.calibration(judge) == {}
    own = {"judge": judge.name, "weights_sha256": judge.weights_sha256}
    (tmp_path / "styles.calibration.json").write_text(json.dumps(own))
    assert judges.calibration(judge) == own == judges.calibration(judges.get("classifier:../styles"))
    assert judges.calibration(judges.get(f"classifier:{tmp_path / 'link'}")) == {}, "beside the name that was given"


def test_words_for_labels(judge):
    assert judge.label("monet") == "Monet" and judge.label("Van_Gogh") == "van gogh"
    with pytest.raises(UsageError, match="did you mean Monet"):
        judge.label("monett")
    with pytest.raises(UsageError, match="one of its labels"):
        judge.label("submarine")


def test_imagenet_goes_by_the_fields_names_and_ids(imagenet):
    judge = judges.get(f"imagenet:{imagenet}")
    assert judge.name == "imagenet-vit-1k[1000]@top1"
    ids = {"tench": 0, "English springer": 217, "plane": 404, "cassette player": 482, "chainsaw": 491, "church": 497,
           "french horn": 566, "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701}  # fmt: skip
    for word, index in ids.items():
        assert judge.labels.index(judge.label(word)) == index, word
    assert judge.label("thing 12") == judge.label("res 12") == "thing 12, res 12"
    assert judge.labels[134] == "crane (134)" and judge.labels[517] == "crane (517)"
    assert len(set(judge.labels)) == 1000
    pixels, images = pictures(3)
    best = direct(imagenet, pixels).argmax(-1).tolist()
    assert [v.data["found"] for v in judge.judge(images, [""] * 3)] == [[judge.labels[i]] for i in best]


def test_imagenet_labels_without_names_go_by_id(imagenet, tmp_path):
    copy = shutil.copytree(imagenet, tmp_path / "plain")
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "id2label": {str(i): f"LABEL_{i}" for i in range(1000)},
        "label2id": {f"LABEL_{i}": i for i in range(1000)},
    }
    (copy / "config.json").write_text(json.dumps(config))
    assert judges.get(f"imagenet:{copy}").labels[497] == "church"


def test_whatever_decides_a_verdict_is_in_the_hash(folder, judge, tmp_path):
    def sha256(name, change):
        copy = shutil.copytree(folder, tmp_path / name / "styles")
        change(copy)
        return judges.get(f"classifier:{copy}").weights_sha256

    def relabelled(copy):
        config = json.loads((copy / "config.json").read_text())
        config["id2label"]["0"], config["id2label"]["1"] = config["id2label"]["1"], config["id2label"]["0"]
        (copy / "config.json").write_text(json.dumps(config))

    def scaled(copy):
        path = copy / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.4, 0.4, 0.4]}))

    same = sha256("same", lambda copy: (copy / "README.md").write_text("A card decides nothing."))
    assert same == judge.weights_sha256
    assert len({same, sha256("labels", relabelled), sha256("scale", scaled)}) == 3


def test_imagenet_refuses_other_label_sets(folder, imagenet, tmp_path):
    with pytest.raises(ModelError, match="6 labels, not ImageNet's 1000"):
        judges.get(f"imagenet:{folder}")
    copy = shutil.copytree(imagenet, tmp_path / "shuffled")
    config = json.loads((copy / "config.json").read_text())
    names = imagenet_labels()
    names[497], names[498] = names[498], names[497]
    config |= {"id2label": {str(i): name for i, name in enumerate(names)}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"where ImageNet has 'church' \(class 497\)"):
        judges.get(f"imagenet:{copy}")


def test_a_model_without_its_head_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "headless")
    tensors = {k: v for k, v in load_file(copy / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 of the weights of a ViTForImageClassification \(first: classifier"):
        judges.get(f"classifier:{copy}")


def test_a_head_of_another_size_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((copy / "config.json").read_text())
    config["id2label"] = {str(i): f"l{i}" for i in range(9)}
    config["label2id"] = {f"l{i}": i for i in range(9)}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot load the judge|lacks"):
        judges.get(f"classifier:{copy}")
