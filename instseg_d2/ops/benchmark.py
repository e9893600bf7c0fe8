"""Compiled operators against their plain PyTorch twins: ``python -m instseg_d2.ops.benchmark``."""

import statistics
import time
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from . import blend_masks, has_extension, reference


class OpRow(NamedTuple):
    """Medians in milliseconds; ``ratio`` is the reference's over the kernel's."""

    op: str
    case: str
    direction: str  # "forward" or "forward+backward"
    kernel_ms: float
    reference_ms: float
    ratio: float


def op_table(repeats: int = 20, device: str = "cpu") -> list[OpRow]:
    """Times every operator in one run, kernel and reference taking turns so that both meet the same machine.

    The cases of ``blend_masks`` (K = 4, R = 56, A = 14, bases of 200 x 272 cells): inference with 100 boxes from
    10 to 700 pixels on an image of 800 x 1088, and training with 300 positive locations of 20 boxes on two such
    images. Returns one row per case and direction; without the extension (see ``has_extension``) both sides are
    the reference.
    """
    rows = []
    for case, images, boxes, masks in (("100 boxes", 1, 100, 100), ("300 positives of 20 boxes", 2, 20, 300)):
        inputs = blend_masks_inputs(images, boxes, masks, device=device)
        grad = torch.randn(masks, 56, 56, device=device)
        for direction in ("forward", "forward+backward"):
            upper = grad if direction == "forward+backward" else None
            kernel, plain = (_call(op, inputs, upper) for op in (blend_masks, reference.blend_masks))
            kernel_ms, reference_ms = interleaved_medians([kernel, plain], repeats, device)
            rows.append(OpRow("blend_masks", case, direction, kernel_ms, reference_ms, reference_ms / kernel_ms))
    return rows


def blend_masks_inputs(images: int, boxes: int, masks: int, device: str = "cpu") -> dict[str, Tensor]:
    """Random arguments of ``blend_masks``; one mask per box when the counts are equal, else of random boxes."""
    generator = torch.Generator().manual_seed(0)
    sides = 10 * 70 ** torch.rand(boxes, 2, generator=generator)
    centers = torch.rand(boxes, 2, generator=generator) * torch.tensor([1088.0, 800.0])
    inputs = {
        "bases": torch.randn(images, 4, 200, 272, generator=generator),
        "boxes": torch.cat([centers - sides / 2, centers + sides / 2], dim=1),
        "batch_index": torch.randint(images, (boxes,), generator=generator),
        "attention": torch.randn(masks, 4, 14, 14, generator=generator),
    }
    if masks != boxes:
        inputs["box_index"] = torch.randint(boxes, (masks,), generator=generator)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def interleaved_medians(functions: list[Callable[[], object]], repeats: int, device: str = "cpu") -> list[float]:
    """Median milliseconds of each function over ``repeats`` rounds of all of them, after one round unmeasured."""

    def timed(function: Callable[[], object]) -> float:
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        return 1000 * (time.perf_counter() - start)

    rounds = [[timed(function) for function in functions] for _ in range(repeats + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:])]


def format_table(rows: list[OpRow]) -> str:
    """The rows as aligned lines of text, with a header."""
    lines = [f"{'op':<12} {'case':<26} {'direction':<17} {'kernel ms':>10} {'reference ms':>13} {'ratio':>6}"]
    for row in rows:
        times = f"{row.kernel_ms:>10.2f} {row.reference_ms:>13.2f} {row.ratio:>5.1f}x"
        lines.append(f"{row.op:<12} {row.case:<26} {row.direction:<17} {times}")
    return "\n".join(lines)


def _call(op: Callable[..., Tensor], inputs: dict[str, Tensor], grad: Optional[Tensor] = None) -> Callable[[], object]:
    if grad is None:
        return lambda: op(**inputs)
    leaves = [inputs[name].clone().requires_grad_() for name in ("bases", "attention")]
    arguments = {**inputs, "bases": leaves[0], "attention": leaves[1]}
    return lambda: torch.autograd.grad(op(**arguments), leaves, grad)


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(f"extension: {has_extension()}; {torch.get_num_threads()} threads")
    print(format_table(op_table()))
