"""ISTR's own release, both versions."""

from .renaming import StateDict, renamed

# Version 2 with an auto-encoder also carries principal components that nothing reads.
_UNUSED_WITH_AE = "mask_encoding."
_ISTR_RULES = (
    (r"^mask_encoding\.", "mask_embedding."),
    (r"^mask_[ED]\.", "mask_embedding."),
)


def convert_istr(state_dict: StateDict) -> StateDict:
    """ISTR's own release: the state dict under our names."""
    learned = any(key.startswith("mask_E.") for key in state_dict)
    return {
        renamed(key, _ISTR_RULES): value
        for key, value in state_dict.items()
        if not (learned and key.startswith(_UNUSED_WITH_AE))
    }
