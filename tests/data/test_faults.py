"""Every listed fault is found and reported by ``check_data`` and by training."""

import contextlib
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from instseg_d2.commands import run
from instseg_d2.data.coco_check import examine
from instseg_d2.data.faults import DROPPED, ERROR, FAULTS, NOTE, REPAIRED, WARNING
from instseg_d2.errors import DatasetError
from tests.coco_sets import SIZE, polygon, rectangles, write_set

WIDTH, HEIGHT = SIZE
BOXES = rectangles(6)


def entry(key, number=0, drop=(), **values):
    """Change an entry of a list."""

    def change(content, folder):
        content[key][number].update(values)
        for name in drop:
            content[key][number].pop(name)

    return change


def mask(value, **values):
    return entry("annotations", segmentation=value, **values)


def rle(*counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": list(counts)}


def every(key, **values):
    def change(content, folder):
        for entry in content[key]:
            entry.update(values)

    return change


def boxes_alone(**values):
    def change(content, folder):
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
        content["annotations"][0].update(values)

    return change


def add(key, **values):
    return lambda content, folder: content[key].append({**content[key][0], **values})


def no_size_no_file(content, folder):
    content["images"].append({"id": 99, "file_name": "none.png"})


def swapped_size(content, folder):
    content["images"][0].update(width=HEIGHT, height=WIDTH)


def long_id(content, folder):
    content["images"][5]["id"] = content["annotations"][5]["image_id"] = 2**64


def empty(content, folder):
    content["annotations"].clear()


def image_file(write):
    """Change the file of the first image."""

    def change(content, folder):
        write(folder / content["images"][0]["file_name"])

    return change


def extreme(content, folder):
    Image.new("RGB", (1000, 9)).save(folder / "long.png")
    content["images"].append({"id": 99, "file_name": "long.png", "width": 1000, "height": 9})


def same_picture(content, folder):
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    content["images"].append({**content["images"][0], "id": 99, "file_name": "copy.png"})


def pages(path):
    first = Image.open(path)
    path.unlink()
    first.save(path, format="TIFF", save_all=True, append_images=[first])


def deep(content, folder, odd=None):
    for image in content["images"]:
        values = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 10
        Image.fromarray(values >> (8 if image["id"] == odd else 0)).save(folder / image["file_name"])


square = [polygon(BOXES[0])]
KINDS = {
    "file: encoding other than plain UTF-8": None,  # not in the content: see the test
    "images: no id": entry("images", drop=["id"]),
    "images: no file_name": entry("images", drop=["file_name"]),
    "images: id that is neither number nor text": entry("images", id=[1]),
    "images: duplicate id": add("images", file_name="1.png"),
    "images: file_name that is not text": entry("images", file_name=5),
    "images: no width and height, and no readable file": no_size_no_file,
    "images: missing file": image_file(Path.unlink),
    "images: corrupt file": image_file(lambda path: path.write_bytes(b"no image")),
    "images: file of another size than listed": swapped_size,
    "images: no width and height": entry("images", width=None),
    "images: file listed twice": add("images", id=99),
    "images: values far from the range of the others": lambda *x: deep(*x, odd=2),
    "images: ids that are not 64-bit integers": long_id,
    "images: no object": lambda content, folder: content["annotations"].pop(),
    "images: same picture under two names": same_picture,
    "images: more than 8 bits": deep,
    "images: further pages or frames, which are not read": image_file(pages),
    "images: one side over 100 times as long as the other": extreme,
    "categories: no id": entry("categories", drop=["id"]),
    "categories: no name": entry("categories", drop=["name"]),
    "categories: id that is neither number nor text": entry("categories", id=None),
    "categories: duplicate id": add("categories"),
    "categories: name that is not text": entry("categories", name=None),
    "categories: name that is a number": entry("categories", name=7),
    "categories: duplicate name": entry("categories", name="b"),
    "categories: ids that are not 64-bit integers": add("categories", id="third", name="c"),
    "categories: no object, so neither trained on nor evaluated": add("categories", id=3, name="c"),
    "categories: only crowds (iscrowd 1), so neither trained on nor evaluated": every("annotations", category_id=1),
    "annotations: no image_id": entry("annotations", drop=["image_id"]),
    "annotations: no category_id": entry("annotations", drop=["category_id"]),
    "annotations: unknown category": entry("annotations", category_id=8),
    "annotations: unknown image": entry("annotations", image_id="x"),
    "annotations: none": empty,
    "annotations: none can be used": every("annotations", iscrowd=1),
    "annotations: of a dropped image": image_file(Path.unlink),
    "annotations: polygon with fewer than 3 points": mask([[1, 1, 9, 9]]),
    "annotations: polygon with an odd number of coordinates": mask([[1, 1, 9, 1, 9, 9, 1]]),
    "annotations: polygon whose points are not pairs": mask([[1, 1, 0], [9, 1, 0], [9, 9, 0]]),
    "annotations: polygon with a coordinate that is not a number": mask([[1, 1, 9, None, 9, 9]]),
    "annotations: polygon with a coordinate beyond 100000": mask([[1, 1, 9, 1e7, 9, 9]]),
    "annotations: polygon outside the image": mask([polygon([WIDTH, 5, 9, 9])]),
    "annotations: polygon without area": mask([[5, 5, 9, 5, 15, 5]]),
    "annotations: object within the first pixel of the image": mask([polygon([0, 0, 1, 1])], bbox=[0, 0, 1, 1]),
    "annotations: mask that is neither polygon nor RLE": mask("5 5 5"),
    "annotations: RLE of another size than the image": mask(rle(0, WIDTH * HEIGHT, size=SIZE)),
    "annotations: broken RLE": mask(rle(5, 5)),
    "annotations: empty RLE": mask(rle(WIDTH * HEIGHT)),
    "annotations: annotation without a mask": mask([]),
    "annotations: annotation with neither box nor mask": boxes_alone(bbox=[]),
    "annotations: box that is not 4 numbers": boxes_alone(bbox=[1, 2, 3, 4, 5]),
    "annotations: box without area": boxes_alone(bbox=[5, 5, 0, 9]),
    "annotations: box outside the image": boxes_alone(bbox=[5, HEIGHT, 9, 9]),
    "annotations: crowd flag that is neither 0 nor 1": entry("annotations", iscrowd="perhaps"),
    "annotations: id written differently than in its list": entry("annotations", image_id="1"),
    "annotations: mask or box in another notation": mask([{"x": x, "y": y} for x, y in np.reshape(square, (-1, 2))]),
    "annotations: mask with parts of fewer than 3 points": mask([*square, [1, 1]]),
    "annotations: no usable area, box or crowd flag": entry("annotations", drop=["area"]),
    "annotations: ids missing, repeated or below 1": entry("annotations", id=0),
    "annotations: area that disagrees with the mask": entry("annotations", area=1e5),
    "annotations: area larger than the box": boxes_alone(area=1e5),
    "annotations: box that disagrees with the mask": entry("annotations", bbox=[0, 0, WIDTH, HEIGHT]),
    "annotations: box partly outside the image": boxes_alone(bbox=[60, 40, 90, 90]),
    "annotations: object annotated twice": add("annotations", id=99),
    "annotations: polygon partly outside the image": mask([polygon([60, 40, 90, 20])], bbox=[60, 40, 36, 20]),
}
# Found only by reading the images, which training does later.
PICTURES = {
    name
    for name in FAULTS
    if name.startswith("images: ") and any(x in name for x in ("file", "pages", "bits", "values far", "picture"))
} - {"images: file listed twice", "images: ids that are not 64-bit integers", "images: no file_name"}
PICTURES -= {"images: file_name that is not text", "images: no width and height, and no readable file"}


def test_the_list_is_complete():
    assert KINDS.keys() == FAULTS.keys()


def spoiled(folder, name):
    def change(content):
        if KINDS[name] is not None:
            KINDS[name](content, folder / "images")
        if "only crowds" in name:
            content["annotations"].append({**content["annotations"][0], "id": 99, "category_id": 2, "iscrowd": 1})

    path, images = write_set(folder, BOXES, change)
    if KINDS[name] is None:
        Path(path).write_text(Path(path).read_text(), encoding="utf-16")
    return path, images


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_training_and_check_data_say_the_same(registered, tmp_path, caplog, capsys, name):
    files = spoiled(tmp_path, name)
    severity, remedy = FAULTS[name]
    thorough, training = ({row.what: row for row in examine(*files, clean=clean).findings} for clean in (True, False))
    if name != "images: no width and height, and no readable file":  # missing, to check_data
        assert (thorough[name].severity, thorough[name].remedy) == (severity, remedy)
    if name in PICTURES:
        assert name not in training
        return
    if name == "annotations: of a dropped image":
        return
    for row in training.values():
        if row.what in thorough:
            assert row[:2] == thorough[row.what][:2]
    assert training[name].severity == severity

    with caplog.at_level(logging.INFO, logger="instseg_d2"):
        if severity == ERROR:
            with pytest.raises(DatasetError) as caught:
                DatasetCatalog.get(registered("faulty", *files))
        else:
            DatasetCatalog.get(registered("faulty", *files))
    levels = {DROPPED: logging.WARNING, WARNING: logging.WARNING, REPAIRED: logging.INFO, NOTE: logging.INFO}
    what = name.split(": ", 1)[1]
    if severity == ERROR:
        assert what in str(caught.value)
    else:
        said = [record for record in caplog.records if what in record.getMessage()]
        assert [record.levelno for record in said] == [levels[severity]]
    assert run("check", list(files)) == int(any(row.severity != NOTE for row in thorough.values()))
    if name in thorough:
        assert name in capsys.readouterr().out


ODD = [
    None, True, 0, -1, 3, 1.5, 1e300, float("nan"), float("inf"), 2**64, 10**400, "", "1", "a", [], [[]], [[[]]], {},
    {"x": 1, "y": 2}, [1, 2, 3, 4], [[1, 2], [3, 4], [5, 9]], rle(0, 10, WIDTH * HEIGHT - 10), rle(5, 5), [None] * 6,
    {"size": "ab", "counts": 5}, {"size": [HEIGHT, WIDTH]}, "../..", "0.png\x00", "\ud800",
]  # fmt: skip


def places(value, place=()):
    """Every position in nested lists and dicts except the root."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*place, key)
        yield from places(child, (*place, key))


@pytest.mark.parametrize("seed", range(60))
def test_odd_values_end_in_a_sentence_and_clean_copies_are_clean(registered, tmp_path, capsys, seed):
    draw = random.Random(seed)

    def change(content):
        for _ in range(draw.choice([1, 1, 2, 3])):
            *way, last = draw.choice(list(places(content)))
            entry = content
            for key in way:
                entry = entry[key]
            if draw.random() < 0.15:
                del entry[last]
            else:
                entry[last] = draw.choice(ODD)

    files = write_set(tmp_path, BOXES, change, per_image=2)
    with contextlib.suppress(DatasetError):
        DatasetCatalog.get(registered("odd", *files))
    reading = draw.choice(["nothing", "xyxy", "swapped", "normalised", "percent", "centre"])
    assert run("check", [*files, "--fix", "--assume", reading]) in (0, 1, 2)
    clean = tmp_path / "ann.clean.json"
    if clean.exists():
        assert {row.severity for row in examine(str(clean), files[1]).findings} <= {WARNING, NOTE}
        DatasetCatalog.get(registered("odd", clean, files[1]))
