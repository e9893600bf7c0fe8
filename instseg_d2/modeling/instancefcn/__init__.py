"""InstanceFCN (Dai et al., ECCV 2016, arXiv 1603.08678)."""

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
