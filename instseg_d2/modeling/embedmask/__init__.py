"""EmbedMask (Ying et al., IJCAI 2021, arXiv 1912.01954)."""

from ...config.embedmask import add_embedmask_config, check_embedmask_config
from ...methods import AutoRecipe, ClassRows, MaskHead, Method, Publication, register_mask_head, register_method
from .authors import MASK_TOWER, convert_embedmask
from .embedmask import EmbedMask
from .exportable import ExportableEmbedMask
from .head import PixelHead, ProposalHead
from .mask_head import EmbedMaskHead
from .recipe import recipe_rules

__all__ = ["EmbedMask", "EmbedMaskHead", "PixelHead", "ProposalHead"]

register_method(
    Method(
        "EmbedMask",
        add_config=add_embedmask_config,
        check_config=check_embedmask_config,
        class_count_keys={"MODEL.EMBED_MASK.NUM_CLASSES": 1},
        class_layers={"class_logits": ClassRows()},
        authors_names={MASK_TOWER: convert_embedmask},
        exportable=ExportableEmbedMask,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(recipe_rules, "quick/Base-quick-embedmask", "EmbedMask/v3_R_50_1x", "quick/embedmask_photos"),
        publication=Publication(
            "EmbedMask",
            "arXiv 1912.01954, IJCAI 2021",
            "https://github.com/yinghdb/EmbedMask (OneDrive, third version)",
            "The paper of 2019 reports mask AP 37.7 on test-dev for R-101, without a schedule. The authors' FPS on a "
            "V100, for a version that they do not name: R-50 16.7, R-101 13.7, R-101 at 600 pixels 21.7.",
        ),
    )
)
register_mask_head(MaskHead("EmbedMaskHead", {"POOLER_TYPE": ""}))
