"""An ISTR small enough for tests."""

import torch

from instseg_d2.config import load_config
from instseg_d2.modeling.build import build

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.META_ARCHITECTURE", "ISTR",
    "MODEL.MASK_ON", True,
    "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.PIXEL_STD", [57.375, 57.12, 58.395],
    "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2,
    "MODEL.ISTR.HIDDEN_DIM", 16,
    "MODEL.ISTR.NHEADS", 4,
    "MODEL.ISTR.DIM_FEEDFORWARD", 32,
    "MODEL.ISTR.DIM_DYNAMIC", 4,
    "MODEL.ISTR.NUM_PROPOSALS", 10,
    "MODEL.ISTR.MASK_DIM", 12,
    "MODEL.ISTR.MASK_FEAT_DIM", 12,
]  # fmt: skip


def tiny_istr(*opts, method="", num_classes=3, seed=0):
    """
    A tiny ISTR with random weights, whose boxes differ from query to query and whose principal components, if any, are
    random and orthonormal.

    Args:
        method: MASK_ENCODING_METHOD; empty: version 1.
    """
    torch.manual_seed(seed)
    opts = ["MODEL.ISTR.MASK_ENCODING_METHOD", method, "MODEL.ISTR.NUM_CLASSES", num_classes, *opts]
    model = build(load_config("", [*TINY, *opts]))
    centres, sizes = torch.rand(2, len(model.initial_boxes.weight), 2)
    model.initial_boxes.weight.data = torch.cat([centres, 0.2 + 0.6 * sizes], dim=1)
    embedding = model.mask_embedding
    if hasattr(embedding, "components"):
        embedding.components.copy_(torch.linalg.qr(torch.randn(embedding.components.shape).T)[0].T)
        embedding.explained_variances.copy_(torch.linspace(20, 2, embedding.dim))
    for head in model.roi_heads.heads:
        torch.nn.init.normal_(head.class_logits.weight, std=0.3)
        head.box_deltas.weight.data *= 0.2  # boxes of usual sizes, so that rounding stays small through the heads
    return model
