"""Keys of mask heads for any box detector."""

from detectron2.config import CfgNode


def add_heads_config(cfg: CfgNode) -> None:
    """Add MODEL.ASSEMBLE_MASK_HEAD, in place. The rest of AssembleMaskHead is under MODEL.ROI_MASK_HEAD."""
    node = CfgNode()
    node.GRID = 5  # k: a box is divided k x k
    node.IN_FEATURE = "p3"  # the one of MODEL.ROI_HEADS.IN_FEATURES that the score maps are made from
    cfg.MODEL.ASSEMBLE_MASK_HEAD = node
