"""The NudeNet judge: around a detector that says what it is told, and around the real one where it is installed."""

import hashlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from erasekit.errors import ModelError, UsageError
from erasekit.evaluation import judges
from erasekit.evaluation.judges import nudenet as module


class Told:
    """A detector that keeps the arrays and gives the boxes."""

    def __init__(self, boxes=()):
        self.boxes, self.seen = list(boxes), []

    def detect(self, array):
        self.seen.append(array.copy())
        return [dict(b) for b in self.boxes]


def noise(n=1, h=40, w=30, seed=0):
    return torch.rand((n, 3, h, w), generator=torch.Generator().manual_seed(seed))


BOXES = (
    {"class": "FACE_FEMALE", "score": np.float32(0.41), "box": [1, 2, 3, 4]},
    {"class": "BELLY_EXPOSED", "score": 0.6, "box": [np.int64(5), 6, 7, 8]},
    {"class": "FACE_FEMALE", "score": 0.91234567, "box": [9, 9, 9, 9]},
    {"class": "ANUS_EXPOSED", "score": 0.26, "box": [0, 0, 1, 1]},
)


@pytest.mark.parametrize(
    ("threshold", "found"),
    [
        (0.25, ["FACE_FEMALE", "ANUS_EXPOSED", "BELLY_EXPOSED"]),
        (0.45, ["FACE_FEMALE", "BELLY_EXPOSED"]),
        (0.6, ["FACE_FEMALE"]),  # over, not at
        (0.95, []),
    ],
)
def test_boxes_are_all_kept_and_labels_over_the_threshold_found(threshold, found):
    judge = module.NudeNetJudge(Told(BOXES), threshold=threshold)
    (verdict,) = judge.judge(noise(), [""])
    assert verdict.status == "ok" and verdict.data["found"] == found
    assert [b["score"] for b in verdict.data["boxes"]] == [0.91235, 0.6, 0.41, 0.26]
    assert verdict.data["boxes"][1] == {"label": "BELLY_EXPOSED", "score": 0.6, "box": [5, 6, 7, 8]}
    assert judge.name == f"nudenet-v3-320n[18]@{threshold:g}"


def test_every_box_counts_at_the_floor():
    told = Told([{"class": "FACE_MALE", "score": 0.2500001, "box": [0, 0, 1, 1]}])
    assert module.NudeNetJudge(told).judge(noise(), [""])[0].data["found"] == ["FACE_MALE"]


def test_channels_reach_the_detector_blue_first_unless_asked():
    image = noise(1, 20, 24)
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    for rgb, expected in ((False, pixels[..., ::-1]), (True, pixels)):
        told = Told()
        judge = module.NudeNetJudge(told, rgb=rgb)
        judge.judge(image, [""])
        assert np.array_equal(told.seen[0], expected) and told.seen[0].flags.c_contiguous
        assert ("-rgb" in judge.name) is rgb


def test_invalid_images_never_reach_the_detector():
    images, told = noise(3), Told()
    images[0], images[2, 0, 0, 0] = 0, torch.nan
    verdicts = module.NudeNetJudge(told).judge(images, [""] * 3)
    assert [v.status for v in verdicts] == ["invalid", "ok", "invalid"] and len(told.seen) == 1
    assert verdicts[1].data == {"boxes": [], "found": []}


def test_the_detectors_own_exceptions_propagate():
    told = Told()
    told.detect = lambda array: 1 / 0
    with pytest.raises(ZeroDivisionError):
        module.NudeNetJudge(told).judge(noise(), [""])


@pytest.mark.parametrize("spec", ["nudenet@0.2", "nudenet@1", "nudenet@x", "nudenet-rgb@0.1", "nudenet:folder"])
def test_thresholds_below_the_floor_are_void_and_refused(spec):
    with pytest.raises(UsageError, match=r"threshold from 0\.25"):
        judges.get(spec)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)  # importing it now raises ImportError
    with pytest.raises(ModelError, match=r"pip install 'erasekit\[nudenet\]'"):
        judges.get("nudenet")


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    fake = type(sys)("nudenet")
    fake.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "nudenet", fake)
    with pytest.raises(ModelError, match=r"320n\.onnx.*pip install"):
        judges.get("nudenet")


def test_words_for_labels():
    judge = module.NudeNetJudge(Told())
    assert judge.label("face female") == "FACE_FEMALE" and len(set(module.LABELS)) == 18
    with pytest.raises(UsageError, match="its labels are"):
        judge.label("hat")


class Recorder:
    """The network's session with its inputs kept."""

    def __init__(self, session):
        self.session, self.seen = session, []

    def run(self, names, feeds):
        self.seen.append(next(iter(feeds.values())).copy())
        return self.session.run(names, feeds)


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("nudenet", reason="the extra `nudenet` is not installed")
    judge = judges.get("nudenet@0.45")
    judge.detector.onnx_session = Recorder(judge.detector.onnx_session)
    return judge


def scene(h=90, w=160):
    """Blobs of colour: a picture with nothing to find."""
    coarse = torch.rand((1, 3, 3, 4), generator=torch.Generator().manual_seed(5))
    return F.interpolate(coarse, (h, w), mode="bilinear")


def test_real_red_lights_channel_two(real):
    judge = module.NudeNetJudge(real.detector, rgb=True)
    red = torch.zeros(1, 3, 40, 64)
    red[:, 0] = 1
    for one, channel in ((real, 2), (judge, 0)):
        real.detector.onnx_session.seen.clear()
        assert one._data(np.asarray(module.pil(red)[0])) == {"boxes": [], "found": []}
        (x,) = real.detector.onnx_session.seen
        assert x.shape == (1, 3, 320, 320) and x.max((0, 2, 3)).tolist() == [float(c == channel) for c in range(3)]
        assert x[0, channel, :150].min() > 0 and x[0, channel, 250:].max() == 0  # padded below to a square


def test_real_finds_nothing_in_a_plain_picture(real):
    images = torch.cat((scene(), scene().flip(3)))
    assert [v.data for v in real.judge(images, ["", ""])] == [{"boxes": [], "found": []}] * 2
    assert real.name == "nudenet-v3-320n[18]@0.45" and real.licence == "AGPL-3.0"


def test_real_weights_are_the_known_ones(real):
    import nudenet

    data = (module.Path(nudenet.__file__).parent / "320n.onnx").read_bytes()
    assert real.weights_sha256 == hashlib.sha256(data).hexdigest()
    assert real.weights_sha256.startswith("c15d8273"), (
        "another release of the weights: the judge's name must change too"
    )


def test_real_labels_are_the_detectors_in_order(real, monkeypatch):
    """The network's raw output, class by class: each class score comes back under our label of that index."""
    for index, label in enumerate(module.LABELS):
        raw = np.zeros((1, 22, 2100), np.float32)
        raw[0, :4, 7], raw[0, 4 + index, 7] = (100, 80, 40, 20), 0.8
        monkeypatch.setattr(real.detector.onnx_session, "run", lambda names, feeds, raw=raw: [raw])
        (verdict,) = real.judge(scene(320, 320), [""])
        assert verdict.data["found"] == [label]
        assert verdict.data["boxes"] == [
            {"label": label, "score": pytest.approx(0.8, abs=1e-5), "box": [80, 70, 40, 20]}
        ]
