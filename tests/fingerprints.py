"""Records of imagined images, for the fingerprint of a data set."""

from detectron2.structures import BoxMode


def record(width, height, objects, file_name="absent.png"):
    """An image with objects (x, y, width, height, class)."""
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0}
        for *box, index in objects
    ]
    return {"file_name": str(file_name), "width": width, "height": height, "annotations": annotations}
