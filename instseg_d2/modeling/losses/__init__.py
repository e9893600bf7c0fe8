"""Loss functions that several methods share."""

from .ltrb_iou import LTRB_LOSSES, ltrb_iou_loss, ltrb_ious
from .normalizers import mean_over_workers
from .paired_giou import paired_giou_loss

__all__ = ["LTRB_LOSSES", "ltrb_iou_loss", "ltrb_ious", "mean_over_workers", "paired_giou_loss"]
