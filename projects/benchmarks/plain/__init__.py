"""Plain implementations of all methods."""

from . import blendmask, embedmask, fcos, instancefcn, istr, sparseinst

PLAIN = {  # meta-architecture -> module with plain_infer and, for some, plain_postprocess and plain_losses
    "BlendMask": blendmask,
    "EmbedMask": embedmask,
    "FCOSDetector": fcos,
    "InstanceFCN": instancefcn,
    "ISTR": istr,
    "OneStageDetector": fcos,
    "SparseInst": sparseinst,
}
