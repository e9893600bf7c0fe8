"""The predictor: a trained model with its config and class names."""

import logging
import os
from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import ImageList

from ..checkpoint import InstSegCheckpointer, read_extra
from ..config import (
    get_cfg,
    get_value,
    home_expanded,
    load_config,
    merge_overrides,
    set_num_classes,
    tested_in_tiles,
)
from ..config.detectron2_files import add_project_config
from ..data.value_range import trained_range
from ..errors import ConfigError
from ..methods import method_of
from ..modeling.build import build
from ..modeling.meta_arch import detect
from .image_predictor import ImageLike, ImagePredictor
from .optimize import optimize_for_inference

__all__ = ["ModelPredictor", "Predictor", "checkpoint_config"]

logger = logging.getLogger(__name__)


class ModelPredictor(ImagePredictor):
    """
    The predictor of a model in memory, without names of classes.

    Args:
        cfg: the model's config.
        model: a model for inference, on the device of ``cfg``.

    Attributes:
        model, cfg, and those of :class:`ImagePredictor`.
    """

    def __init__(self, cfg: CfgNode, model: torch.nn.Module):
        self.cfg, self.model, self.category_ids = cfg, model, {}
        self.input_format = cfg.INPUT.FORMAT
        self.value_range = tuple(cfg.INPUT.get("VALUE_RANGE", ()))
        self.tile = tested_in_tiles(cfg)
        if method_of(cfg).panoptic(cfg):
            self.further_output = "a panoptic map"
        elif cfg.MODEL.KEYPOINT_ON:
            self.further_output = "keypoints"
        side = cfg.INPUT.MIN_SIZE_TEST
        self.resize = T.ResizeShortestEdge([side, side], cfg.INPUT.MAX_SIZE_TEST)

    @property
    def on_cpu(self) -> bool:
        return self.cfg.MODEL.DEVICE == "cpu"

    @property
    def batches(self) -> bool:
        return not self.on_cpu

    def canvas(self, image: torch.Tensor) -> tuple[int, int]:
        backbone, shape_only = self.model.backbone, torch.empty(image.shape, device="meta")
        padded = ImageList.from_tensors(
            [shape_only], backbone.size_divisibility, padding_constraints=backbone.padding_constraints
        )
        return tuple(padded.tensor.shape[-2:])

    def batch_key(self, record: dict) -> tuple:
        return self.canvas(record["image"])

    def outputs(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        results = []
        for found in detect(self.model, inputs, score_threshold, masks):
            result = {"instances": found["instances"].to("cpu")}
            if "panoptic_seg" in found:
                ids, segments = found["panoptic_seg"]
                result["panoptic_seg"] = ids.cpu(), segments
            results.append(result)
        return results

    def explain(self, image: ImageLike, max_instances: int = 4, channel_order: str = "BGR") -> list:
        if not hasattr(self.model, "explain"):
            return []
        with torch.no_grad():
            return self.model.explain([self.preprocess(image, channel_order)], max_instances)[0]


class Predictor(ModelPredictor):
    """
    A trained model that predicts the instances of images.

    Args:
        cfg: Detectron2 config; its device becomes the CPU if there is no GPU.
        weights: checkpoint; None: ``cfg.MODEL.WEIGHTS``; "": random weights (to measure speed).
        class_names: name of every contiguous class; None: the checkpoint's, else those of the config's data sets, if
            known without loading them.
        optimize: use the optimised form of the model (same detections).

    Attributes:
        model, cfg, and those of :class:`ImagePredictor`.

    Raises:
        ConfigError, CheckpointError: the model cannot be built or loaded.
    """

    def __init__(
        self,
        cfg: CfgNode,
        weights: Optional[str] = None,
        *,
        class_names: Optional[Sequence[str]] = None,
        optimize: bool = True,
    ):
        cfg = home_expanded(cfg).clone()
        cfg.defrost()
        if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            logger.info("No GPU found: running on the CPU.")
            cfg.MODEL.DEVICE = "cpu"
        weights = cfg.MODEL.WEIGHTS if weights is None else os.path.expanduser(weights)
        if weights and "TIMM" in cfg.MODEL:
            cfg.MODEL.TIMM.PRETRAINED = False  # the checkpoint has the backbone
        super().__init__(cfg, build(cfg).eval())
        category_ids = None
        if weights:
            InstSegCheckpointer(self.model, for_test=True).load(weights)
            if class_names is None:
                information = _checkpoint_info(weights)
                class_names, category_ids = information.get("class_names"), information.get("category_ids")
                self.stuff_names = information.get("stuff_names")
        else:
            logger.warning("No weights given: the model has random weights.")
        if method_of(self.cfg).class_agnostic(self.cfg):
            self.class_names, self.category_ids = ["object"], {}
        else:
            self.class_names, self.category_ids = _known_classes(self.cfg, class_names)
            if category_ids is not None:
                self.category_ids = dict(enumerate(category_ids))
        if self.stuff_names is None:
            self.stuff_names = _known_stuff(self.cfg)
        if optimize:
            self.model = optimize_for_inference(self.model)

    @classmethod
    def from_checkpoint(cls, path: str, config_file: str = "", opts: Sequence = (), *, optimize: bool = True):
        """
        The predictor of a checkpoint.

        Args:
            path: checkpoint file, or a URL if a config file is given.
            config_file: YAML file; empty: the config in the checkpoint.
            opts: alternating config keys and values that override either.

        Raises:
            ConfigError: there is no config, or it does not fit this version.
        """
        path = os.path.expanduser(path)
        return cls(checkpoint_config(path, config_file, opts), path, optimize=optimize)


def checkpoint_config(path: str, config_file: str = "", opts: Sequence = ()) -> CfgNode:
    """The config to run a checkpoint with; see :meth:`Predictor.from_checkpoint`."""
    path = os.path.expanduser(path)
    information = _checkpoint_info(path)
    text = information.get("cfg")
    if not config_file and text is None:
        raise ConfigError(f"{path} contains no config: give the YAML file it was trained with (--config-file).")
    if config_file:
        cfg = load_config(config_file, opts)
        cfg.INPUT.VALUE_RANGE = cfg.INPUT.VALUE_RANGE or trained_range(text)
        if information.get("class_names"):
            set_num_classes(cfg, len(information["class_names"]))
        if information.get("stuff_names"):
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(information["stuff_names"])
    else:
        cfg = get_cfg()
        try:
            values = CfgNode.load_cfg(text)
            add_project_config(cfg, values)
            cfg.merge_from_other_cfg(values)
        except Exception as error:
            raise ConfigError(f"{path}: its config does not fit this version ({error}).") from error
        merge_overrides(cfg, opts)
    return cfg


def _checkpoint_info(path: str) -> dict:
    """The content of a checkpoint without weights (cfg, class_names, category_ids); {} if it must be downloaded."""
    return {} if "://" in path else read_extra(path)


def _known_classes(cfg: CfgNode, class_names: Optional[Sequence[str]]):
    """Class names and {contiguous index: data set id}, from the config's first known data set that fits."""
    if class_names:
        counts = [len(class_names)]
    else:
        counts = [get_value(cfg, key) - extra for key, extra in method_of(cfg).class_count_keys.items()]
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog else None
        known = list(metadata.get("thing_classes", [])) if metadata else []
        if len(known) in counts and (not class_names or known == list(class_names)):
            ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
            return known, {index: dataset_id for dataset_id, index in ids.items()}
    return (list(class_names) if class_names else None), {}


def _known_stuff(cfg: CfgNode) -> Optional[list]:
    """The names of the semantic classes, from the config's first known data set that fits."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(name).get("stuff_classes", []) if name in MetadataCatalog else []
        if len(names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            return list(names)
    return None
