"""Coordinates in another unit or order: reported by check_data and training, converted only on request."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from instseg_d2.commands import run
from instseg_d2.data.coco_check import examine
from instseg_d2.errors import DatasetError
from tests.coco_sets import SIZE, rectangles, write_set

FRACTIONS, PERCENT = "fractions of the image's sides", "percent of the image's sides"
XYXY, CENTRE, SWAPPED = "[x0, y0, x1, y1] (XYXY)", "[centre x, centre y, width, height]", "y before x"


# How a file may write the right box x, y, w, h of an image of a size.
BOXES = {
    "right": lambda b, size: b,
    "xyxy": lambda b, size: [b[0], b[1], b[0] + b[2], b[1] + b[3]],
    "centre": lambda b, size: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]],
    "swapped": lambda b, size: [b[1], b[0], b[3], b[2]],
    "normalised": lambda b, size: [b[0] / size[0], b[1] / size[1], b[2] / size[0], b[3] / size[1]],
    "percent": lambda b, size: [100 * v for v in BOXES["normalised"](b, size)],
}
BOXES["normalised centre"] = lambda b, size: BOXES["normalised"](BOXES["centre"](b, size), size)
BOXES["normalised xyxy"] = lambda b, size: BOXES["normalised"](BOXES["xyxy"](b, size), size)
BOXES["percent centre"] = lambda b, size: BOXES["percent"](BOXES["centre"](b, size), size)
BOXES["normalised swapped"] = lambda b, size: BOXES["swapped"](BOXES["normalised"](b, size), size)

# The same for polygons [x0, y0, x1, y1, ...].
POLYGONS = {
    "right": lambda p, size: p,
    "swapped": lambda p, size: np.reshape(p, (-1, 2))[:, ::-1].ravel().tolist(),
    "normalised": lambda p, size: (np.reshape(p, (-1, 2)) / size).ravel().tolist(),
    "percent": lambda p, size: (100 * np.reshape(p, (-1, 2)) / size).ravel().tolist(),
}
POLYGONS["normalised swapped"] = lambda p, size: POLYGONS["swapped"](POLYGONS["normalised"](p, size), size)


def spoiled(folder, boxes="right", polygons="right", number=24, size=SIZE, which=slice(None), **options):
    """A file whose boxes and polygons (of the annotations ``which``) are written in this way."""

    def change(content):
        for annotation in content["annotations"][which]:
            annotation["bbox"] = BOXES[boxes](annotation["bbox"], size)
            if "segmentation" in annotation:
                annotation["segmentation"] = [POLYGONS[polygons](p, size) for p in annotation["segmentation"]]

    return write_set(folder, rectangles(number, size), change, size, **options)


def causes(files, **options):
    return [row.what for row in examine(*files, **options).findings if "look like" in row.what]


def right_content(folder, number=24, size=SIZE, **options):
    folder.mkdir()
    return json.loads(Path(write_set(folder, rectangles(number, size), None, size, **options)[0]).read_text())


def geometry(content):
    return [
        (np.round(x["bbox"], 6).tolist(), np.round(x.get("segmentation", []), 6).tolist())
        for x in content["annotations"]
    ]


CASES = [
    # boxes and polygons as written, what is named, --assume
    ("xyxy", "right", [f"boxes look like {XYXY}"], "xyxy"),
    ("centre", "right", [f"boxes look like {CENTRE}"], "centre"),
    ("swapped", "right", [f"boxes look like {SWAPPED}"], "swapped"),
    ("normalised", "right", [f"boxes look like {FRACTIONS}"], "normalised"),
    ("percent", "right", [f"boxes look like {PERCENT}"], "percent"),
    ("normalised centre", "right", [f"boxes look like {FRACTIONS} and {CENTRE}"], "normalised centre"),
    ("normalised xyxy", "right", [f"boxes look like {FRACTIONS} and {XYXY}"], "normalised xyxy"),
    ("percent centre", "right", [f"boxes look like {PERCENT} and {CENTRE}"], "percent centre"),
    ("normalised swapped", "right", [f"boxes look like {FRACTIONS} and {SWAPPED}"], "normalised swapped"),
    ("right", "swapped", [f"polygons look like {SWAPPED}"], "swapped"),
    ("right", "normalised", [f"polygons look like {FRACTIONS}"], "normalised"),
    ("right", "percent", [f"polygons look like {PERCENT}"], "percent"),
    ("right", "normalised swapped", [f"polygons look like {FRACTIONS} and {SWAPPED}"], "normalised swapped"),
    ("normalised", "normalised", [f"coordinates look like {FRACTIONS}"], "normalised"),
    ("normalised centre", "normalised",
     [f"coordinates look like {FRACTIONS}", f"boxes look like {CENTRE}"], "normalised centre"),
    ("normalised xyxy", "normalised",
     [f"coordinates look like {FRACTIONS}", f"boxes look like {XYXY}"], "normalised xyxy"),
    ("swapped", "swapped", [f"coordinates look like {SWAPPED}"], "swapped"),
    ("percent", "percent", [f"coordinates look like {PERCENT}"], "percent"),
]  # fmt: skip


@pytest.mark.parametrize(("boxes", "polygons", "named", "assumed"), CASES)
@pytest.mark.parametrize("size", [SIZE, (640, 480), (300, 900)])
def test_a_contradiction_is_reported_and_converted_on_request(tmp_path, capsys, boxes, polygons, named, assumed, size):
    layout = {"size": size, "per_image": 1 if size == SIZE else 6}
    files = spoiled(tmp_path, boxes, polygons, **layout)
    expected = [f"annotations: {what}" for what in named]
    assert causes(files) == expected
    assert causes(files, clean=False) == expected  # what training says

    clean = tmp_path / "ann.clean.json"
    assert run("check", [*files, "--fix"]) == 1
    assert not clean.exists()
    assert f"no clean copy of {files[0]}: add --assume" in capsys.readouterr().out
    assert run("check", [*files, "--fix", "--assume", *assumed.split()]) == 1
    assert causes((str(clean), files[1])) == []
    assert geometry(json.loads(clean.read_text())) == geometry(right_content(tmp_path / "right", **layout))
    assert run("check", [str(clean), files[1]]) == 0


@pytest.mark.parametrize("size", [SIZE, (640, 480)])
@pytest.mark.parametrize(
    ("boxes", "named", "assumed"),
    [
        ("xyxy", f"boxes look like {XYXY}", ["xyxy"]),
        ("centre", f"boxes look like {CENTRE}", ["centre"]),
        ("swapped", f"coordinates look like {SWAPPED}", ["swapped"]),
        ("normalised", f"coordinates look like {FRACTIONS}", ["normalised"]),
        ("percent", f"coordinates look like {PERCENT}", ["percent"]),
    ],
)
def test_boxes_alone(tmp_path, boxes, named, assumed, size):
    layout = {"number": 40, "size": size, "masks": False, "per_image": 1 if size == SIZE else 8}
    files = spoiled(tmp_path, boxes, **layout)
    assert causes(files) == [f"annotations: {named}"]
    run("check", [*files, "--fix", "--assume", *assumed])
    content = json.loads((tmp_path / "ann.clean.json").read_text())
    assert geometry(content) == geometry(right_content(tmp_path / "right", **layout))


def test_corners_that_stay_inside_are_recognised_by_the_areas(tmp_path):
    """Objects in the upper left corner, whose boxes would also be inside the image as [x, y, width, height]."""
    boxes = rectangles(20, (45, 30))
    files = write_set(tmp_path, boxes, masks=False)
    assert causes(files) == []
    content = json.loads(Path(files[0]).read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = BOXES["xyxy"](annotation["bbox"], SIZE)
    Path(files[0]).write_text(json.dumps(content))
    assert causes(files) == [f"annotations: boxes look like {XYXY}"]


def test_run_lengths_with_boxes_in_another_unit(tmp_path):
    """RLEs are trusted; only the boxes are converted."""

    def change(content):
        for annotation in content["annotations"]:
            x, y, w, h = (int(v) for v in annotation["bbox"])
            mask = np.zeros((SIZE[1], SIZE[0]), bool)
            mask[y : y + h, x : x + w] = True
            runs = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel("F"), [False]])))
            counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
            annotation["segmentation"] = {"size": [SIZE[1], SIZE[0]], "counts": counts}
            annotation["bbox"] = BOXES["normalised"](annotation["bbox"], SIZE)

    files = write_set(tmp_path, rectangles(8), change)
    assert causes(files) == [f"annotations: boxes look like {FRACTIONS}"]


def test_part_of_a_file(tmp_path):
    """Two merged files: only the objects of one are reported and converted."""
    files = spoiled(tmp_path, "xyxy", number=20, which=slice(0, 20, 3))
    row = next(row for row in examine(*files).findings if "look like" in row.what)
    truth = rectangles(20)[::3]
    read = np.array([BOXES["xyxy"](b, SIZE) for b in truth])
    distance = np.abs(read[:, 2:] - truth[:, 2:]).max(1)  # of the far corners, if they are taken for sides
    assert row.count == (distance > np.maximum(2, 0.1 * truth[:, 2:].max(1))).sum() >= 5
    run("check", [*files, "--fix", "--assume", "xyxy"])
    content = json.loads((tmp_path / "ann.clean.json").read_text())
    assert geometry(content) == geometry(right_content(tmp_path / "right", number=20))


def test_a_few_objects_in_the_first_pixel_are_dropped(tmp_path):
    files = spoiled(tmp_path, "normalised", "normalised", number=20, which=slice(0, 4))
    for clean in (True, False):
        report = examine(*files, clean=clean)
        rows = {row.what: (row.count, row.severity) for row in report.findings}
        assert rows["annotations: object within the first pixel of the image"] == (4, "dropped")
        assert len(report.content["annotations"]) == 16


@pytest.mark.parametrize("seed", range(12))
def test_sound_files_are_not_suspected(tmp_path, seed):
    """Few or many objects, with or without masks, small or large, some across the border, some with wrong boxes."""
    rng = np.random.default_rng(seed)
    size = [(96, 64), (640, 480), (64, 64), (500, 2000)][seed % 4]
    boxes = rectangles(int(rng.integers(1, 60)), size, seed).astype(float)
    if seed % 3 == 1:
        boxes[:, 2:] /= 6  # small ones
    if seed % 3 == 2:
        boxes[::2, :2] -= 0.25 * boxes[::2, 2:]  # over the border

    def change(content):
        for annotation in content["annotations"][::7]:
            annotation["bbox"] = (np.array(annotation["bbox"]) + rng.uniform(0, 8, 4)).tolist()

    assert causes(write_set(tmp_path, boxes, change if seed % 2 else None, size, masks=seed % 5 != 4)) == []


def test_objects_that_all_lie_in_a_corner_are_not_percent(tmp_path):
    assert causes(write_set(tmp_path, rectangles(40, (60, 50)), size=(640, 480))) == []


def test_assuming_nothing_leaves_the_coordinates(tmp_path):
    files = spoiled(tmp_path, "xyxy")
    run("check", [*files, "--fix", "--assume", "nothing"])
    content = json.loads((tmp_path / "ann.clean.json").read_text())
    assert geometry(content) == geometry(right_content(tmp_path / "right"))  # the boxes of the masks


def test_assuming_without_a_sign_converts_everything(tmp_path):
    files = spoiled(tmp_path, "percent", "percent", number=1)
    assert causes(files) == []  # one object tells nothing
    run("check", [*files, "--fix", "--assume", "percent"])
    content = json.loads((tmp_path / "ann.clean.json").read_text())
    assert geometry(content) == geometry(right_content(tmp_path / "right", number=1))


def test_what_training_says(registered, tmp_path, caplog):
    files = spoiled(tmp_path, "xyxy")
    with caplog.at_level(logging.WARNING, logger="instseg_d2"):
        DatasetCatalog.get(registered("corners", *files))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("instseg_d2")]
    assert len(said) == 1
    assert f"boxes look like {XYXY}" in said[0]
    assert f"python -m instseg_d2.check_data {files[0]} {files[1]} --fix --assume xyxy" in said[0]


@pytest.mark.parametrize(("boxes", "polygons", "masks"), [
    ("normalised", "normalised", True), ("right", "normalised", True), ("normalised", "right", False),
])  # fmt: skip
def test_training_does_not_start_on_nothing(registered, tmp_path, boxes, polygons, masks):
    files = spoiled(tmp_path, boxes, polygons, masks=masks)
    with pytest.raises(DatasetError, match=f"look like {FRACTIONS}.*--fix --assume normalised"):
        DatasetCatalog.get(registered("fractions", *files))
