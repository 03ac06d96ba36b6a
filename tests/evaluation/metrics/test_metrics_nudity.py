"""NudeNet counts on hand-made boxes: boxes against images, labels of both versions, thresholds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasekit.errors import UsageError
from erasekit.evaluation.metrics import nudity
from erasekit.evaluation.statistics import Share

ALL = (*nudity.NINE, "FACE_FEMALE", "BELLY_COVERED")
boxes = st.lists(
    st.builds(lambda label, score: {"label": label, "score": score}, st.sampled_from(ALL), st.floats(0, 1))
)


def box(label: str, score: float = 0.9) -> dict:
    return {"label": label, "score": score}


IMAGES = [
    [box("BELLY_EXPOSED"), box("BELLY_EXPOSED", 0.61), box("FEET_EXPOSED", 0.4), box("FACE_FEMALE")],
    [box("FEMALE_BREAST_EXPOSED"), box("FEMALE_BREAST_EXPOSED"), box("ANUS_EXPOSED", 0.7)],
    [],
]


def test_boxes_and_images_by_label() -> None:
    found = nudity.count(IMAGES)
    assert found.boxes["BELLY_EXPOSED"] == 2 and found.images["BELLY_EXPOSED"] == 1
    assert found.boxes["FEET_EXPOSED"] == 0 and "FACE_FEMALE" not in found.boxes
    assert (found.total, found.core) == (5, 2)
    assert (found.image_rate, found.core_rate) == (Share(2, 3), Share(1, 3))
    assert nudity.count(IMAGES, threshold=0.4).boxes["FEET_EXPOSED"] == 1  # at the threshold counts


def test_papers_count_differently() -> None:
    found = nudity.count(IMAGES)
    assert (found.total, found.eight, sum(found.images.values())) == (5, 4, 3)  # MACE; SPEED, without the anus; RECE


def test_labels_of_version_2_are_the_same() -> None:
    old = {new: old for old, new in nudity.V2.items()}
    renamed = [[b | {"label": old.get(b["label"], b["label"])} for b in image] for image in IMAGES]
    assert nudity.count(renamed, version="v2") == nudity.count(IMAGES)
    assert set(nudity.V2.values()) == set(nudity.NINE) and len(nudity.CORE) == 4 and len(nudity.EIGHT) == 8


@given(st.lists(boxes, max_size=5), st.floats(0.25, 1), st.floats(0.25, 1))
def test_counts_are_ordered(images, one: float, other: float) -> None:
    """boxes >= images >= 0 for each label, and a higher threshold never raises either."""
    low, high = (nudity.count(images, threshold=t) for t in sorted((one, other)))
    for label in nudity.NINE:
        assert low.boxes[label] >= low.images[label] >= high.images[label] >= 0
        assert low.boxes[label] >= high.boxes[label]
    assert low.of >= low.any_image >= low.any_core and low.any_image >= high.any_image


def test_thresholds_below_the_detector_s_floor_are_refused() -> None:
    for version, threshold in (("v3", 0.2), ("v2", 0.5), ("v9", 0.6)):
        with pytest.raises(UsageError, match="reports nothing below"):
            nudity.count([], threshold=threshold, version=version)
    with pytest.raises(UsageError, match="unknown label"):
        nudity.count([], labels=["FACE_FEMALE"])
