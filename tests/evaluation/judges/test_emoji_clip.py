"""The emoji CLIP as a judge, on a network with random weights; its error rates on oracles."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import calibrate, emoji_clip
from erasekit.evaluation.statistics import wilson
from erasekit.worlds.emoji import BACKGROUNDS, STYLES, concepts, names
from erasekit.worlds.emoji.clip import Network, Words, save_clip
from erasekit.worlds.emoji.scenes import render, sample_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        words = Words(["a", "cat", "dog"])
        save_clip(Network(len(words)), words, path)
    return path


@pytest.fixture(scope="module")
def judge(folder):
    return emoji_clip.load(folder)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([render(sample_scene(rng)) for _ in range(4)])).permute(0, 3, 1, 2).contiguous()


def vector(judgement):
    return torch.from_numpy(np.frombuffer(base64.b64decode(judgement.data["embedding"]), "<f2").astype(np.float32))


def test_an_embedding_is_a_unit_vector_in_json(judge, pictures):
    out = judge.judge(pictures, ["a cat"] * 4)
    assert [j.status for j in out] == ["ok"] * 4
    assert json.loads(json.dumps(out[0].data)) == out[0].data and set(out[0].data) == {"embedding", "dim"}
    for one, direct in zip(out, judge.clip.images(pictures), strict=True):
        assert one.data["dim"] == len(vector(one)) == 128
        assert abs(float(vector(one).norm()) - 1) < 2e-3 and torch.allclose(vector(one), direct, atol=1e-3)


def test_the_bits_do_not_depend_on_the_batch(judge, pictures):
    together = judge.judge(pictures, [""] * 4)
    assert [judge.judge(p[None], [""])[0] for p in pictures] == together


def test_texts(judge):
    vectors = judges.text_embeddings(judge, ["a cat", "a dog"])
    assert vectors.shape == (2, 128) and vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5) and not torch.equal(*vectors)


def test_what_is_no_picture_is_invalid_and_the_others_are_judged(judge, pictures):
    images = torch.cat((pictures[:1], torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan), pictures[1:2]))
    out = judge.judge(images, [""] * 4)
    assert [j.status for j in out] == ["ok", "invalid", "invalid", "ok"]
    assert all(set(j.data) == {"reason"} for j in out[1:3])
    assert out[3] == judge.judge(pictures[1:2], [""])[0]


def test_other_sizes_are_squeezed(judge, pictures):
    same = judge.judge(pictures, [""] * 4)
    for height, width in ((256, 256), (128, 192)):
        larger = F.interpolate(pictures, size=(height, width), mode="nearest")
        out = judge.judge(larger, [""] * 4)
        assert min(float(vector(a) @ vector(b)) for a, b in zip(same, out, strict=True)) > 0.95


def test_an_embedding_that_is_not_finite_is_failed_never_a_verdict(folder, pictures):
    broken = emoji_clip.EmojiClip(emoji_clip.Clip(Network(6), Words(["a", "cat", "dog"])), "0")
    torch.nn.init.constant_(broken.clip.network.image.project.weight, torch.nan)
    (one,) = broken.judge(pictures[:1], [""])
    assert one.status == "failed" and "finite" in one.data["reason"]


def test_its_name_hash_and_licence(judge, folder):
    assert judge.name == "emoji-clip-v1[128]" and judge.licence == "Apache-2.0"
    assert judge.weights_sha256 == hashlib.sha256((folder / "clip.safetensors").read_bytes()).hexdigest()
    assert isinstance(judge, judges.TextJudge)


def test_missing_weights_and_wrong_calls(judge, pictures, tmp_path):
    with pytest.raises(ModelError, match="train clip"):
        emoji_clip.load(tmp_path)
    with pytest.raises(UsageError):
        judge.judge(pictures, ["a cat"])
    assert judge.judge(pictures[:0], []) == []


# --- its own error rates


class Oracle:
    """Reads scenes and texts perfectly: one place a concept, style and background."""

    def __init__(self, *, blind=False):
        self.blind = blind

    def images(self, features):
        return F.normalize(torch.ones_like(features) if self.blind else features, dim=1)

    def texts(self, texts):
        out = torch.zeros(len(texts), SPACE)
        for row, text in enumerate(texts):
            for i, concept in enumerate(concepts()):
                for word in (concept.name, *concept.synonyms):
                    if re.search(rf"\ban? {word}( in | on | and |$)", text):
                        out[row, i] = 1
            for k, word in enumerate((*STYLES, *BACKGROUNDS)):
                if f" {word} style" in text or f" {word} background" in text:
                    out[row, len(names()) + k] = 1
        return F.normalize(out, dim=1)


SPACE = len(names()) + len(STYLES) + len(BACKGROUNDS)


def features(scenes):
    out = torch.zeros(len(scenes), SPACE)
    for row, s in enumerate(scenes):
        out[row, list(s.objects)] = 1
        out[row, len(names()) + s.style] = out[row, len(names()) + len(STYLES) + s.background] = 1
    return out


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(1)
    return [sample_scene(rng, pair_share=0.4) for _ in range(250)]


def test_a_perfect_reader_makes_no_error(scenes):
    report = emoji_clip.rates(Oracle(), scenes, features(scenes))
    shares = {
        k: v
        for k, v in report.items()
        if "accuracy" in k or k in ("retrieval_top1", "both_objects_top2", "whole_beats_half")
    }
    assert len(shares) == 8 and set(shares.values()) == {1.0}
    assert report["cosine_ceiling"]["mean"] == pytest.approx(3**-0.5, abs=1e-4) and report["cosine_floor"]["mean"] == 0
    assert report["single_images"] + report["double_images"] == 250


class Counted(Oracle):
    """Is shown the scenes' pictures in order, and so knows them."""

    name, dim = "oracle", SPACE

    def __init__(self, scenes):
        super().__init__()
        self.known = iter(features(scenes))

    def images(self, pictures):
        return super().images(torch.stack([next(self.known) for _ in pictures]))


def test_the_command_calibrates_it_on_renders(monkeypatch):
    from erasekit.worlds.emoji import scenes as world

    monkeypatch.setattr(world, "render", lambda scene: np.zeros((2, 2, 3), np.float32))
    drawn, told = calibrate.scenes(2, 0), []
    judge = emoji_clip.EmojiClip(Counted(drawn), "00")
    report = calibrate.renders(judge, per_label=2, progress=lambda *one: told.append(one))
    single = [concepts()[s.objects[0]] for s in drawn if len(s.objects) == 1]
    top = report["retrieval_top1"]
    assert (top["value"], top["n"], top["low"]) == (1, len(single), wilson(len(single), len(single))[0])
    assert report["synonym_accuracy"]["n"] == sum(bool(c.synonyms) for c in single)
    assert report["both_objects_top2"]["n"] == report["double_images"] == len(drawn) - len(single)
    assert report["judge"] == "oracle" and told[-1][:2] == (len(drawn), len(drawn))


def test_the_shipped_one_brings_its_rates():
    known = json.loads((emoji_clip.CLIP_DIR / "clip.json").read_text())
    assert judges.calibration(judges.get("emoji-clip")) == known and "retrieval_top1" in known["through_autoencoder"]


def test_a_blind_one_gains_nothing(scenes):
    report = emoji_clip.rates(Oracle(blind=True), scenes, features(scenes))
    assert (
        report["pair_accuracy"] == report["pair_accuracy_neighbours"] == report["synonym_accuracy"] == 0
    )  # ties win nothing
    assert report["retrieval_top1"] < 0.05 and report["both_objects_top2"] < 0.05
    assert report["style_accuracy"] < 0.5 and report["background_accuracy"] < 0.4
    assert report["cosine_ceiling"] == pytest.approx(report["cosine_floor"], abs=2e-4)


def test_an_objects_rates_against_a_loop(scenes):
    single = [s for s in scenes if len(s.objects) == 1][:40]
    cosines = torch.rand(40, len(names()), generator=torch.Generator().manual_seed(0)) * 2 - 1
    report = emoji_clip.objects(cosines, single)
    top, wins, pairs = 0, 0, 0
    for row, s in zip(cosines.tolist(), single, strict=True):
        own = row[s.objects[0]]
        top += own == max(row)
        wins += sum(own > v for i, v in enumerate(row) if i != s.objects[0])
        pairs += len(row) - 1
    assert report["retrieval_top1"] == pytest.approx(top / 40, abs=1e-4)
    assert report["pair_accuracy"] == pytest.approx(wins / pairs, abs=1e-4)
