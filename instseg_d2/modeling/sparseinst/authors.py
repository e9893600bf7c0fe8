"""Parameter names of SparseInst's release."""

import re

from ...checkpoint.authors.imagenet import timm_name
from ...checkpoint.authors.renaming import StateDict, renamed

# SparseInst's encoder numbers its levels from the coarsest, ours from the finest: see convert_sparseinst.
_SPARSEINST_RULES = (
    (r"^encoder\.fpn_(lateral|output)s\.", r"encoder.\1s."),
    (r"^encoder\.ppm\.stages\.(\d+)\.1\.", r"encoder.context.branches.\1."),
    (r"^encoder\.ppm\.bottleneck\.", "encoder.context.bottleneck."),
    (r"^decoder\.inst_branch\.inst_convs\.", "decoder.instance_branch.convs."),
    (r"^decoder\.inst_branch\.cls_score\.", "decoder.instance_branch.class_logits."),
    (r"^decoder\.inst_branch\.", "decoder.instance_branch."),
    (r"^decoder\.mask_branch\.mask_convs\.", "decoder.mask_branch.convs."),
)
_BACKBONE = "backbone."


def convert_sparseinst(state_dict: StateDict) -> StateDict:
    """Convert the state dict of SparseInst's release, with any backbone, to our names."""
    levels = {match[1] for key in state_dict if (match := re.match(r"encoder\.fpn_laterals\.(\d+)\.", key))}
    last = len(levels) - 1

    def coarse_to_fine(key: str) -> str:
        return re.sub(r"^(encoder\.fpn_\w+\.)(\d+)\.", lambda m: f"{m[1]}{last - int(m[2])}.", key)

    def ours(key: str) -> str:
        if key.startswith(_BACKBONE):
            return _BACKBONE + timm_name(key[len(_BACKBONE) :])
        return renamed(coarse_to_fine(key), _SPARSEINST_RULES)

    return {ours(key): value for key, value in state_dict.items()}
