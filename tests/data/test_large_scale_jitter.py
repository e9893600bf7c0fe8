"""Large-scale jitter: sizes, scales, and masks that follow the image."""

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from instseg_d2.config import get_cfg
from instseg_d2.data import InstanceDatasetMapper


@pytest.mark.parametrize("rle", [False, True])
def test_masks_follow_the_image(tmp_path, rle):
    """The only object is the white rectangle; the padding is grey and belongs to no object."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[10:40, 20:80] = 255
    cv2.imwrite(str(tmp_path / "image.png"), image)
    segmentation = [[20.0, 10, 80, 10, 80, 40, 20, 40]]
    if rle:
        segmentation = mask_util.encode(np.asfortranarray(image[..., 0] > 0))
    annotation = {"bbox": [20, 10, 60, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    sample = {"file_name": str(tmp_path / "image.png"), "height": 60, "width": 100, "image_id": 1}
    sample["annotations"] = [{**annotation, "segmentation": segmentation}]
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ISTR"  # which learns from masks without MODEL.MASK_ON
    cfg.LSJ_AUG = True
    mapper = InstanceDatasetMapper(cfg, True)
    np.random.seed(0)
    widths = []
    for _ in range(8):
        mapped = mapper(sample)
        assert mapped["image"].shape == (3, 1024, 1024)
        white = mapped["image"][0] > 128
        masks = mapped["instances"].gt_masks.tensor
        if len(masks):
            assert (masks[0] != white).float().mean() < 0.005
            assert mapped["instances"].gt_boxes.tensor[0].tolist() == masks_box(masks[0])
        inside = (mapped["image"][0] != 128).any(0)
        widths.append(int(inside.sum()))
    assert min(widths) < 600
    assert max(widths) == 1024


def masks_box(mask):
    ys, xs = mask.nonzero(as_tuple=True)
    return [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
