"""
SparseInst inside Detectron2's GeneralizedRCNN.

N images, D detections, h x w cells of the predicted masks, H x W pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ..postprocessing import masks_to_boxes
from ..proposal_free import ProposalFreeROIHeads
from .criterion import SparseInstCriterion
from .decoder import build_sparse_inst_decoder
from .encoder import build_sparse_inst_encoder
from .exportable import ExportableSparseInstHeads
from .inference import CanvasMasks, detections
from .recipe import heads_rules


def alias_pyramid_levels(names: Sequence[str], features: dict) -> dict:
    """Add each missing name, such as res3, as an alias of the pyramid's level p3, if there is one."""
    aliases = {name: name.replace("res", "p") for name in names if name not in features}
    return {**features, **{name: features[level] for name, level in aliases.items() if level in features}}


@ROI_HEADS_REGISTRY.register()
class SparseInstHeads(ProposalFreeROIHeads, nn.Module):
    """
    SparseInst's encoder, decoder and losses; proposals are ignored.

    The keys are those of MODEL.SPARSE_INST, except for MODEL.ROI_HEADS.NUM_CLASSES. On an FPN the encoder reads p3, p4
    and p5 in place of res3, res4 and res5.
    """

    exportable = ExportableSparseInstHeads
    recipe_rules = staticmethod(heads_rules)

    @configurable
    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        criterion: SparseInstCriterion,
        in_features: Sequence[str],
        mask_stride: float,
        score_threshold: float = 0.005,
        mask_threshold: float = 0.45,
        max_detections: int = 100,
    ):
        """
        Args:
            encoder, decoder, mask_stride, score_threshold, max_detections: see `SparseInst`.
            in_features: names of the feature maps that the encoder reads.
            mask_threshold: pixels strictly above this probability belong to a mask.
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.criterion = criterion
        self.in_features = list(in_features)
        self.mask_stride = mask_stride
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        cfg = cfg.clone()
        cfg.defrost()
        node = cfg.MODEL.SPARSE_INST
        node.DECODER.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        names = node.ENCODER.IN_FEATURES
        shapes = alias_pyramid_levels(names, input_shape)
        return {
            "encoder": build_sparse_inst_encoder(cfg, shapes),
            "decoder": build_sparse_inst_decoder(cfg),
            "criterion": SparseInstCriterion.from_config(cfg),
            "in_features": names,
            "mask_stride": shapes[names[0]].stride / node.DECODER.SCALE_FACTOR,
            "score_threshold": node.CLS_THRESHOLD,
            "mask_threshold": node.MASK_THRESHOLD,
            "max_detections": node.MAX_DETECTIONS,
        }

    def _outputs(self, features: dict[str, torch.Tensor]):
        """The decoder's predictions, and the (H, W) of the padded input."""
        outputs = self.decoder(self.encoder(alias_pyramid_levels(self.in_features, features)))
        return outputs, tuple(round(side * self.mask_stride) for side in outputs["mask_logits"].shape[-2:])

    def losses(self, images: ImageList, features: dict[str, torch.Tensor], targets: Sequence[Instances]) -> dict:
        """loss_ce, loss_mask, loss_dice and loss_objectness."""
        outputs, canvas = self._outputs(features)
        return self.criterion(outputs, targets, canvas, self.decoder)

    @torch.no_grad()
    def infer(self, images: ImageList, features: dict[str, torch.Tensor]) -> list[Instances]:
        """Detections in input pixels with scores, pred_classes, pred_masks (`CanvasMasks`) and tight pred_boxes."""
        outputs, canvas = self._outputs(features)
        results = detections(
            outputs, images.image_sizes, self.score_threshold, self.mask_threshold, self.max_detections
        )
        for x in results:
            x.pred_masks = CanvasMasks(x.pred_masks, canvas, x.image_size, self.mask_threshold)
            x.pred_boxes = Boxes(masks_to_boxes(x.pred_masks.resize(x.image_size)))
            x.remove("slots")
        return results
