"""Every method written the plain way, and which module is whose."""

from . import blendmask, embedmask, fcos, instancefcn, istr, sparseinst

PLAIN = {  # meta-architecture -> module with plain_infer and, where it has them, plain_postprocess and plain_losses
    "BlendMask": blendmask,
    "EmbedMask": embedmask,
    "FCOSDetector": fcos,
    "InstanceFCN": instancefcn,
    "ISTR": istr,
    "OneStageDetector": fcos,
    "SparseInst": sparseinst,
}
