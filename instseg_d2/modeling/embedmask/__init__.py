"""EmbedMask (Ying et al., IJCAI 2021, arXiv 1912.01954)."""

from .embedmask import EmbedMask
from .mask_head import EmbedMaskHead
from .pixel_embedding import PixelHead
from .proposals import ProposalHead

__all__ = ["EmbedMask", "EmbedMaskHead", "PixelHead", "ProposalHead"]
