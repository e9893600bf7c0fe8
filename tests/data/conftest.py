"""A small data set on disk, and files and configs that tests change."""

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.config import get_cfg
from instseg_d2.data import make_shapes, register_coco


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """24 images of the shapes data set: train.json and images/."""
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, "train", 24, seed=5)
    return folder


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """register(name, json_file, image_root), undone after the test; corrected copies go to a temporary folder."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    names = []

    def register(name, json_file, image_root):
        names.append(name)
        register_coco(name, json_file, image_root)
        return name

    yield register
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def shapes(registered, shapes_folder):
    """Name of the registered small shapes data set."""
    return registered("tiny_shapes", shapes_folder / "train.json", shapes_folder / "images")


@pytest.fixture
def coco_files(tmp_path):
    """write(**changes) -> (json_file, image_root): two images, three valid annotations, category ids with gaps."""
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("a.png", (40, 30)), ("b.png", (20, 50))):
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(images / name)
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 50},
        ],
        "categories": [{"id": 9, "name": "late"}, {"id": 2, "name": "early"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "iscrowd": 0, "area": 100, "bbox": [5, 5, 10, 10],
             "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]},
            {"id": 2, "image_id": 7, "category_id": 2, "iscrowd": 0, "area": 300, "bbox": [30, 0, 10, 30],
             "segmentation": {"size": [30, 40], "counts": [900, 300]}},
            {"id": 3, "image_id": 3, "category_id": 2, "iscrowd": 1, "area": 50, "bbox": [0, 0, 1, 50],
             "segmentation": {"size": [50, 20], "counts": "0b1fm0"}},
        ],
    }  # fmt: skip

    def write(change=None):
        changed = copy.deepcopy(content)
        if change is not None:
            change(changed)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(changed))
        return path, images

    return write


@pytest.fixture
def cfg():
    """A config for small images without workers and without random changes."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (160, 192)
    cfg.INPUT.MAX_SIZE_TRAIN = 320
    cfg.INPUT.MIN_SIZE_TEST = 160
    cfg.INPUT.MAX_SIZE_TEST = 320
    cfg.MODEL.META_ARCHITECTURE = "BlendMask"  # can have a semantic target
    cfg.MODEL.MASK_ON = True
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SEED = 11
    return cfg


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors here are small, so more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
