import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.data import make_shapes
from instseg_d2.data.shapes import instances as shapes
from instseg_d2.data.shapes.drawing import draw_scene
from instseg_d2.errors import DatasetError


def load(folder, split="train"):
    return json.loads((folder / f"{split}.json").read_text())


def rle_of(annotation, height, width):
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def test_annotations_are_the_visible_masks_of_the_drawn_scenes(shapes_folder):
    content = load(shapes_folder)
    by_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    exact = 0
    for image in content["images"][:8]:
        scene = draw_scene(np.random.default_rng([shapes.VERSION, 5, image["id"]]))
        assert (image["height"], image["width"]) == scene.owner.shape
        assert len(by_image[image["id"]]) == len(scene.labels) <= 12
        for number, annotation in enumerate(by_image[image["id"]], start=1):
            mask = scene.owner == number
            assert annotation["category_id"] == shapes.CATEGORY_IDS[scene.labels[number - 1]]
            assert annotation["area"] == mask.sum() >= 48
            rows, columns = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            drawn = mask_util.decode(rle_of(annotation, *mask.shape)).astype(bool)
            iou = (drawn & mask).sum() / (drawn | mask).sum()
            if isinstance(annotation["segmentation"], dict):
                assert iou == 1
                exact += 1
            else:
                assert iou > 0.85
                assert (drawn ^ mask).sum() < 0.5 * cv2.arcLength(
                    np.float32(annotation["segmentation"][0]).reshape(-1, 1, 2), True
                )
    assert exact


def test_scenes_vary_as_promised():
    scenes = [draw_scene(np.random.default_rng([shapes.VERSION, 1, i])) for i in range(1, 61)]
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) == 0
    assert max(counts) >= 9
    assert max(counts) <= 12
    areas = np.concatenate([np.bincount(s.owner.ravel(), minlength=len(s.labels) + 1)[1:] for s in scenes])
    assert (areas < 32**2).mean() > 0.2
    assert (areas > 96**2).mean() > 0.05
    assert {label for scene in scenes for label in scene.labels} == set(range(6))
    assert {scene.owner.shape[0] > scene.owner.shape[1] for scene in scenes} == {True, False}
    # Every object keeps a share of itself that is worth learning.
    assert areas.min() >= 48
    images = [scene.image for scene in scenes]
    assert all(image.dtype == np.uint8 and image.std() > 5 for image in images)


def test_all_kinds_of_masks_occur_and_holes_are_rle(shapes_folder):
    content = load(shapes_folder)
    kinds = set()
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            kinds.add("polygon")
            assert len(segmentation) == 1
            assert len(segmentation[0]) >= 6
        else:
            kinds.add(type(segmentation["counts"]).__name__)
    assert kinds == {"polygon", "str", "list"}
    identifiers = [annotation["id"] for annotation in content["annotations"]]
    assert identifiers == list(range(1, len(identifiers) + 1))
    suffixes = {image["file_name"].rsplit(".")[-1] for image in content["images"]}
    assert suffixes == {"jpg", "png"}


def test_deterministic(shapes_folder, tmp_path):
    make_shapes(tmp_path, "train", 24, seed=5)
    assert (tmp_path / "train.json").read_bytes() == (shapes_folder / "train.json").read_bytes()
    for image in (tmp_path / "images").iterdir():
        assert image.read_bytes() == (shapes_folder / "images" / image.name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["images"]  # nothing left beside

    make_shapes(tmp_path, "val", 3, seed=5)  # a shorter split of the same seed is its beginning
    short, long = load(tmp_path, "val"), load(tmp_path)
    assert short["annotations"] == long["annotations"][: len(short["annotations"])]
    make_shapes(tmp_path, "val", 3, seed=6)
    assert load(tmp_path, "val")["annotations"] != short["annotations"]


def test_drawn_once(tmp_path, monkeypatch):
    path = make_shapes(tmp_path, "train", 2, seed=1)
    monkeypatch.setattr(shapes, "draw_scene", None)  # a second drawing would fail
    assert make_shapes(tmp_path, "train", 2, seed=1) == path


def test_interrupted_drawing_leaves_no_split(tmp_path, monkeypatch):
    calls = []

    def interrupted(rng):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(rng)

    monkeypatch.setattr(shapes, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, "train", 4, seed=1)
    assert not (tmp_path / "train.json").exists()
    assert not list((tmp_path / "images").iterdir())
    assert not list(tmp_path.glob(".train-*"))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file.*cannot be written.*INSTSEG_CACHE"):
        make_shapes(tmp_path / "file", "train", 1, seed=1)


def test_registered_names():
    for split, count in (("train", 400), ("val", 100)):
        assert f"shapes_{split}" in DatasetCatalog
        metadata = MetadataCatalog.get(f"shapes_{split}")
        assert metadata.evaluator_type == "coco"
        assert metadata.json_file.endswith(f"{split}.json")
        assert shapes.SPLITS[split][0] == count
