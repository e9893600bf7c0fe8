"""COCO files with faults, for tests: rectangles on grey images."""

import json

import numpy as np
from PIL import Image

SIZE = (96, 64)  # width, height


def rectangles(number: int, size=SIZE, seed=0) -> np.ndarray:
    """Random boxes inside the image: (number, 4) integers x, y, width, height."""
    rng = np.random.default_rng(seed)
    sides = np.array(size)
    extent = rng.integers(sides // 6, sides // 2, (number, 2))
    return np.concatenate([rng.integers(0, sides - extent + 1), extent], 1)


def polygon(box) -> list:
    """The corners of a box, clockwise: [x0, y0, x1, y0, ...]."""
    x, y, w, h = (float(v) for v in box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_set(folder, boxes, change=None, size=SIZE, masks=True, name="ann", per_image=1):
    """
    Write a file with one object per box, ``per_image`` objects per image, of the classes "a" and "b" in turn;
    ``change(content)`` may add faults. Returns (path, folder of the images).
    """
    images = folder / "images"
    images.mkdir(exist_ok=True)
    numbers = range(-(-len(boxes) // per_image))
    for number in numbers:
        Image.fromarray(np.full((size[1], size[0], 3), 40 + number, np.uint8)).save(images / f"{number}.png")
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{i}.png", "width": size[0], "height": size[1]} for i in numbers
        ],
        "annotations": [
            {"id": i + 1, "image_id": i // per_image + 1, "category_id": 1 + i % 2, "iscrowd": 0,
             "bbox": [float(v) for v in box], "area": float(box[2] * box[3]),
             **({"segmentation": [polygon(box)]} if masks else {})}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }  # fmt: skip
    if change is not None:
        change(content)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path), str(images)
