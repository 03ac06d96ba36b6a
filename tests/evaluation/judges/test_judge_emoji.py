"""The emoji judge around a network of random weights, or one that always says the same: its quality is not asked."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F

from erasekit.errors import ModelError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import emoji
from erasekit.worlds.emoji import BACKGROUNDS, STYLES, names
from erasekit.worlds.emoji import judge as world


@pytest.fixture(scope="module")
def judge():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = world.Network()
    return emoji.EmojiJudge(world.Judge(network), weights_sha256="abc")


class Always(torch.nn.Module):
    """Logits that are the same for every image."""

    def __init__(self, objects):
        super().__init__()
        self.objects = torch.nn.Parameter(objects)

    def forward(self, images):
        n = len(images)
        style, background = torch.zeros(len(STYLES)), torch.zeros(len(BACKGROUNDS))
        style[2], background[4] = 9.0, 9.0
        return self.objects.expand(n, -1), style.expand(n, -1), background.expand(n, -1)


def noise(n, side=64, seed=0):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(seed))


def test_name_and_threshold(judge):
    assert judge.name == f"emoji-judge-v1[{len(names())}]@0.5" and judge.licence == "Apache-2.0"
    assert emoji.EmojiJudge(judge.world, threshold=0.7).name.endswith("@0.7")
    assert isinstance(judge, judges.Judge)


def test_verdicts_are_the_networks(judge):
    images = noise(5)
    with torch.no_grad():
        objects, style, background = judge.world.network(images)
    for row, verdict in enumerate(judge.judge(images, [""] * 5)):
        p, data = objects[row].sigmoid(), verdict.data
        assert verdict.status == "ok" and data["best"] == names()[int(p.argmax())]
        assert set(data["found"]) == {names()[i] for i in range(len(p)) if p[i] > 0.5}
        assert set(data["scores"]) == {names()[i] for i in range(len(p)) if p[i] >= 0.02}
        assert data["style"] == STYLES[int(style[row].argmax())]
        assert data["background"] == tuple(BACKGROUNDS)[int(background[row].argmax())]
        assert sum(data["style_scores"].values()) == pytest.approx(1, abs=1e-3)
        assert list(data["background_scores"]) == list(BACKGROUNDS)
        assert json.loads(json.dumps(data)) == data


def test_nothing_found_is_a_verdict_and_a_threshold_moves_it():
    logits = torch.full((len(names()),), -9.0)
    quiet = emoji.EmojiJudge(world.Judge(Always(logits.clone())))
    data = quiet.judge(noise(1), [""])[0].data
    assert data["found"] == [] and data["scores"] == {} and data["style"] == "blob" and data["background"] == "yellow"
    logits[[7, 9]] = torch.tensor([0.6, 3.0])  # 0.646 and 0.953
    for threshold, found in ((0.5, [names()[9], names()[7]]), (0.9, [names()[9]])):
        judge = emoji.EmojiJudge(world.Judge(Always(logits)), threshold=threshold)
        data = judge.judge(noise(1), [""])[0].data
        assert data["found"] == found and data["scores"] == {names()[9]: 0.95257, names()[7]: 0.64566}


def test_a_network_of_nan_fails_instead_of_finding_nothing():
    broken = emoji.EmojiJudge(world.Judge(Always(torch.full((len(names()),), torch.nan))))
    assert [v.status for v in broken.judge(noise(2), ["", ""])] == ["failed", "failed"]


def test_constant_pictures_are_invalid(judge):
    images = noise(3)
    images[1] = 1.0
    assert [v.status for v in judge.judge(images, [""] * 3)] == ["ok", "invalid", "ok"]


def test_a_batch_is_its_images(judge):
    images = noise(7)
    together = judge.judge(images, [""] * 7)
    for one, verdict in zip(images, together, strict=True):
        (alone,) = judge.judge(one[None], [""])
        assert alone.data["scores"] == pytest.approx(verdict.data["scores"], abs=2e-5)
        assert alone.data["best"] == verdict.data["best"] and alone.data["style"] == verdict.data["style"]


def test_other_sizes_are_shrunk_to_the_worlds(judge):
    small = noise(2)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = F.interpolate(large, (64, 64), mode="bilinear", antialias=True)
    a, b = judge.judge(large, ["", ""]), judge.judge(expected, ["", ""])
    assert all(x.data["scores"] == pytest.approx(y.data["scores"], abs=2e-5) for x, y in zip(a, b, strict=True))
    assert judge.judge(noise(1, 100), [""])[0].status == "ok"


def test_the_shipped_judge_knows_its_hash_and_its_error_rates(monkeypatch, judge, tmp_path):
    weights = tmp_path / "judge.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(emoji, "WEIGHTS", weights)
    monkeypatch.setattr(world, "load_judge", lambda: judge.world)
    shipped = judges.get("emoji")
    assert shipped.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert judges.calibration(shipped)["labels"] == len(names())
    errors = judges.calibration(shipped)["any_label"]
    assert errors["fpr"]["value"] < 0.01 < 0.9 < errors["tpr"]["value"] <= 1
    assert judges.get("emoji@0.7").threshold == 0.7 and judges.calibration(judges.get("emoji@0.7")) == {}


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    real = world.load_judge
    monkeypatch.setattr(world, "load_judge", lambda: real(tmp_path))
    with pytest.raises(ModelError, match="reinstall"):
        judges.get("emoji")
