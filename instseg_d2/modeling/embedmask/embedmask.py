"""
The EmbedMask meta-architecture.

N images, M objects, D detections, P locations, E embedding dimensions, h x w cells of the pixel embedding, H x W
pixels.
"""

import math
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ... import ops
from ...config.embedmask import embedmask_value, mask_stride
from ...layers import join_boxes
from ..backbone import freeze_unused_levels
from ..meta_arch import InstanceSegmenter
from ..postprocessing import filter_detections, place_boxes
from ..proposal_generator import FCOS
from .criterion import MaskCriterion
from .explain import explain_image
from .head import PixelHead, ProposalHead
from .targets import GroundTruth
from .versions import Version, fcos_arguments, version_of
from .window_masks import WindowMasks, detection_windows

LOSS_NAMES = {"loss_fcos_cls": "loss_cls", "loss_fcos_loc": "loss_reg", "loss_fcos_ctr": "loss_centerness"}


def _last_pixel(boxes: torch.Tensor, size: tuple, of: tuple) -> torch.Tensor:
    """Offset (4,) from inclusive to exclusive boxes: one pixel of an image of size ``of``, resized to ``size``."""
    return torch.tensor([0.0, 0.0, size[1] / of[1], size[0] / of[0]]).to(boxes, non_blocking=True)


@META_ARCH_REGISTRY.register()
class EmbedMask(InstanceSegmenter):
    """FCOS whose masks are the pixels near a detection in an embedding space (EmbedMask, figure 2)."""

    @configurable
    def __init__(
        self,
        *,
        proposal_generator: FCOS,
        pixel_head: PixelHead,
        proposal_head: ProposalHead,
        criterion: MaskCriterion,
        version: Version,
        stride: int,
        sample_in_mask: bool = True,
        **kwargs,
    ):
        """
        Args:
            stride: stride of the pixel embeddings, pixels.
            sample_in_mask: only locations inside the object's mask are positive.
            kwargs: see `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator
        self.pixel_head = pixel_head
        self.proposal_head = proposal_head
        self.criterion = criterion
        self.log_masks = version.log_masks
        self.stride = stride
        self.sample_in_mask = sample_in_mask
        self.position_scale = nn.Parameter(torch.ones(1)) if version.spatial else None

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.EMBED_MASK
        version, stride = version_of(cfg), mask_stride(cfg)
        backbone = build_backbone(cfg)
        detector = fcos_arguments(cfg, backbone.output_shape())
        freeze_unused_levels(backbone, detector["in_features"])
        channels = backbone.output_shape()[detector["in_features"][0]].channels
        criterion = MaskCriterion(
            averaged=version.averaged,
            min_probability=version.min_probability,
            stride=stride,
            iou_threshold=embedmask_value(cfg, "SAMPLE_POS_IOU_TH"),
            box_padding=embedmask_value(cfg, "BOX_PADDING"),
            mask_weight=node.LOSS_MASK_ALPHA,
            smooth_weight=embedmask_value(cfg, "LOSS_SMOOTH_ALPHA"),
        )
        return {
            "backbone": backbone,
            "proposal_generator": FCOS(**detector),
            "pixel_head": PixelHead(cfg, channels),
            "proposal_head": ProposalHead(cfg, channels, version.margin),
            "criterion": criterion,
            "version": version,
            "stride": stride,
            "sample_in_mask": node.SAMPLE_IN_MASK,
            "mask_threshold": embedmask_value(cfg, "MASK_TH"),
            **cls.shared_arguments(cfg),
        }

    @property
    def inclusive(self) -> bool:
        """Whether boxes inside the model end at their last pixel, one before Detectron2's."""
        return self.proposal_generator.inclusive

    def gt_instances(self, batched_inputs: Sequence[dict]) -> list[Instances]:
        instances = super().gt_instances(batched_inputs)
        for x, sample in zip(instances, batched_inputs if self.inclusive else ()):
            size = tuple(sample.get(key, side) for key, side in zip(("height", "width"), x.image_size))
            x.gt_boxes = Boxes(x.gt_boxes.tensor - _last_pixel(x.gt_boxes.tensor, x.image_size, size))
        return instances

    def _outputs(self, images: ImageList):
        """The outputs of FCOS, and the pixel embedding (N, E, h, w)."""
        features = self.backbone(images.tensor)
        fcos = self.proposal_generator
        return fcos.outputs(features), self.pixel_head(features[fcos.in_features[0]], self.position_scale)

    def _proposals(self, outputs, rows: torch.Tensor, images: ImageList):
        """Embeddings and margins at locations (P,)."""
        return self.proposal_head(outputs, rows, self.position_scale, tuple(images.tensor.shape[-2:]))

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """loss_cls, loss_reg, loss_centerness, mask_loss and, in v1, smooth_loss."""
        gt_instances = self.gt_instances(batched_inputs)
        outputs, pixels = self._outputs(images)
        truth = GroundTruth(gt_instances, tuple(images.tensor.shape[-2:]), self.inclusive)
        fcos = self.proposal_generator
        positives = fcos.match(outputs, gt_instances, truth.contains if self.sample_in_mask else None)
        losses, _, _ = fcos.losses(outputs, positives, gt_instances)
        losses = {LOSS_NAMES[name]: loss for name, loss in losses.items()}

        chosen = self.criterion.choose(outputs, positives, truth)
        embeddings, margins = self._proposals(outputs, positives.rows[chosen], images)
        objects, fixed = positives.objects[chosen], self.proposal_head.fixed_margin
        losses.update(self.criterion(pixels, embeddings, margins, objects, truth, fixed))
        return losses

    def _detect(self, images: ImageList):
        """Detections, pixel embeddings, and the detections' embeddings and margins."""
        outputs, pixels = self._outputs(images)
        found = self.proposal_generator.detect(outputs, images.image_sizes)
        counts = [len(x) for x in found]
        boxes, box_images = join_boxes([x.pred_boxes for x in found])
        embeddings, margins = self._proposals(outputs, torch.cat([x.rows for x in found]), images)
        if self.proposal_head.fixed_margin is not None:
            margins = torch.full_like(margins, self.proposal_head.fixed_margin)
        size = tuple(pixels.shape[-2:])
        windows = detection_windows(boxes, self.stride, self.log_masks, size)
        values = ops.mask_prob(pixels, embeddings, margins, windows, box_images)
        values, fill = (values, -10.0) if self.log_masks else (values.exp(), 0.0)
        starts = ops.window_offsets(windows)[:-1]
        for result, *parts in zip(found, starts.split(counts), windows.split(counts)):
            result.masks = WindowMasks(values, *parts, size, fill)
            result.remove("rows")
        return found, pixels, embeddings.split(counts), margins.split(counts)

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[dict]:
        """Detections with clipped boxes and ``masks``, a `WindowMasks` over the padded batch."""
        return [{"instances": x} for x in self._detect(images)[0]]

    def postprocess(self, result: Instances, size: tuple, masks: bool = True) -> Instances:
        """Scale the boxes; resize the maps of the padded batch to the output scale, threshold and crop them."""
        scaled = place_boxes(self._exclusive(result, size), size)
        maps = scaled.masks
        scaled.remove("masks")
        if masks:
            sides = zip(maps.size, size, result.image_size)
            canvas = tuple(-(-cells * self.stride * to // of) for cells, to, of in sides)
            threshold = math.log(self.mask_threshold) if self.log_masks else self.mask_threshold
            scaled.pred_masks = maps.resize(canvas, size, threshold)
        return scaled

    def _exclusive(self, result: Instances, size: tuple) -> Instances:
        """Make inclusive boxes exclusive: add one pixel of the output (H, W) to x2 and y2."""
        if not self.inclusive:
            return result
        result = Instances(result.image_size, **result.get_fields())
        boxes = result.pred_boxes.tensor
        result.pred_boxes = Boxes(boxes + _last_pixel(boxes, result.image_size, size))
        return result

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """For each image, (title, RGB picture) pairs: the pixel embedding, then pictures of the best detections."""
        found, pixels, embeddings, margins = self._detect(self.preprocess(batched_inputs))
        panels = []
        for sample, detections, image_pixels, *proposals in zip(batched_inputs, found, pixels, embeddings, margins):
            detections.embeddings, detections.margins = proposals
            image = self.rgb_image(sample)
            panels.append(explain_image(image, self.stride, filter_detections(detections), image_pixels, max_instances))
        return panels
