"""
The SparseInst meta-architecture.

N images, Q slots per image, D detections, C channels, h x w cells of the predicted masks, H x W pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances

from ..auxiliary import auxiliary_parts
from ..backbone import build_backbone
from ..meta_arch import InstanceSegmenter
from ..postprocessing import filter_detections, masks_to_boxes, resize_in_chunks
from .criterion import SparseInstCriterion
from .decoder import build_sparse_inst_decoder
from .encoder import build_sparse_inst_encoder
from .explain import explain_image
from .inference import detections


@META_ARCH_REGISTRY.register()
class SparseInst(InstanceSegmenter):
    """Predicts masks from instance activation maps, without boxes and NMS (SparseInst, figure 2; arXiv 2203.12827)."""

    @configurable
    def __init__(
        self,
        *,
        encoder,
        decoder,
        criterion: SparseInstCriterion,
        mask_stride: float,
        score_threshold: float = 0.005,
        max_detections: int = 100,
        **kwargs,
    ):
        """
        Args:
            encoder: the backbone's feature maps -> one map (N, C, H / 8, W / 8).
            decoder: this map -> class_logits, objectness_logits, mask_logits, activation_maps.
            mask_stride: stride of the mask logits, pixels.
            score_threshold: minimum of sqrt(class * objectness) before rescoring, exclusive.
            max_detections: number of detections kept per image.
            kwargs: see `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.criterion = criterion
        self.mask_stride = mask_stride
        self.score_threshold = score_threshold
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.SPARSE_INST
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "encoder": build_sparse_inst_encoder(cfg, shapes),
            "decoder": build_sparse_inst_decoder(cfg),
            "criterion": SparseInstCriterion.from_config(cfg),
            "mask_stride": shapes[node.ENCODER.IN_FEATURES[0]].stride / node.DECODER.SCALE_FACTOR,
            "score_threshold": node.CLS_THRESHOLD,
            "max_detections": node.MAX_DETECTIONS,
            "mask_threshold": node.MASK_THRESHOLD,
            "training_only": auxiliary_parts(
                cfg,
                {"encoder": ShapeSpec(node.ENCODER.NUM_CHANNELS, stride=shapes[node.ENCODER.IN_FEATURES[0]].stride)},
                node.DECODER.NUM_CLASSES,
            ),
            **cls.shared_arguments(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        """32, the stride of the coarsest map (the authors' value)."""
        return 32

    def outputs(self, images: ImageList) -> dict[str, torch.Tensor]:
        """The decoder's predictions for a batch of images."""
        return self.decoder(self.encoder(self.backbone(images.tensor)))

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """loss_ce, loss_mask, loss_dice and loss_objectness (eq. 5), and those of what else training has."""
        canvas = tuple(images.tensor.shape[-2:])
        gt_instances = self.gt_instances(batched_inputs)  # before the network, because the host waits for it
        features = self.encoder(self.backbone(images.tensor))
        losses = self.criterion(self.decoder(features), gt_instances, canvas, self.decoder)
        for part in self.training_only.values():
            losses.update(part({"encoder": features}, gt_instances))
        return losses

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[dict]:
        """Detections with scores, pred_classes, slots (D,) and pred_masks (D, h, w), probabilities on the canvas."""
        return [{"instances": x} for x in self.detections(self.outputs(images), images.image_sizes)]

    def detections(self, outputs: dict[str, torch.Tensor], image_sizes: Sequence[tuple]) -> list[Instances]:
        """Convert the decoder's predictions to the detections of `infer`."""
        return detections(outputs, image_sizes, self.score_threshold, self.mask_threshold, self.max_detections)

    def postprocess(self, result: Instances, size: tuple, masks: bool = True) -> Instances:
        """
        Resize the probabilities to the padded input, crop them, resize them to the output and threshold them. The boxes
        are the masks' tight boxes.
        """
        canvas = tuple(round(side * self.mask_stride) for side in result.pred_masks.shape[-2:])
        scaled = Instances(size)
        scaled.pred_masks = resize_in_chunks(result.pred_masks, canvas, result.image_size, size, self.mask_threshold)
        scaled.pred_boxes = Boxes(masks_to_boxes(scaled.pred_masks))
        scaled.scores = result.scores
        scaled.pred_classes = result.pred_classes
        return scaled

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """For each image, (title, RGB picture) pairs: activation map and mask of the best detections."""
        images = self.preprocess(batched_inputs)
        outputs = self.outputs(images)
        found = self.detections(outputs, images.image_sizes)
        canvas = tuple(images.tensor.shape[-2:])
        return [
            explain_image(self.rgb_image(sample), result, maps[result.slots], canvas, max_instances)
            for sample, result, maps in zip(batched_inputs, map(filter_detections, found), outputs["activation_maps"])
        ]
