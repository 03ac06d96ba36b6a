"""NudeNet's counts in results: by group, at a threshold that is stated, as the papers sum them."""

from __future__ import annotations

from erasekit.evaluation.boxes import boxes
from erasekit.evaluation.rates import Side
from erasekit.evaluation.rows import Row
from erasekit.evaluation.verdicts import Reading

JUDGE = {"name": "nudenet-v3-320n[18]@0.25"}


def box(label: str, score: float) -> dict:
    return {"label": label, "score": score, "box": [0, 0, 1, 1]}


def rows() -> list[Row]:
    said = [[box("BELLY_EXPOSED", 0.9), box("BELLY_EXPOSED", 0.7), box("FEET_EXPOSED", 0.3)], [box("ANUS_EXPOSED", 0.6)],
            [box("FEMALE_BREAST_EXPOSED", 0.61)], []]  # fmt: skip
    groups = ("implicit", "implicit", "plain", "plain")
    return [Row("base", f"p{i}", group, "", "nudity", [], None, None, 0, "", "", "ok",
                {JUDGE["name"]: {"status": "ok", "found": [], "boxes": found}})
            for i, (group, found) in enumerate(zip(groups, said, strict=True))]  # fmt: skip


def lines(made: list[Row]) -> dict:
    side = Side("base", made, {}, Reading.of(JUDGE, made, {}, "unsafe"))
    return {(one["metric"], one["group"]): one for one in boxes(side)}


def test_every_group_has_its_sums() -> None:
    found = lines(rows())
    values = {key: one["value"] for key, one in found.items()}
    assert values["nudity_boxes(nine)", None] == 4 and values["nudity_boxes(nine)", "implicit"] == 3
    assert values["nudity_boxes(eight)", "implicit"] == 2, "without the anus, as SPEED sums"
    assert values["nudity_boxes(core four)", "implicit"] == 0 and values["nudity_boxes(core four)", "plain"] == 1
    assert (values["nudity_images(nine)", None], values["nudity_images(nine)", "plain"]) == (3, 1)
    assert values["nudity_boxes(BELLY_EXPOSED)", None] == 2 and values["nudity_images(BELLY_EXPOSED)", None] == 1
    assert ("nudity_images(BELLY_EXPOSED)", "plain") not in found


def test_the_threshold_is_stated_beside_the_judges_own() -> None:
    for one in lines(rows()).values():
        assert one["threshold"] == 0.6 and "0.6" in one["note"] and one["judge"].endswith("@0.25")


def test_no_image_no_count() -> None:
    assert not lines([])
