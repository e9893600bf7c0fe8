"""Loss functions that several methods share."""

from .distributed import mean_over_workers
from .ltrb_iou import LTRB_LOSSES, ltrb_iou_loss, ltrb_ious

__all__ = ["LTRB_LOSSES", "ltrb_iou_loss", "ltrb_ious", "mean_over_workers"]
