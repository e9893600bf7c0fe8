"""ISTR (Hu et al., arXiv 2105.00637; IEEE TIP 33, 2024)."""

from ...config.istr import add_istr_config, check_istr_config
from ...methods import AutoRecipe, ClassRows, MaskHead, Method, Publication, register_mask_head, register_method
from .authors import convert_istr
from .autoencoder import AE
from .components import DCT, PCA, RawMask
from .embedding import (
    MASK_EMBEDDING_REGISTRY,
    MaskEmbedding,
    build_mask_embedding,
    ensure_fitted,
    fit_embedding,
    held_out_split,
    reconstruction_ious,
)
from .exportable import ExportableISTR
from .istr import ISTR
from .mask_head import MaskEmbeddingHead
from .recipe import recipe_rules
from .refinement import RefinementHeads
from .roi_heads import ISTRHeads

__all__ = [
    "AE",
    "DCT",
    "ISTR",
    "MASK_EMBEDDING_REGISTRY",
    "PCA",
    "ISTRHeads",
    "MaskEmbedding",
    "MaskEmbeddingHead",
    "RawMask",
    "RefinementHeads",
    "build_mask_embedding",
    "ensure_fitted",
    "fit_embedding",
    "held_out_split",
    "reconstruction_ious",
]

register_method(
    Method(
        "ISTR",
        add_config=add_istr_config,
        check_config=check_istr_config,
        class_count_keys={"MODEL.ISTR.NUM_CLASSES": 0},
        class_layers={"class_logits": ClassRows()},
        optimizer="ADAMW",
        fit=ensure_fitted,
        crop_scheme="detr",
        auxiliary=True,
        needs_masks=True,
        authors_names={"pos_embeddings.": convert_istr},
        exportable=ExportableISTR,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(
            recipe_rules, "quick/Base-quick-istr", "ISTR/ISTR-R50-3x", "quick/istr_photos", all_as_photos=True
        ),
        publication=Publication(
            "ISTR", "arXiv 2105.00637, IEEE TIP 2024", "https://github.com/hujiecpp/ISTR (Google Drive, Baidu)"
        ),
    )
)
register_mask_head(MaskHead("MaskEmbeddingHead", {"POOLER_RESOLUTION": 28}))
