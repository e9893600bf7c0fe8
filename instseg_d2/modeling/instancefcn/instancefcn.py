"""
The InstanceFCN meta-architecture: segment proposals at several scales, optionally classified.

N images, D segments, m mask size, H x W pixels.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY, build_proposal_generator, build_roi_heads
from detectron2.structures import ImageList, Instances
from torch import nn

from ..backbone import build_backbone, freeze_unused_levels
from ..meta_arch import InstanceSegmenter
from ..postprocessing import filter_detections
from .explain import explain_image
from .inference import as_proposals, best_segments, paste, rescale_segments


@META_ARCH_REGISTRY.register()
class InstanceFCN(InstanceSegmenter):
    """
    Class-agnostic segment proposals (InstanceFCN, arXiv 1603.08678), optionally classified by ROI heads.

    Training uses one scale per image. Inference runs at every test scale and keeps the best segments of all scales.
    Without ROI heads their class is 0, "object".
    """

    @configurable
    def __init__(
        self,
        *,
        proposal_generator: nn.Module,
        scales: Sequence[int],
        max_size: int,
        roi_heads: Optional[nn.Module] = None,
        classifier_scale: int = 600,
        **kwargs,
    ):
        """
        Args:
            proposal_generator: the `InstanceFCN` of proposal_generator.py.
            scales: shorter sides of the image in inference, pixels.
            max_size: maximum of the longer side, pixels.
            roi_heads: a `SegmentROIHeads`, or None.
            classifier_scale: the scale whose features the ROI heads read.
            kwargs: see `InstanceSegmenter`.

        Raises:
            ValueError: invalid scales.
        """
        super().__init__(**kwargs)
        if not scales or min(scales) < 1:
            raise ValueError(f"scales is {tuple(scales)}; it must list positive sizes")
        if roi_heads is not None and classifier_scale not in scales:
            raise ValueError(f"classifier_scale is {classifier_scale}; it must be one of the scales {tuple(scales)}")
        self.proposal_generator = proposal_generator
        self.scales = list(scales)
        self.max_size = max_size
        self.roi_heads = roi_heads
        self.classifier_scale = classifier_scale

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.INSTANCE_FCN
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        freeze_unused_levels(backbone, {node.IN_FEATURE, *(cfg.MODEL.ROI_HEADS.IN_FEATURES * node.CLASSIFY)})
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "scales": node.SCALES_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "roi_heads": build_roi_heads(cfg, shapes) if node.CLASSIFY else None,
            "classifier_scale": node.CLASSIFIER_SCALE,
            **cls.shared_arguments(cfg),
        }

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """loss_window_objectness, loss_window_mask and the losses of the ROI heads, if there are any."""
        gt_instances = self.gt_instances(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = self.proposal_generator.outputs(features)
        losses = self.proposal_generator.losses(outputs, gt_instances)
        if self.roi_heads is not None:
            proposals = self.proposal_generator.proposals(outputs, images.image_sizes)
            losses.update(self.roi_heads(images, features, proposals, gt_instances)[1])
        return losses

    def at_scale(self, images: ImageList, scale: int) -> ImageList:
        """Resize images with antialiasing to a shorter side of ``scale`` pixels, and pad them for the backbone."""
        resized = []
        for image, (height, width) in zip(images.tensor, images.image_sizes):
            size = ResizeShortestEdge.get_output_shape(height, width, scale, self.max_size)
            image = image[None, :, :height, :width]
            resized.append(F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)[0])
        return ImageList.from_tensors(
            resized, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def forward_scales(self, images: ImageList):
        """Yield the scale, resized images, features, and (score maps, objectness) of every scale."""
        for scale in self.scales:
            resized = self.at_scale(images, scale)
            features = self.backbone(resized.tensor)
            yield scale, resized, features, self.proposal_generator.outputs(features)

    def _detect(self, images: ImageList):
        """The detections of each image, and (image sizes, score maps) of each scale."""
        found, maps = [[] for _ in images.image_sizes], []
        for index, (scale, resized, features, outputs) in enumerate(self.forward_scales(images)):
            maps.append((resized.image_sizes, outputs[0]))
            if scale == self.classifier_scale:
                classifier_input = resized, features
            segments = self.proposal_generator.segments(outputs, resized.image_sizes)
            for parts, part, size in zip(found, segments, images.image_sizes):
                part.scale_index = torch.full_like(part.scores, index, dtype=torch.int64)
                parts.append(rescale_segments(part, size))
        results = [best_segments(Instances.cat(parts), self.proposal_generator.limits) for parts in found]
        if self.roi_heads is not None:
            return self._classify(results, *classifier_input), maps
        for result in results:
            result.pred_classes = torch.zeros_like(result.scale_index)
        return results, maps

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[dict]:
        """
        The best segments of all scales, best first, in input pixels: scores, pred_classes, tight pred_boxes, pred_masks
        (D, m, m), probabilities inside windows (unclipped Boxes), objectness_logits and scale_index.
        """
        return [{"instances": x} for x in self._detect(images)[0]]

    def _classify(self, segments: Sequence[Instances], images: ImageList, features) -> list[Instances]:
        """Classify segments with the features of images at one scale."""
        proposals = []
        for x, size in zip(segments, images.image_sizes):
            x = rescale_segments(x, size)
            x.proposal_boxes = x.pred_boxes
            proposals.append(x)
        results = self.roi_heads(images, features, proposals)[0]
        return [rescale_segments(x, segment.image_size) for x, segment in zip(results, segments)]

    def postprocess(self, result: Instances, size: tuple, masks: bool = True) -> Instances:
        """Paste the masks at output size and take their tight boxes."""
        return paste(result, size)

    def output(self, found: dict, size: tuple, masks: str) -> dict:
        """
        See `InstanceSegmenter`. Without ROI heads it adds "proposals", the segments' proposal_boxes and
        objectness_logits, for Detectron2's ROI heads and proposal evaluation.
        """
        output = super().output(found, size, masks)
        if self.roi_heads is None:
            output["proposals"] = as_proposals(rescale_segments(found["instances"], size))
        return output

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """
        For each image, (title, RGB picture) pairs: objectness x mask probability, then for the best segments the score
        maps of their scale and how their masks are assembled.
        """
        images = self.preprocess(batched_inputs)
        found, maps = self._detect(images)
        return [
            explain_image(
                self.rgb_image(sample),
                filter_detections(segments),
                [(sizes[i], score_maps[i]) for sizes, score_maps in maps],
                self.proposal_generator.grid,
                max_instances,
            )
            for i, (sample, segments) in enumerate(zip(batched_inputs, found))
        ]
