"""Compiled operators against plain PyTorch: ``python -m projects.benchmarks.operators``."""

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from instseg_d2.apps.costs import interleaved_medians
from instseg_d2.ops import assemble_instances, blend_masks, grown_windows, has_extension, mask_prob, reference


class OpRow(NamedTuple):
    """Medians in milliseconds; ``ratio`` is the reference's over the kernel's."""

    op: str
    case: str
    direction: str  # "forward" or "forward+backward"
    kernel_ms: float
    reference_ms: float
    ratio: float


def op_table(repeats: int = 20, device: str = "cpu") -> list[OpRow]:
    """Times every operator; kernel and reference take turns in one run. Returns one row per case and direction.

    ``blend_masks`` (K = 4, R = 56, A = 14, bases of 200 x 272 cells): inference with 100 boxes of 10 to 700 pixels on
    an image of 800 x 1088, and training with 300 positive locations of 20 boxes on two such images.
    ``mask_prob`` (D = 16, a map of 200 x 336 cells): 100 boxes of 16 to 300 pixels at stride 4. The reference is the
    fastest plain formulation, over the whole map (see ``mask_prob_products``).
    ``assemble_instances`` (k = 5): 2000 windows of 21 x 21 on a map of 75 x 100 cells.

    Without the extension (see ``has_extension``) the kernel is plain PyTorch, too.
    """
    rows = []
    for case, images, boxes, masks in (("100 boxes", 1, 100, 100), ("300 positives of 20 boxes", 2, 20, 300)):
        inputs = blend_masks_inputs(images, boxes, masks, device=device)
        leaves = ("bases", "attention")
        rows += _rows("blend_masks", case, [blend_masks, reference.blend_masks], inputs, leaves, repeats, device)
    leaves = ("pixel_embeddings", "proposal_embeddings", "margins")
    ops, inputs = [mask_prob, mask_prob_products], mask_prob_inputs(device=device)
    rows += _rows("mask_prob", "100 boxes, D = 16", ops, inputs, leaves, repeats, device)
    ops, inputs = [assemble_instances, reference.assemble_instances], assemble_instances_inputs(device=device)
    return rows + _rows("assemble_instances", "2000 windows, k = 5", ops, inputs, ("score_maps",), repeats, device)


def _rows(op, case, functions, inputs, leaves, repeats, device) -> list[OpRow]:
    rows = []
    for direction in ("forward", "forward+backward"):
        calls = [_call(function, inputs, leaves if direction == "forward+backward" else ()) for function in functions]
        kernel_ms, reference_ms = interleaved_medians(calls, repeats, device)
        rows.append(OpRow(op, case, direction, kernel_ms, reference_ms, reference_ms / kernel_ms))
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


def mask_prob_inputs(device: str = "cpu") -> dict[str, Tensor]:
    """Random arguments of ``mask_prob``: boxes of 16 to 300 pixels, grown by a cell, and a margin per dimension."""
    generator = torch.Generator().manual_seed(0)
    sides = 4 * (300 / 16) ** torch.rand(100, 2, generator=generator)
    centers = torch.rand(100, 2, generator=generator) * torch.tensor([336.0, 200.0])
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    inputs = {
        "pixel_embeddings": torch.randn(1, 16, 200, 336, generator=generator),
        "proposal_embeddings": torch.randn(100, 16, generator=generator),
        "margins": torch.rand(100, 16, generator=generator),
        "windows": grown_windows(boxes, 1.0, 200, 336),
        "image_index": torch.zeros(100, dtype=torch.int64),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def mask_prob_products(
    pixel_embeddings: Tensor, proposal_embeddings: Tensor, margins: Tensor, windows: Tensor, image_index: Tensor
) -> Tensor:
    """Log-probabilities (M, H * W) over the whole map of one image: the square is expanded into a matrix product."""
    planes = pixel_embeddings[0].flatten(1)
    weighted = margins * proposal_embeddings
    constant = -(weighted * proposal_embeddings).sum(dim=1, keepdim=True)
    return torch.addmm(constant, torch.cat([-margins, 2 * weighted], dim=1), torch.cat([planes.square(), planes]))


def assemble_instances_inputs(device: str = "cpu") -> dict:
    """Random arguments of ``assemble_instances``; the windows are centred on cells of the map."""
    generator = torch.Generator().manual_seed(0)
    places = [torch.randint(size, (2000,), generator=generator) - 10 for size in (75, 100)]
    windows = torch.stack([torch.zeros(2000, dtype=torch.int64), *places], dim=1)
    score_maps = torch.randn(1, 25, 75, 100, generator=generator)
    return {"score_maps": score_maps.to(device), "windows": windows.to(device), "mask_size": 21, "grid": 5}


def format_table(rows: list[OpRow]) -> str:
    """The rows as aligned lines of text, with a header."""
    lines = [f"{'op':<18} {'case':<26} {'direction':<17} {'kernel ms':>10} {'reference ms':>13} {'ratio':>6}"]
    for row in rows:
        times = f"{row.kernel_ms:>10.2f} {row.reference_ms:>13.2f} {row.ratio:>5.1f}x"
        lines.append(f"{row.op:<18} {row.case:<26} {row.direction:<17} {times}")
    return "\n".join(lines)


def _call(op: Callable[..., Tensor], inputs: dict, leaves: Sequence[str]) -> Callable[[], object]:
    """A function that runs the forward pass and, if there are ``leaves``, the backward pass to these arguments."""
    if not leaves:
        return lambda: op(**inputs)
    arguments = {**inputs, **{name: inputs[name].clone().requires_grad_() for name in leaves}}
    grad = torch.randn_like(op(**inputs))
    return lambda: torch.autograd.grad(op(**arguments), [arguments[name] for name in leaves], grad)


if __name__ == "__main__":
    print(f"extension: {has_extension()}; {torch.get_num_threads()} threads")
    print(format_table(op_table()))
