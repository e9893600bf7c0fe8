"""Parameter names of ISTR's release, both versions."""

from ...checkpoint.authors.renaming import StateDict, renamed
from ...checkpoint.authors.swin import SWIN_BLOCK, convert_swin

# Version 2 with an auto-encoder also contains principal components that are not used.
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
    # Two blocks of two convolutions are one Sequential here.
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


def convert_istr(state_dict: StateDict) -> StateDict:
    """Convert the state dict of ISTR's release to our names."""
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
