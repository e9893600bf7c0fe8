"""FCOS as a box detector, without masks. N images."""

from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator
from detectron2.structures import ImageList

from ..backbone import freeze_unused_levels
from ..meta_arch import InstanceSegmenter


@META_ARCH_REGISTRY.register()
class FCOSDetector(InstanceSegmenter):
    """Backbone and FCOS head: boxes, scores and classes."""

    predicts_masks = False

    @configurable
    def __init__(self, *, proposal_generator, **kwargs):
        """
        Args:
            proposal_generator: an `FCOS`.
            kwargs: see `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        proposal_generator = build_proposal_generator(cfg, backbone.output_shape())
        freeze_unused_levels(backbone, proposal_generator.in_features)
        return {
            "backbone": backbone,
            "proposal_generator": proposal_generator,
            **cls.shared_arguments(cfg),
        }

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        gt_instances = self.gt_instances(batched_inputs)
        return self.proposal_generator(images, self.backbone(images.tensor), gt_instances)[1]

    def infer(self, images: ImageList) -> list[dict]:
        """Boxes, best first."""
        fcos = self.proposal_generator
        results = fcos.detect(fcos.outputs(self.backbone(images.tensor)), images.image_sizes)
        for result in results:
            result.remove("rows")
        return [{"instances": x} for x in results]


class OneStageDetector(FCOSDetector):
    """The name that AdelaiDet's box-only configs give to `FCOSDetector`."""


META_ARCH_REGISTRY.register(OneStageDetector)
