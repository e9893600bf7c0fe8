"""Every method written the plain way, and which module is whose."""

from . import blendmask, embedmask, instancefcn, istr, sparseinst

PLAIN = {  # meta-architecture -> module with plain_infer and, where it has them, plain_postprocess and plain_losses
    "BlendMask": blendmask,
    "EmbedMask": embedmask,
    "InstanceFCN": instancefcn,
    "ISTR": istr,
    "SparseInst": sparseinst,
}
