"""InstanceFCN (Dai et al., ECCV 2016, arXiv 1603.08678)."""

from ...config.instancefcn import add_instancefcn_config, check_instancefcn_config
from ...methods import AutoRecipe, MaskHead, Method, Publication, register_mask_head, register_method
from .authors import VGG16_LAST_CONV, convert_vgg16
from .exportable import ExportableInstanceFCN
from .head import InstanceFCNHead
from .inference import ProposalLimits
from .instancefcn import InstanceFCN
from .mask_head import AssembleMaskHead
from .proposal_generator import InstanceFCN as InstanceFCNProposals
from .recipe import recipe_rules
from .roi_heads import SegmentROIHeads
from .targets import WindowRules
from .vgg import VGG16, build_vgg16_backbone

__all__ = [
    "VGG16",
    "AssembleMaskHead",
    "InstanceFCN",
    "InstanceFCNHead",
    "InstanceFCNProposals",
    "ProposalLimits",
    "SegmentROIHeads",
    "WindowRules",
    "build_vgg16_backbone",
]

register_method(
    Method(
        "InstanceFCN",
        add_config=add_instancefcn_config,
        check_config=check_instancefcn_config,
        class_agnostic=lambda cfg: not cfg.MODEL.INSTANCE_FCN.CLASSIFY,
        authors_names={VGG16_LAST_CONV: convert_vgg16},
        exportable=ExportableInstanceFCN,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(
            recipe_rules, "quick/Base-quick-instancefcn", "InstanceFCN/VGG16_k5", "quick/instancefcn_photos"
        ),
        publication=Publication(
            "InstanceFCN",
            "ECCV 2016, arXiv 1603.08678",
            "never released",
            "1.5 s per image on a K40. AR: average recall of the best 10, 100 and 1000 proposals.",
        ),
    )
)
register_mask_head(MaskHead("AssembleMaskHead", {"POOLER_TYPE": ""}))
