"""Every method, small enough for tests, and random samples."""

import torch
from detectron2 import model_zoo
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.config import load_config, merge_overrides, set_num_classes
from instseg_d2.modeling.build import build

METHODS = ["BlendMask", "EmbedMask", "InstanceFCN", "ISTR", "SparseInst"]
MASK_RCNN = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
_RESNET = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
]  # fmt: skip
# Overrides for a ResNet-50 of a quarter of the width, with which training steps cost a third. Each untrained block adds
# to the variance, so that the images are scaled down.
THIN = [
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 16,
    "MODEL.PIXEL_STD", [900.0, 900.0, 900.0],
]  # fmt: skip
_CAFFE2_SCALE = ["MODEL.PIXEL_STD", [57.375, 57.12, 58.395]]
_FCOS = [
    *_RESNET,
    "MODEL.META_ARCHITECTURE", "FCOSDetector",
    "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS",
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
    "MODEL.RESNETS.NORM", "BN",
    "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 64,
    "MODEL.FCOS.NUM_CLS_CONVS", 1,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
]  # fmt: skip
# The overrides of each method. "MaskRCNN" is Detectron2's, for heads by name.
TINY = {
    "FCOSDetector": _FCOS,
    "BlendMask": [
        *_FCOS,
        "MODEL.META_ARCHITECTURE", "BlendMask",
        "MODEL.MASK_ON", True,
        "MODEL.BASIS_MODULE.NORM", "BN",
        "MODEL.BASIS_MODULE.CONVS_DIM", 32,
        "MODEL.BASIS_MODULE.NUM_CONVS", 1,
        "MODEL.BASIS_MODULE.LOSS_ON", True,
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False,
        "MODEL.BLENDMASK.ATTN_SIZE", 7,
        "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 28,
    ],
    "EmbedMask": [
        *_FCOS,
        "MODEL.META_ARCHITECTURE", "EmbedMask",
        "MODEL.MASK_ON", True,
        "MODEL.EMBED_MASK.HEAD_NUM_CONVS", 1,
        "MODEL.EMBED_MASK.MASK_NUM_CONVS", 1,
    ],
    "InstanceFCN": [
        *_RESNET,
        *_CAFFE2_SCALE,
        "MODEL.META_ARCHITECTURE", "InstanceFCN",
        "MODEL.MASK_ON", True,
        "MODEL.PROPOSAL_GENERATOR.NAME", "InstanceFCN",
        "MODEL.BACKBONE.NAME", "build_dilated_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES", ["res3"],
        "MODEL.RESNETS.NORM", "BN",
        "MODEL.INSTANCE_FCN.IN_FEATURE", "res3",
        "MODEL.INSTANCE_FCN.HIDDEN_DIM", 16,
        "MODEL.INSTANCE_FCN.SCALES_TEST", (48, 64, 96),
    ],
    "ISTR": [
        *_RESNET,
        *_CAFFE2_SCALE,
        "MODEL.META_ARCHITECTURE", "ISTR",
        "MODEL.MASK_ON", True,
        "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS", 16,
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
    ],
    "SparseInst": [
        *_RESNET,
        *_CAFFE2_SCALE,
        "MODEL.META_ARCHITECTURE", "SparseInst",
        "MODEL.MASK_ON", True,
        "MODEL.BACKBONE.NAME", "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
        "MODEL.RESNETS.NORM", "FrozenBN",
        "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 32,
        "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 10,
        "MODEL.SPARSE_INST.DECODER.KERNEL_DIM", 16,
        "MODEL.SPARSE_INST.DECODER.INST.DIM", 32,
        "MODEL.SPARSE_INST.DECODER.INST.CONVS", 2,
        "MODEL.SPARSE_INST.DECODER.MASK.DIM", 32,
        "MODEL.SPARSE_INST.DECODER.MASK.CONVS", 2,
    ],
    "MaskRCNN": [
        *_RESNET,
        "MODEL.WEIGHTS", "",
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
    ],
}  # fmt: skip
# Overrides that make an untrained model find many objects.
FINDING = {
    "FCOSDetector": ["MODEL.FCOS.INFERENCE_TH_TEST", 0.0],
    "BlendMask": ["MODEL.FCOS.INFERENCE_TH_TEST", 0.0],
    "EmbedMask": ["MODEL.EMBED_MASK.INFERENCE_TH", 0.0],
    "InstanceFCN": [
        "MODEL.INSTANCE_FCN.SCALES_TEST", (64, 128),
        "MODEL.INSTANCE_FCN.MASK_SIZE", 9,
        "MODEL.INSTANCE_FCN.GRID", 3,
    ],
    "ISTR": [
        "MODEL.ISTR.NUM_HEADS", 1,  # six untrained heads push all boxes out of the image
        "MODEL.ISTR.NUM_PROPOSALS", 50,
    ],
    "SparseInst": ["MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0, "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 40],
}  # fmt: skip


def tiny_config(method, *opts, num_classes=3, finding=False):
    """
    Args:
        method: a key of TINY; opts: overrides.
        finding: thresholds accept everything, see FINDING.
    """
    cfg = load_config(MASK_RCNN if method == "MaskRCNN" else "", TINY[method])
    set_num_classes(cfg, num_classes)
    merge_overrides(cfg, [*(FINDING[method] if finding else []), *opts])
    return cfg


def tiny_model(method, *opts, num_classes=3, seed=0, finding=False):
    """
    The model of `tiny_config` with random weights. With ``finding``, FCOS's boxes are a few cells large. ISTR's boxes
    differ between queries; its principal components, if any, are random and orthonormal.
    """
    torch.manual_seed(seed)
    model = build(tiny_config(method, *opts, num_classes=num_classes, finding=finding))
    for name, module in model.named_modules() if finding else ():
        if name.endswith("box_distances"):
            torch.nn.init.constant_(module.bias, 2.0)
    if method == "ISTR":
        _spread_queries(model)
    return model


def _spread_queries(model):
    centres, sizes = torch.rand(2, len(model.initial_boxes.weight), 2)
    model.initial_boxes.weight.data = torch.cat([centres, 0.2 + 0.6 * sizes], dim=1)
    embedding = model.mask_embedding
    if hasattr(embedding, "components"):
        embedding.components.copy_(torch.linalg.qr(torch.randn(embedding.components.shape).T)[0].T)
        embedding.explained_variances.copy_(torch.linspace(20, 2, embedding.dim))
    for head in model.roi_heads.heads:
        torch.nn.init.normal_(head.class_logits.weight, std=0.3)
        head.box_deltas.weight.data *= 0.2  # moderate box sizes keep rounding small through the heads


def random_instances(num_objects, height, width, num_classes, generator):
    """Objects with random boxes inside the image, and ellipses in them as masks."""
    size = torch.tensor([width, height])
    corner = torch.rand(num_objects, 2, generator=generator) * size * 0.6
    extent = 8 + torch.rand(num_objects, 2, generator=generator) * (size - corner - 8)
    boxes = torch.cat([corner, corner + extent], 1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(0, num_classes, (num_objects,), generator=generator)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    center, radius = corner + extent / 2, extent / 2
    dx = (x - center[:, 0, None, None]) / radius[:, 0, None, None]
    dy = (y - center[:, 1, None, None]) / radius[:, 1, None, None]
    instances.gt_masks = BitMasks(dx**2 + dy**2 < 1)
    return instances


def random_batch(counts, height=96, width=128, num_classes=3, seed=0):
    """One sample for each number of objects."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
            "instances": random_instances(count, height, width, num_classes, generator),
            "height": height,
            "width": width,
        }
        for count in counts
    ]
