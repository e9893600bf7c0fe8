"""A tiny meta-architecture for tests of predictor and demo: every bright connected spot is an object."""

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances
from torch import nn

from instseg_d2.apps.video import write_video
from instseg_d2.config import get_cfg

CLASS_NAMES = ["red spot", "blue spot"]


@META_ARCH_REGISTRY.register()
class BrightSpots(nn.Module):
    """
    Class 0: spots whose red exceeds 60, class 1: blue. Score: the brightest value / 255 times a trained weight.
    Swapping red and blue anywhere swaps the classes.
    """

    @configurable
    def __init__(self, *, input_format, explains):
        super().__init__()
        self.channels = (input_format.index("R"), input_format.index("B"))
        self.weight = nn.Parameter(torch.zeros(()))
        self.explains = explains

    @classmethod
    def from_config(cls, cfg):
        return {"input_format": cfg.INPUT.FORMAT, "explains": cfg.MODEL.MASK_ON}

    def forward(self, batched_inputs):
        return [{"instances": self._detect(record)} for record in batched_inputs]

    def _detect(self, record):
        image, size = record["image"].numpy(), (record["height"], record["width"])
        assert image.dtype == np.uint8
        masks, scores, classes = [], [], []
        for index, channel in enumerate(self.channels):
            count, labels = cv2.connectedComponents((image[channel] > 60).astype(np.uint8))
            for label in range(1, count):
                small = (labels == label).astype(np.uint8)
                masks.append(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool))
                scores.append(float(image[channel][labels == label].max()) / 255)
                classes.append(index)
        order = np.argsort(scores)[::-1].tolist()
        instances = Instances(size)
        instances.pred_masks = torch.from_numpy(np.array([masks[i] for i in order], bool).reshape(-1, *size))
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.scores = torch.tensor([scores[i] for i in order]) * self.weight
        instances.pred_classes = torch.tensor([classes[i] for i in order], dtype=torch.int64)
        return instances

    def explain(self, batched_inputs, max_instances):
        if not self.explains:
            return [[] for _ in batched_inputs]
        picture = batched_inputs[0]["image"].numpy().transpose(1, 2, 0)[..., list(self.channels[:1]) * 3]
        return [[(f"red {i}", np.ascontiguousarray(picture)) for i in range(max_instances)] for _ in batched_inputs]


def spots_config(input_format="BGR", explains=True):
    """Config of :class:`BrightSpots`, without resizing."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "BrightSpots"
    cfg.MODEL.MASK_ON = explains
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FORMAT = input_format
    cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def save_checkpoint(path, cfg=None, class_names=None):
    """A checkpoint of a trained :class:`BrightSpots`, as the trainer writes them."""
    data = {"model": {"weight": torch.ones(())}}
    if cfg is not None:
        data["cfg"] = cfg.dump()
    if class_names is not None:
        data["class_names"] = class_names
    torch.save(data, path)
    return str(path)


def spots_image():
    """(60, 80, 3) uint8 RGB: a red rectangle of 200 (rows 10-29, columns 10-39), a blue one of 100 (40-54, 50-69)."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 10:40] = (200, 0, 0)
    image[40:55, 50:70] = (0, 0, 100)
    return image


def spots_clip(path, frames=6, size=(80, 60)):
    """A video (path without suffix) of 12 frames a second in which the spots move; returns its path."""
    image = cv2.resize(spots_image(), size)
    return write_video(str(path), [np.roll(image, 2 * i, axis=1) for i in range(frames)], 12.0)
