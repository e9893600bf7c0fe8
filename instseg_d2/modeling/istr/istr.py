"""
The ISTR meta-architecture. B images, N queries an image, C channels, K classes, D detections an image, S the side of a
decoded mask.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torchvision.ops import box_convert

from ...config.istr import istr_version
from ..meta_arch import InstanceSegmenter
from .autoencoder import AE
from .criterion import ISTRCriterion
from .embedding import build_mask_embedding
from .explain import explain_image
from .heads import ISTRHeads, Stage


@META_ARCH_REGISTRY.register()
class ISTR(InstanceSegmenter):
    """
    Learned queries and boxes that heads refine into classes, boxes and mask codes, without NMS (ISTR, figure 2;
    arXiv 2105.00637).
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: ISTRHeads,
        mask_embedding: nn.Module,
        criterion: ISTRCriterion,
        num_queries: int = 300,
        channels: int = 256,
        max_detections: int = 100,
        **kwargs,
    ):
        """
        Args:
            mask_embedding: a `MaskEmbedding`.
            num_queries: N; channels: C.
            max_detections: the best pairs of query and class that are kept of each image.
            kwargs: of `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.roi_heads = roi_heads
        self.mask_embedding = mask_embedding
        self.criterion = criterion
        self.max_detections = max_detections
        self.query_embedding = nn.Embedding(num_queries, channels)
        # Centre, width and height, relative to the image: at first the whole image.
        self.initial_boxes = nn.Embedding.from_pretrained(
            torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(num_queries, 1), freeze=False
        )

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.ISTR
        backbone = build_backbone(cfg)
        embedding = build_mask_embedding(cfg)
        # Detectron2's default is of another architecture; files of the authors leave it as it is.
        name = cfg.MODEL.ROI_HEADS.NAME
        heads = ROI_HEADS_REGISTRY.get("ISTRHeads" if name == "Res5ROIHeads" else name)
        return {
            "backbone": backbone,
            "roi_heads": heads(
                cfg, backbone.output_shape(), code_dim=embedding.dim, decoder_channels=32 * isinstance(embedding, AE)
            ),
            "mask_embedding": embedding,
            "criterion": ISTRCriterion.from_config(cfg),
            "num_queries": node.NUM_PROPOSALS,
            "channels": node.HIDDEN_DIM,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_threshold": 0.5 if istr_version(cfg) == 1 else 0.45,
            **cls.shared_arguments(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        """32: the coarsest map's stride (the authors' value)."""
        return 32

    def start(self, images: ImageList):
        """
        What the first head gets: the pyramid (name -> (B, C, H_l, W_l)), boxes (B, N, 4) x1, y1, x2, y2 in pixels of
        the unpadded images and queries (B, N, C), the sum of the levels' means over the padded image plus an embedding.
        """
        features = self.backbone(images.tensor)
        scale = self.pixel_mean.new_tensor([[w, h, w, h] for h, w in images.image_sizes])
        boxes = box_convert(self.initial_boxes.weight * scale[:, None], "cxcywh", "xyxy")
        glimpse = sum(x.mean((2, 3)) for x in self.roi_heads.maps(features))
        return features, boxes, glimpse[:, None] + self.query_embedding.weight

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """loss_ce, loss_bbox, loss_giou, loss_feat and loss_dice of each head."""
        gt_instances = self.gt_instances(batched_inputs)
        return self.criterion(self.roi_heads(*self.start(images)), gt_instances, self.mask_embedding)

    def _detect(self, images: ImageList):
        """
        The heads' stages, a function (stage, queries (B, n)) -> (boxes (B, n, 4), masks (B, n, 1, S, S)), and the best
        pairs of query and class: queries, classes and scores, each (B, D), best first.
        """
        heads = self.roi_heads
        features, boxes, queries = self.start(images)
        maps = heads.maps(features)
        rows = heads.pooler.rows(maps)
        stages = list(heads.refine(maps, rows, boxes, queries))
        # Only the heads whose classes count classify; masks are made later, of what is kept.
        logits = [stage.head.classify(stage.queries).float() for stage in stages[-heads.averaged_heads :]]
        probabilities = torch.stack(logits).mean(0).sigmoid()
        scores, index = probabilities.flatten(1).topk(min(self.max_detections, probabilities[0].numel()))
        num_classes = probabilities.shape[-1]

        def masks_of(stage: Stage, query: torch.Tensor):
            image = torch.arange(len(query), device=query.device)[:, None]
            boxes = stage.boxes[image, query]
            codes, feature = heads.mask_codes(stage.head, maps, rows, boxes, stage.queries[image, query])
            masks = self.mask_embedding.decode(codes.flatten(0, 1), feature)
            return boxes, masks.unflatten(0, query.shape)[:, :, None]

        return stages, masks_of, index // num_classes, index % num_classes, scores

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[Instances]:
        """Detections, best first, with pred_masks (D, 1, S, S) inside the unclipped boxes."""
        stages, masks_of, query, classes, scores = self._detect(images)
        results = []
        for size, *fields in zip(images.image_sizes, *masks_of(stages[-1], query), classes, scores):
            result = Instances(size)
            result.pred_boxes = Boxes(fields[0])
            result.pred_masks = fields[1]
            result.pred_classes = fields[2]
            result.scores = fields[3]
            results.append(result)
        return results

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """Titled RGB pictures of boxes and masks of the best queries after each head, for each image."""
        panels = []
        for sample in batched_inputs:
            images = self.preprocess([sample])
            stages, masks_of, query, _, scores = self._detect(images)
            best = dict.fromkeys(query[0].tolist())  # a query may be there with several classes
            chosen = torch.tensor([list(best)[:max_instances]], device=query.device)
            tags = [f"{float(scores[0][query[0] == number].max()):.0%}" for number in chosen[0]]
            steps = [[x[0] for x in masks_of(stage, chosen)] for stage in stages]
            panels.append(explain_image(self.rgb_image(sample), steps, tags, self.mask_threshold))
        return panels
