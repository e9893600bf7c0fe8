"""SparseInst (Cheng et al., CVPR 2022, arXiv 2203.12827)."""

from ...config.sparseinst import add_sparseinst_config, check_sparseinst_config
from ...methods import AutoRecipe, ClassRows, Method, Publication, register_method
from .authors import convert_sparseinst
from .criterion import SparseInstCriterion
from .decoder import SPARSE_INST_DECODER_REGISTRY, BaseIAMDecoder, GroupIAMDecoder, GroupIAMSoftDecoder
from .encoder import SPARSE_INST_ENCODER_REGISTRY, InstanceContextEncoder
from .exportable import ExportableSparseInst
from .recipe import recipe_rules
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

register_method(
    Method(
        "SparseInst",
        add_config=add_sparseinst_config,
        check_config=check_sparseinst_config,
        class_count_keys={"MODEL.SPARSE_INST.DECODER.NUM_CLASSES": 0},
        class_layers={"class_logits": ClassRows()},
        optimizer="ADAMW",
        # The authors select by name, so batch norms called "bn" and all biases are decayed. timm calls a PVT's later
        # patch embeddings "downsample.proj".
        undecayed_names=("norm", "patch_embed", "downsample.proj", "cls_token"),
        crop_scheme="detr",
        auxiliary=True,
        needs_masks=True,
        authors_names={"encoder.fpn_laterals.": convert_sparseinst},
        exportable=ExportableSparseInst,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(
            recipe_rules,
            "quick/Base-quick-sparseinst",
            "SparseInst/sparse_inst_r50_giam",
            "quick/sparseinst_photos",
            all_as_photos=True,
        ),
        publication=Publication(
            "SparseInst", "CVPR 2022, arXiv 2203.12827", "https://github.com/hustvl/SparseInst (Google Drive, Baidu)"
        ),
    )
)
