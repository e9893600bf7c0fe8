"""Keys of mask heads for any box detector."""

from detectron2.config import CfgNode


def add_heads_config(cfg: CfgNode) -> None:
    """
    Add MODEL.ASSEMBLE_MASK_HEAD and MODEL.BLEND_MASK_HEAD, in place. The rest of AssembleMaskHead is under
    MODEL.ROI_MASK_HEAD, of BlendMaskHead under MODEL.BLENDMASK and MODEL.BASIS_MODULE.
    """
    node = CfgNode()
    node.GRID = 5  # k: a box is divided k x k
    node.IN_FEATURE = "p3"  # the one of MODEL.ROI_HEADS.IN_FEATURES that the score maps are made from
    cfg.MODEL.ASSEMBLE_MASK_HEAD = node

    node = CfgNode()
    node.ATTN_CONVS = 0  # 3x3 convolutions (GN, ReLU) of the pooled features before that to the attention
    cfg.MODEL.BLEND_MASK_HEAD = node


def complete_mask_head(cfg: CfgNode) -> None:
    """Give MODEL.ROI_MASK_HEAD the one pooler that the mask head it names can read, in place."""
    head = cfg.MODEL.ROI_MASK_HEAD
    if head.NAME in ("AssembleMaskHead", "BlendMaskHead", "EmbedMaskHead"):
        head.POOLER_TYPE = ""  # the maps of the whole image
    elif head.NAME == "MaskEmbeddingHead":
        head.POOLER_RESOLUTION = 28
