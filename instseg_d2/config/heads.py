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
