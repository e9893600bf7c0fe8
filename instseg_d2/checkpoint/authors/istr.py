"""ISTR's own release, both versions, and Swin Transformers under the names of their authors."""

import re

from .renaming import StateDict, renamed

# Version 2 with an auto-encoder also carries principal components that nothing reads.
_UNUSED_WITH_AE = "mask_encoding."
_HEAD = r"^head\.head_series\.(\d+)\."
_ISTR_RULES = (
    (r"^pos_embeddings\.", "query_embedding."),
    (r"^init_proposal_boxes\.", "initial_boxes."),
    (_HEAD + r"self_attn\.", r"roi_heads.heads.\1.self_attention."),
    (_HEAD + r"inst_interact\.", r"roi_heads.heads.\1.roi_attention."),
    (_HEAD + r"cls_module\.", r"roi_heads.heads.\1.class_branch."),
    (_HEAD + r"reg_module\.", r"roi_heads.heads.\1.box_branch."),
    (_HEAD + r"bboxes_delta\.", r"roi_heads.heads.\1.box_deltas."),
    (_HEAD + r"mask_module\.", r"roi_heads.heads.\1.mask_branch.layers."),
    (_HEAD + r"mask_logits\.", r"roi_heads.heads.\1.mask_branch.codes."),
    # Two blocks of two convolutions: one row of layers here.
    (_HEAD + r"ret_roi_layer_1\.conv\.", r"roi_heads.heads.\1.mask_branch.decoder_feature."),
    *(
        (_HEAD + rf"ret_roi_layer_2\.conv\.{i}\.", rf"roi_heads.heads.\1.mask_branch.decoder_feature.{i + 6}.")
        for i in (0, 1, 3, 4)
    ),
    (_HEAD, r"roi_heads.heads.\1."),
    (r"^mask_encoding\.", "mask_embedding."),
    (r"^mask_[ED]\.", "mask_embedding."),
)
_BOTTOM_UP = "backbone.bottom_up."
# timm counts a patch merging to the stage that it begins, the authors to the one that it ends.
_SWIN_RULES = (
    (r"^patch_embed\.", r"net.patch_embed."),
    *((rf"^layers\.{i}\.downsample\.", f"net.layers_{i + 1}.downsample.") for i in range(3)),
    (r"^layers\.(\d)\.", r"net.layers_\1."),
    *((rf"^norm{i}\.", f"norms.stage{i + 2}.") for i in range(4)),
)
_SWIN_UNUSED = re.compile(r"(norm|head)\.|.*\.(relative_position_index|attn_mask)$")
SWIN_BLOCK = "layers.0.blocks.0.attn."


def convert_swin(state_dict: StateDict) -> StateDict:
    """A Swin Transformer for classification as the bottom-up network of an FPN, without classifier and last norm."""
    return {
        _BOTTOM_UP + renamed(key, _SWIN_RULES): value
        for key, value in state_dict.items()
        if not _SWIN_UNUSED.match(key)
    }


def convert_istr(state_dict: StateDict) -> StateDict:
    """ISTR's own release: the state dict under our names."""
    learned = any(key.startswith("mask_E.") for key in state_dict)
    if any(key.startswith(_BOTTOM_UP + SWIN_BLOCK) for key in state_dict):
        swin = {key[len(_BOTTOM_UP) :]: value for key, value in state_dict.items() if key.startswith(_BOTTOM_UP)}
        others = {key: value for key, value in state_dict.items() if not key.startswith(_BOTTOM_UP)}
        state_dict = {**convert_swin(swin), **others}
    return {
        renamed(key, _ISTR_RULES): value
        for key, value in state_dict.items()
        if not (learned and key.startswith(_UNUSED_WITH_AE))
    }
