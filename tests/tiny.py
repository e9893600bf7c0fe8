"""A BlendMask small enough for tests, and random samples for it."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.modeling.build import build

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.META_ARCHITECTURE", "BlendMask",
    "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS",
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
    "MODEL.RESNETS.NORM", "BN",
    "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 64,
    "MODEL.FCOS.NUM_CLS_CONVS", 1,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.BASIS_MODULE.NORM", "BN",
    "MODEL.BASIS_MODULE.CONVS_DIM", 32,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.BASIS_MODULE.LOSS_ON", True,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False,
    "MODEL.BLENDMASK.ATTN_SIZE", 7,
    "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 28,
]  # fmt: skip


def tiny_config(*opts, num_classes=3):
    """The tiny BlendMask's config with overrides."""
    cfg = load_config("", TINY)
    set_num_classes(cfg, num_classes)
    cfg.merge_from_list(list(opts))
    return cfg


def tiny_model(*opts, num_classes=3, seed=0):
    """A tiny BlendMask with random weights."""
    torch.manual_seed(seed)
    return build(tiny_config(*opts, num_classes=num_classes))


def random_instances(num_objects, height, width, num_classes, generator):
    """Objects with random boxes inside the image and ellipses in them as masks."""
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
