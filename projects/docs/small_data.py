"""The data that the code blocks use, under the names that the documents give them."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from instseg_d2 import register
from instseg_d2.apps.convert import convert
from instseg_d2.config import load_config, set_num_classes
from instseg_d2.console import run_script
from instseg_d2.data import register_coco
from instseg_d2.engine import Trainer
from instseg_d2.files import write_json

__all__ = ["prepare"]

SIDE = 96  # pixels of an image
# Centre, radius and class of the objects of each image: large ones, which are learned in seconds.
LAYOUTS = [
    [((26, 30), 22, 0), ((68, 64), 24, 1)],
    [((68, 28), 23, 1), ((28, 66), 24, 0)],
]
CLASSES = ("disc", "diamond")
# So that a training of a few steps takes seconds, and finds nothing but the large objects: in a mask of fewer than 100
# pixels, one that is rounded in another way fails the check of exported files.
SMALL = [
    *("MODEL.FCOS.INFERENCE_TH_TEST", "0.3"),
    *("INPUT.MIN_SIZE_TRAIN", f"({SIDE},)", "INPUT.MIN_SIZE_TEST", str(SIDE), "INPUT.RANDOM_FLIP", "none"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0"),
]


def _outline(centre, radius: int, label: int) -> np.ndarray:
    """(P, 2) corners in pixels."""
    angles = np.linspace(0, 2 * np.pi, (24, 4)[label], endpoint=False)
    return np.round(centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int32)


def _draw(layout, rng) -> np.ndarray:
    image = np.full((SIDE, SIDE, 3), (70, 60, 50), np.uint8)
    for centre, radius, label in layout:
        cv2.fillPoly(image, [_outline(centre, radius, label)], ((220, 170, 110), (110, 220, 170))[label])
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def _coco(names: list[str]) -> dict:
    images, annotations = [], []
    for number, name in enumerate(names):
        images.append({"id": number + 1, "file_name": name, "height": SIDE, "width": SIDE})
        for centre, radius, label in LAYOUTS[number % len(LAYOUTS)]:
            corners = _outline(centre, radius, label)
            x, y, width, height = cv2.boundingRect(corners)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label + 1,
                    "bbox": [x, y, width - 1, height - 1],
                    "area": float(cv2.contourArea(corners)),
                    "iscrowd": 0,
                    "segmentation": [corners.ravel().tolist()],
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _train(folder: Path) -> None:
    """model_best.pth and model_final.pth: a small model that has learned these images."""
    register_coco("small", str(folder / "train.json"), str(folder / "images"))
    overrides = [*SMALL, "SOLVER.MAX_ITER", "80", "SOLVER.WARMUP_ITERS", "20", "OUTPUT_DIR", str(folder / "trained")]
    cfg = load_config("quick/blendmask_shapes", ["MODEL.DEVICE", "cpu", *overrides])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("small",), ("small",)
    set_num_classes(cfg, len(CLASSES))
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    for name in ("model_best.pth", "model_final.pth"):
        shutil.copy(folder / "trained" / "model_final.pth", folder / name)
    shutil.rmtree(folder / "trained")
    DatasetCatalog.remove("small")


def prepare(folder: Path) -> None:
    """Write images, labels, a video and a trained model into an empty folder."""
    rng = np.random.default_rng(0)
    for name in ("images", "photos", "more", "scans", "archive/old", "archive/new"):
        (folder / name).mkdir(parents=True)
    splits = {"train": 8, "val": 2, "test": 2}
    for split, count in splits.items():
        names = [f"{split}_{index}.png" for index in range(count)]
        for index, name in enumerate(names):
            cv2.imwrite(str(folder / "images" / name), _draw(LAYOUTS[index % len(LAYOUTS)], rng))
        write_json(folder / f"{split}.json", _coco(names))
    for path in ("photos/a.png", "photos/b.png", "more/c.jpg", "archive/old/d.jpg", "archive/new/e.jpg", "photo.jpg"):
        cv2.imwrite(str(folder / path), _draw(LAYOUTS[0], rng))
    cv2.imwrite(str(folder / "scans/f.png"), np.tile(_draw(LAYOUTS[1], rng), (4, 8, 1)))  # more than one tile
    video = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (SIDE, SIDE))
    for _ in range(3):
        video.write(_draw(LAYOUTS[1], rng))
    video.release()
    convert(folder / "train.json", "labelme", folder / "labelled", images=str(folder / "images"))
    mine = folder / "datasets" / "mine"
    mine.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(folder / f"{split}.json", mine)
    shutil.copytree(folder / "images", mine / "images")
    _train(folder)


if __name__ == "__main__":
    register()
    sys.exit(run_script(prepare, Path(sys.argv[1])))
