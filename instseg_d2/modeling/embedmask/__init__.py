"""EmbedMask (Ying et al., IJCAI 2021, arXiv 1912.01954)."""

from ...config.embedmask import add_embedmask_config
from ...methods import MaskHead, Method, register_mask_head, register_method
from .embedmask import EmbedMask
from .mask_head import EmbedMaskHead
from .pixel_embedding import PixelHead
from .proposals import ProposalHead

__all__ = ["EmbedMask", "EmbedMaskHead", "PixelHead", "ProposalHead"]

register_method(
    Method("EmbedMask", add_config=add_embedmask_config, class_count_keys={"MODEL.EMBED_MASK.NUM_CLASSES": 1})
)
register_mask_head(MaskHead("EmbedMaskHead", {"POOLER_TYPE": ""}))
