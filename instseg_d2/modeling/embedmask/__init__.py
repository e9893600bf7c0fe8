"""EmbedMask (Ying et al., IJCAI 2021, arXiv 1912.01954)."""

from ...config.embedmask import add_embedmask_config
from ...methods import MaskHead, Method, register_mask_head, register_method
from .authors import MASK_TOWER, convert_embedmask
from .embedmask import EmbedMask
from .mask_head import EmbedMaskHead
from .pixel_embedding import PixelHead
from .proposals import ProposalHead

__all__ = ["EmbedMask", "EmbedMaskHead", "PixelHead", "ProposalHead"]

register_method(
    Method(
        "EmbedMask",
        add_config=add_embedmask_config,
        class_count_keys={"MODEL.EMBED_MASK.NUM_CLASSES": 1},
        authors_names={MASK_TOWER: convert_embedmask},
    )
)
register_mask_head(MaskHead("EmbedMaskHead", {"POOLER_TYPE": ""}))
