"""Data sets, the dataset mapper and the data loaders."""

from .augmentations import build_augmentations
from .coco import check_same_classes, class_names, register_coco, register_from_environment
from .images import read_image
from .loader import build_test_loader, build_train_loader
from .mapper import InstanceDatasetMapper
from .presence import check_images
from .shapes import make_shapes, make_shapes_panoptic, register_shapes, register_shapes_panoptic
from .value_range import common_range

__all__ = [
    "InstanceDatasetMapper",
    "build_augmentations",
    "build_test_loader",
    "build_train_loader",
    "check_images",
    "check_same_classes",
    "class_names",
    "common_range",
    "make_shapes",
    "make_shapes_panoptic",
    "read_image",
    "register_coco",
    "register_from_environment",
    "register_shapes",
    "register_shapes_panoptic",
]

register_shapes()
register_shapes_panoptic()
register_from_environment()
