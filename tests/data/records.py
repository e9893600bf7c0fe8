"""Data set records with annotations, as made by the loaders of files."""

from detectron2.structures import BoxMode


def record(*annotations, height=60, width=80):
    return {"file_name": "a.png", "height": height, "width": width, "annotations": list(annotations)}


def annotation(segmentation, box, **more):
    return {"segmentation": segmentation, "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **more}


def square(left, top, side, **more):
    right, bottom = left + side, top + side
    return annotation([[left, top, right, top, right, bottom, left, bottom]], [left, top, right, bottom], **more)
