"""A COCO data set for tests of the page: three images of tests/bright_spots.py, the same two objects in each."""

import json

import cv2

from tests.bright_spots import CLASS_NAMES, spots_image

RED, BLUE = [10.0, 10.0, 30.0, 20.0], [50.0, 40.0, 20.0, 15.0]  # x, y, width, height


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_spots_set(folder, names=CLASS_NAMES):
    """
    0.png is annotated as it is; in 1.png the classes are swapped; in 2.png a third object is annotated where nothing
    is, and the red one is not. Returns (path, folder of the images).
    """
    images = folder / "images"
    images.mkdir(parents=True)
    objects = [
        (1, 1, RED), (1, 2, BLUE),
        (2, 2, RED), (2, 1, BLUE),
        (3, 2, BLUE), (3, 1, [5.0, 45.0, 10.0, 10.0]),
    ]  # fmt: skip
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), spots_image()[..., ::-1])
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(3)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0, "segmentation": [corners(box)]}
            for i, (image, category, box) in enumerate(objects)
        ],
        "categories": [{"id": 1, "name": names[0]}, {"id": 2, "name": names[1]}],
    }  # fmt: skip
    path = folder / "spots.json"
    path.write_text(json.dumps(content))
    return str(path), str(images)
