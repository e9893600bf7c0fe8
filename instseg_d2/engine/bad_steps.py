"""Handles steps whose loss or gradient is not finite: undoes them, logs them and keeps their images."""

import logging
import math
import os

import torch
from detectron2.structures import PolygonMasks
from detectron2.utils import comm

from ..files import atomic_write

__all__ = ["BadSteps", "keep_batch"]

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 10


class BadSteps:
    """Undoes the effect of a bad step on the model's buffers, and ends training after ten bad steps in a row."""

    def __init__(self, model: torch.nn.Module, output_dir: str):
        self._model = model
        self._buffers = []
        self._output_dir = output_dir
        self._in_a_row = 0

    def before_step(self) -> None:
        """Save the current buffers, such as running statistics, which precise statistics replace by new tensors."""
        current = list(self._model.buffers())
        if [id(buffer) for buffer in current] != [id(buffer) for buffer, _ in self._buffers]:
            self._buffers = [(buffer, buffer.clone()) for buffer in current]
            return
        for buffer, kept in self._buffers:
            kept.copy_(buffer)

    def good(self) -> None:
        """Reset the count of bad steps in a row."""
        self._in_a_row = 0

    def skip(self, iteration: int, values: dict, losses: dict, batch: list) -> None:
        """
        Undo a bad step and keep its batch in OUTPUT_DIR. Call it in all processes.

        Args:
            values: the losses and the gradient norm, averaged over the processes; not all are finite.
            losses: the losses of this process.
            batch: the inputs of this process.

        Raises:
            FloatingPointError: this was the tenth bad step in a row.
        """
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        files = []
        own = not all(torch.isfinite(loss).all() for loss in losses.values())
        if own or all(math.isfinite(values[name]) for name in losses):  # this process's loss, or the common gradient
            files = [str(x.get("file_name", x.get("image_id", "?"))) for x in batch]
            keep_batch(self._output_dir, iteration, values, batch)
        files = [name for names in comm.all_gather(files) for name in names]
        self._in_a_row += 1
        fault = (
            f"a loss or gradient is not finite at iteration {iteration} "
            f"({', '.join(f'{name} = {value:.4g}' for name, value in values.items())}) on the images {', '.join(files)}"
        )
        if self._in_a_row < MAX_IN_A_ROW:
            logger.warning("%s: the step is skipped (%d in a row).", fault, self._in_a_row)
            return
        raise FloatingPointError(
            f"{fault}, and in the {MAX_IN_A_ROW - 1} iterations before: check their annotations, lower "
            "SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True."
        )


def keep_batch(folder: str, iteration: int, losses: dict, batch: list) -> None:
    """Save images, boxes, classes and masks of a batch to ``folder/bad_batch.pth`` as plain tensors and numbers."""
    images = []
    for sample in batch:
        fields = sample["instances"].get_fields() if "instances" in sample else {}
        names = ("file_name", "image_id", "image", "basis_sem", "sem_seg")
        kept = {key: sample[key] for key in names if key in sample}
        kept.update({"boxes": fields["gt_boxes"].tensor, "classes": fields["gt_classes"]} if fields else {})
        masks = fields.get("gt_masks")
        if isinstance(masks, PolygonMasks):
            kept["polygons"] = [[part.tolist() for part in polygons] for polygons in masks.polygons]
        elif masks is not None:
            kept["masks"] = masks.tensor
        images.append(kept)
    name = f"bad_batch_{comm.get_rank()}.pth" if comm.get_world_size() > 1 else "bad_batch.pth"
    with atomic_write(os.path.join(folder, name)) as path:
        torch.save({"iteration": iteration, "losses": losses, "images": images}, path)
