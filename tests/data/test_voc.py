"""A tiny VOC and SBD tree, converted and read back."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy.io import savemat

from instseg_d2.data import register_coco
from instseg_d2.data.voc import CLASSES, prepare_voc, read_sbd_objects, read_voc_objects, voc_splits
from instseg_d2.errors import DatasetError

SCRIPT = Path(__file__).parents[2] / "projects" / "InstanceFCN" / "prepare_voc.py"
SIZE = (12, 16)


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8), mode="P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def write_image(voc, name):
    path = voc / "JPEGImages" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(path)


def maps(*objects):
    """Object and class map of (class, rows, columns), each object with a rim of void on its first row."""
    numbers, labels = np.zeros(SIZE, int), np.zeros(SIZE, int)
    for number, (label, rows, columns) in enumerate(objects, start=1):
        numbers[rows, columns], labels[rows, columns] = number, label
        numbers[rows.start, columns] = labels[rows.start, columns] = 255
    return numbers, labels


def write_voc(voc, name, *objects):
    numbers, labels = maps(*objects)
    write_png(voc / "SegmentationObject" / f"{name}.png", numbers)
    write_png(voc / "SegmentationClass" / f"{name}.png", labels)
    write_image(voc, name)


def write_sbd(sbd, name, segmentation, categories):
    (sbd / "inst").mkdir(parents=True, exist_ok=True)
    content = {"Segmentation": segmentation.astype(np.uint8), "Categories": np.array(categories, np.uint8)[:, None]}
    savemat(sbd / "inst" / f"{name}.mat", {"GTinst": {**content, "Boundaries": np.zeros((len(categories), 1))}})


@pytest.fixture
def trees(tmp_path):
    """VOC: a, b in train, c in val. SBD: b and d in train, c and e in val, as the real ones overlap."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
    write_voc(voc, "a", (15, slice(1, 6), slice(2, 8)), (1, slice(5, 10), slice(6, 12)))
    write_voc(voc, "b", (20, slice(0, 4), slice(0, 4)))
    write_voc(voc, "c", (8, slice(2, 9), slice(1, 5)))
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    one = np.zeros(SIZE)
    one[3:7, 4:9] = 1
    two = one.copy()
    two[0:2, 0:3] = 2
    for name, segmentation, categories in (("b", one, [3]), ("c", one, [3]), ("d", one, [7]), ("e", two, [2, 15])):
        write_sbd(sbd, name, segmentation, categories)
        write_image(voc, name)
    (sbd / "train.txt").write_text("b\nd\n")
    (sbd / "val.txt").write_text("c\ne\n")
    return voc, sbd


def test_splits(trees):
    voc, sbd = trees
    assert voc_splits(voc, sbd) == {"train": ["a", "b", "d", "e"], "val": ["c"]}
    assert voc_splits(voc) == {"train": ["a", "b"], "val": ["c"]}


def test_void_belongs_to_no_object(trees):
    objects, classes = read_voc_objects(trees[0], "a")
    assert classes == {1: CLASSES.index("person"), 2: CLASSES.index("aeroplane")}
    assert [(objects == n).sum() for n in (1, 2)] == [
        18 + 4,
        24,
    ]  # the void row of the second cuts two cells of the first
    assert set(np.unique(objects)) == {0, 1, 2}


def test_sbd_objects(trees):
    objects, classes = read_sbd_objects(trees[1], "e")
    assert classes == {1: CLASSES.index("bicycle"), 2: CLASSES.index("person")}
    assert [(objects == n).sum() for n in (1, 2)] == [20, 6]
    assert read_sbd_objects(trees[1], "d")[1] == {1: CLASSES.index("car")}


def test_written_sets_load(trees, tmp_path):
    voc, sbd = trees
    output = tmp_path / "data" / "voc_2012"
    written = prepare_voc(voc, sbd, output)
    assert {split: counts[1:] for split, counts in written.items()} == {"train": (4, 6), "val": (1, 1)}
    content = json.loads((output / "train.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES)
    by_image = {}
    for annotation in content["annotations"]:
        by_image.setdefault(content["images"][annotation["image_id"] - 1]["file_name"], []).append(annotation)
    assert [a["category_id"] for a in by_image["b.jpg"]] == [20]  # VOC's own, where both have it
    (found,) = by_image["d.jpg"]
    assert (found["category_id"], found["bbox"], found["area"]) == (7, [4, 3, 5, 4], 20)
    expected = np.zeros(SIZE)
    expected[3:7, 4:9] = 1
    assert np.array_equal(mask_util.decode(found["segmentation"]), expected)

    register_coco("toy_voc", output / "train.json", output / "images")
    try:
        samples = DatasetCatalog.get("toy_voc")
        assert [len(sample["annotations"]) for sample in samples] == [2, 1, 1, 2]
        assert all(Path(sample["file_name"]).is_file() for sample in samples)
        assert MetadataCatalog.get("toy_voc").thing_classes == list(CLASSES)
        assert MetadataCatalog.get("toy_voc").json_file == str(output / "train.json")  # nothing to correct
    finally:
        DatasetCatalog.remove("toy_voc")
        MetadataCatalog.pop("toy_voc")
    prepare_voc(voc, sbd, output)  # again, over what is there


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("VOC2012/JPEGImages", "JPEGImages: no such folder; --voc must name"),
        ("VOC2012/SegmentationObject", "SegmentationObject: no such folder; --voc must name"),
        ("VOC2012/ImageSets/Segmentation/val.txt", r"val\.txt: no such file; VOC 2012 is incomplete"),
        ("VOC2012/JPEGImages/d.jpg", r"d\.jpg: no such file; VOC 2012 is incomplete"),
        ("VOC2012/SegmentationClass/c.png", r"c\.png: no such file; VOC 2012 is incomplete"),
        ("dataset/inst", "inst: no such folder; --sbd must name"),
        ("dataset/val.txt", r"val\.txt: no such file; --sbd must name"),
        ("dataset/inst/e.mat", r"e\.mat: no such file; SBD is incomplete"),
    ],
)
def test_what_is_missing_is_named(trees, tmp_path, missing, match):
    path = tmp_path / missing
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=match):
        prepare_voc(*trees, tmp_path / "out")


def test_broken_files_are_named(trees, tmp_path):
    voc, sbd = trees
    savemat(sbd / "inst" / "d.mat", {"GTcls": 1})
    with pytest.raises(DatasetError, match=r"d\.mat is not an SBD instance file"):
        read_sbd_objects(sbd, "d")
    write_sbd(sbd, "d", np.full(SIZE, 2), [3])
    with pytest.raises(DatasetError, match=r"d\.mat has objects without one of the"):
        read_sbd_objects(sbd, "d")
    write_png(voc / "SegmentationClass" / "a.png", np.zeros((3, 3)))
    with pytest.raises(DatasetError, match="a: SegmentationObject and SegmentationClass"):
        read_voc_objects(voc, "a")


def test_output_that_cannot_be_written(trees, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        prepare_voc(*trees, tmp_path / "file")


def test_script(trees, tmp_path, monkeypatch, capsys):
    voc, sbd = trees
    output = tmp_path / "voc_2012"
    arguments = [str(SCRIPT), "--voc", str(voc), "--output", str(output), "--sbd"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(sbd)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert done.value.code == 0
    assert f"{output / 'train.json'}: 4 images, 6 objects (voc_2012_train)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "nowhere"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert done.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: nowhere/inst: no such folder")
