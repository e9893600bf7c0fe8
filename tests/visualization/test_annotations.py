"""Annotations of every kind, drawn on their image."""

import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from instseg_d2.visualization import draw_annotations, instance_color


def _annotation(box, **fields):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **fields}


def test_polygon_rle_and_bare_box_together():
    bitmap = np.zeros((120, 160), np.uint8)
    bitmap[60:100, 20:60] = 1
    record = {
        "height": 120,
        "width": 160,
        "annotations": [
            _annotation([80, 60, 40, 40], segmentation=[[80, 60, 120, 60, 120, 100, 80, 100]]),
            _annotation([20, 60, 40, 40], segmentation=mask_util.encode(np.asfortranarray(bitmap)), iscrowd=1),
            _annotation([130, 60, 20, 40], keypoints=[1, 1, 2]),
        ],
    }
    image = np.full((120, 160, 3), 100, np.uint8)
    drawn = draw_annotations(image, record, ["nut"], alpha=1.0)
    assert tuple(drawn[80, 100]) == instance_color(0)
    assert tuple(drawn[80, 40]) == instance_color(1)
    assert tuple(drawn[80, 130]) == instance_color(2)  # the box
    assert tuple(drawn[80, 140]) == (100, 100, 100)  # no mask inside it
    assert (drawn[:40] == 100).all()


def test_no_annotations_and_another_size():
    image = np.full((12, 16, 3), 100, np.uint8)
    assert (draw_annotations(image, {}) == image).all()
    with pytest.raises(ValueError, match=r"a\.jpg has 16 x 12 pixels, but its record says 20 x 10"):
        draw_annotations(image, {"file_name": "a.jpg", "height": 10, "width": 20, "annotations": []})


@pytest.mark.skipif("INSTSEG_DATASETS" not in os.environ, reason="INSTSEG_DATASETS names no data sets")
@pytest.mark.parametrize("name", ["coco_open", "nuclei_dsb2018"])
def test_real_annotations(name):
    from detectron2.data.datasets import load_coco_json
    from detectron2.data.detection_utils import annotations_to_instances, read_image

    root = os.path.join(os.environ["INSTSEG_DATASETS"], name)
    if not os.path.isdir(root):
        pytest.skip(f"no {name} there")
    for record in load_coco_json(f"{root}/val.json", f"{root}/images")[:3]:
        image = read_image(record["file_name"], "RGB")
        drawn = draw_annotations(image, record)
        masks = annotations_to_instances(record["annotations"], image.shape[:2], "bitmask").gt_masks.tensor.numpy()
        changed = (drawn != image).any(axis=2)
        assert changed[masks.any(axis=0)].mean() > 0.99
