"""BlendMask (Chen et al., CVPR 2020, arXiv 2001.00309)."""

from ...config.blendmask import add_blendmask_config, check_blendmask_config
from ...methods import AutoRecipe, ClassRows, MaskHead, Method, Publication, register_mask_head, register_method
from .authors import FCOS_HEAD, convert_adelaidet
from .basis_module import BASIS_MODULE_REGISTRY, DeepLabV3Plus, ProtoNet, build_basis_module
from .blender import Blender
from .blendmask import BlendMask
from .exportable import ExportableBlendMask
from .mask_head import BlendMaskHead
from .recipe import recipe_rules

__all__ = [
    "BASIS_MODULE_REGISTRY",
    "BlendMask",
    "BlendMaskHead",
    "Blender",
    "DeepLabV3Plus",
    "ProtoNet",
    "build_basis_module",
]

register_method(
    Method(
        "BlendMask",
        add_config=add_blendmask_config,
        check_config=check_blendmask_config,
        class_count_keys={"MODEL.FCOS.NUM_CLASSES": 0, "MODEL.BASIS_MODULE.NUM_CLASSES": 0},
        class_layers={
            "class_logits": ClassRows(),
            r"basis_module\.semantic_head\.2": ClassRows(before=1),
        },
        semantic_target=lambda cfg: cfg.MODEL.BASIS_MODULE.LOSS_ON,
        authors_names={FCOS_HEAD: convert_adelaidet},  # AdelaiDet's FCOS is part of its BlendMask
        panoptic=lambda cfg: cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED,
        exportable=ExportableBlendMask,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(recipe_rules, "quick/Base-quick-blendmask", "BlendMask/R_50_3x", "quick/blendmask_photos"),
        publication=Publication(
            "BlendMask",
            "CVPR 2020, arXiv 2001.00309",
            "https://github.com/aim-uofa/AdelaiDet (model zoo)",
            "The paper, test-dev: mask AP 37.0 (R-50), 38.4 (R-101), 41.3 (R-101 deformable, best); real-time model "
            "34.2 at 25 FPS on a GTX 1080 Ti.",
        ),
    )
)
register_mask_head(MaskHead("BlendMaskHead", {"POOLER_TYPE": ""}))
