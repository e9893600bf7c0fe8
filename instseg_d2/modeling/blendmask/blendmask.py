"""
The BlendMask meta-architecture.

N images, M objects, P locations, D detections, K bases (the paper's letter), A attention size, R mask resolution,
h x w cells of the bases, H x W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator
from detectron2.structures import ImageList
from torch import nn

from ...layers import init_normal, join_boxes
from ..backbone import freeze_unused_levels
from ..ground_truth import box_masks
from ..meta_arch import InstanceSegmenter
from ..postprocessing import Combination, filter_detections
from .basis_module import build_basis_module
from .blender import Blender
from .explain import explain_image
from .panoptic import build_semantic_head, panoptic_output, semantic_losses
from .targets import semantic_target


@META_ARCH_REGISTRY.register()
class BlendMask(InstanceSegmenter):
    """
    FCOS that also predicts an attention per detection, which blends the image's bases into a mask (BlendMask, figure
    1). With a semantic head (MODEL.PANOPTIC_FPN.COMBINE.ENABLED) it is a panoptic segmentation model.
    """

    @configurable
    def __init__(
        self,
        *,
        proposal_generator,
        basis_module,
        blender,
        top_layer,
        mask_loss_weight=1.0,
        sem_seg_head=None,
        combination=None,
        **kwargs,
    ):
        """
        Args:
            proposal_generator: an `FCOS`.
            basis_module: features -> bases (N, K, h, w).
            blender: a `Blender`.
            top_layer: 3x3 convolution from the box tower to the attention, or None (fcis).
            sem_seg_head: a semantic head of Detectron2's registry, or None.
            combination: a `Combination`, needed with ``sem_seg_head``.
            kwargs: see `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator
        self.basis_module = basis_module
        self.blender = blender
        self.top_layer = top_layer
        self.mask_loss_weight = mask_loss_weight
        self.sem_seg_head = sem_seg_head
        self.combination = combination

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        blender = Blender(cfg)
        top_layer = None
        if blender.num_attention_channels:
            channels = shapes[cfg.MODEL.FCOS.IN_FEATURES[0]].channels
            top_layer = nn.Conv2d(channels, blender.num_attention_channels, 3, padding=1)
            init_normal(top_layer)
        proposal_generator = build_proposal_generator(cfg, shapes)
        basis_module, sem_seg_head = build_basis_module(cfg, shapes), build_semantic_head(cfg, shapes)
        semantic = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if sem_seg_head is not None else []
        freeze_unused_levels(backbone, [*proposal_generator.in_features, *basis_module.in_features, *semantic])
        return {
            "backbone": backbone,
            "proposal_generator": proposal_generator,
            "basis_module": basis_module,
            "blender": blender,
            "top_layer": top_layer,
            "mask_loss_weight": cfg.MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT,
            "sem_seg_head": sem_seg_head,
            "combination": Combination.from_config(cfg),
            **cls.shared_arguments(cfg),
        }

    def attention(self, outputs, rows: torch.Tensor):
        """The attention at selected locations (P,): (P, K * A * A), or None (fcis)."""
        if self.top_layer is None:
            return None
        return self.proposal_generator.top_features(outputs, rows, self.top_layer)

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """The losses of FCOS, loss_mask (BlendMask, section 3.4) and, if enabled, loss_basis_sem and loss_sem_seg."""
        gt_instances = self.gt_instances(batched_inputs)
        features = self.backbone(images.tensor)
        fcos = self.proposal_generator
        outputs = fcos.outputs(features)
        positives = fcos.match(outputs, gt_instances)
        losses, weights, normalizer = fcos.losses(outputs, positives, gt_instances)

        bases = self.basis_module(features)
        if self.basis_module.semantic_head is not None:
            size, stride = images.tensor.shape[-2:], self.basis_module.common_stride
            target = semantic_target(batched_inputs, gt_instances, size, stride)
            losses["loss_basis_sem"] = self.basis_module.semantic_loss(features, target)

        boxes, box_images = join_boxes([x.gt_boxes for x in gt_instances])
        attention = self.attention(outputs, positives.rows)
        logits = self.blender(bases, boxes, box_images, attention, positives.objects).float()
        targets = box_masks(gt_instances, self.blender.resolution, "gt_boxes")[positives.objects].to(logits.dtype)
        per_location = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
        losses["loss_mask"] = self.mask_loss_weight * (per_location * weights).sum() / normalizer
        if self.sem_seg_head is not None:
            losses.update(semantic_losses(self.sem_seg_head, features, batched_inputs, images.tensor.shape[-2:]))
        return losses

    def _detect(self, images: ImageList, features: dict):
        fcos = self.proposal_generator
        outputs = fcos.outputs(features)
        found = fcos.detect(outputs, images.image_sizes)
        boxes, box_images = join_boxes([x.pred_boxes for x in found])
        bases = self.basis_module(features)
        attention = self.attention(outputs, torch.cat([x.rows for x in found]))
        masks_of_batch = self.blender(bases, boxes, box_images, attention).float().sigmoid()[:, None]
        for result, masks in zip(found, masks_of_batch.split([len(x) for x in found])):
            result.pred_masks = masks
            result.remove("rows")
        return found, bases, attention

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[dict]:
        """
        Detections with pred_masks (D, 1, R, R), probabilities inside the unclipped boxes. A panoptic model also gives
        "sem_seg", the logits (classes, H, W) of the image.
        """
        features = self.backbone(images.tensor)
        results = [{"instances": x} for x in self._detect(images, features)[0]]
        if self.sem_seg_head is not None:
            logits = self.sem_seg_head(features)[0]
            for result, x, (height, width) in zip(results, logits, images.image_sizes):
                result["sem_seg"] = x[:, :height, :width]
        return results

    def output(self, found: dict, size: tuple, masks: str) -> dict:
        """
        See `InstanceSegmenter`. Like Detectron2's ``PanopticFPN``, a panoptic model adds "sem_seg", the logits
        (classes, H, W), and, unless ``masks`` is "none", "panoptic_seg".
        """
        output = super().output(found, size, masks)
        if self.sem_seg_head is not None:
            output.update(panoptic_output(output["instances"], found["sem_seg"], self.combination))
        return output

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """For each image, (title, RGB picture) pairs: the bases, then attention and mask of the best detections."""
        images = self.preprocess(batched_inputs)
        found, bases, attention = self._detect(images, self.backbone(images.tensor))
        if attention is not None:
            size = self.blender.attention_size
            attention = attention.view(-1, self.blender.num_bases, size, size)
            attention = attention.softmax(1) if self.blender.merging == "blender" else attention
            for detections, weights in zip(found, attention.split([len(x) for x in found])):
                detections.attention = weights
        panels = []
        for sample, detections, base in zip(batched_inputs, found, bases):
            height, width = (round(side * self.blender.spatial_scale) for side in detections.image_size)
            image = self.rgb_image(sample)
            panels.append(explain_image(image, filter_detections(detections), base[:, :height, :width], max_instances))
        return panels
