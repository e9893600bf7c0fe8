"""InstanceFCN (Dai et al., ECCV 2016, arXiv 1603.08678)."""

from ...config.instancefcn import add_instancefcn_config
from ...methods import MaskHead, Method, Publication, register_mask_head, register_method
from .heads import InstanceFCNHead
from .inference import ProposalLimits
from .instancefcn import InstanceFCN
from .mask_head import AssembleMaskHead
from .proposals import InstanceFCN as InstanceFCNProposals
from .roi_heads import SegmentROIHeads
from .windows import WindowRules

__all__ = [
    "AssembleMaskHead",
    "InstanceFCN",
    "InstanceFCNHead",
    "InstanceFCNProposals",
    "ProposalLimits",
    "SegmentROIHeads",
    "WindowRules",
]

register_method(
    Method(
        "InstanceFCN",
        add_config=add_instancefcn_config,
        class_agnostic=lambda cfg: not cfg.MODEL.INSTANCE_FCN.CLASSIFY,
        publication=Publication(
            "InstanceFCN",
            "ECCV 2016, arXiv 1603.08678",
            "never released",
            "1.5 s an image on a K40. AR: average recall of the best 10, 100 and 1000 proposals.",
        ),
    )
)
register_mask_head(MaskHead("AssembleMaskHead", {"POOLER_TYPE": ""}))
