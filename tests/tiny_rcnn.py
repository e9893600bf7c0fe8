"""Detectron2's own Mask R-CNN with names overridden, small enough for tests."""

import torch
from detectron2 import model_zoo

from instseg_d2.config import get_cfg, set_num_classes
from instseg_d2.modeling.build import build

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.BASIS_MODULE.NORM", "BN",
    "MODEL.BASIS_MODULE.CONVS_DIM", 16,
    "MODEL.EMBED_MASK.MASK_NUM_CONVS", 1,
    "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 16,
    "MODEL.SPARSE_INST.DECODER.INST.DIM", 16,
    "MODEL.SPARSE_INST.DECODER.INST.CONVS", 1,
    "MODEL.SPARSE_INST.DECODER.MASK.DIM", 16,
    "MODEL.SPARSE_INST.DECODER.MASK.CONVS", 1,
    "MODEL.SPARSE_INST.DECODER.KERNEL_DIM", 8,
    "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 10,
    "MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0,
    "MODEL.ISTR.HIDDEN_DIM", 32,
    "MODEL.ISTR.NHEADS", 4,
    "MODEL.ISTR.DIM_FEEDFORWARD", 32,
    "MODEL.ISTR.DIM_DYNAMIC", 4,
    "MODEL.ISTR.NUM_PROPOSALS", 10,
    "MODEL.ISTR.NUM_HEADS", 2,
    "MODEL.ISTR.MASK_FEAT_DIM", 12,
    "TEST.DETECTIONS_PER_IMAGE", 10,
]  # fmt: skip
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
FCOS = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS",
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.FCOS.NUM_CLS_CONVS", 1,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.FCOS.INFERENCE_TH_TEST", 0.001,  # untrained, it is sure of nothing
]  # fmt: skip


def tiny_rcnn_config(*opts, num_classes=3):
    """The config with overrides."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(ZOO))
    cfg.merge_from_list(TINY)
    set_num_classes(cfg, num_classes)
    cfg.merge_from_list(list(opts))
    return cfg


def tiny_rcnn(*opts, num_classes=3, seed=0):
    """The model with random weights."""
    torch.manual_seed(seed)
    return build(tiny_rcnn_config(*opts, num_classes=num_classes))
