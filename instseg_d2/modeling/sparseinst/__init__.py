"""SparseInst (Cheng et al., CVPR 2022, arXiv 2203.12827)."""

from .criterion import SparseInstCriterion
from .decoder import SPARSE_INST_DECODER_REGISTRY, BaseIAMDecoder, GroupIAMDecoder, GroupIAMSoftDecoder
from .encoder import SPARSE_INST_ENCODER_REGISTRY, InstanceContextEncoder
from .roi_heads import SparseInstHeads
from .sparseinst import SparseInst

__all__ = [
    "SPARSE_INST_DECODER_REGISTRY",
    "SPARSE_INST_ENCODER_REGISTRY",
    "BaseIAMDecoder",
    "GroupIAMDecoder",
    "GroupIAMSoftDecoder",
    "InstanceContextEncoder",
    "SparseInst",
    "SparseInstCriterion",
    "SparseInstHeads",
]
