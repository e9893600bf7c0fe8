"""Compiled operators against plain PyTorch: ``python -m projects.benchmarks.operators``."""

from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from instseg_d2.apps.costs import interleaved_medians
from instseg_d2.ops import assemble_instances, blend_masks, grown_windows, has_extension, mask_prob, reference

DIRECTIONS = ("forward", "forward+backward")


class OpRow(NamedTuple):
    """Medians in milliseconds; ``ratio`` is the reference's over the kernel's."""

    op: str
    case: str
    direction: str  # one of DIRECTIONS
    kernel_ms: float
    reference_ms: float
    ratio: float


class Sizes(NamedTuple):
    """What is timed: images, boxes and masks of ``blend_masks``; objects of ``mask_prob``; images and windows an image
    of ``assemble_instances``."""

    blend_masks: Sequence[tuple[int, int, int]] = ((1, 100, 100), (2, 20, 300))
    mask_prob: Sequence[int] = (100,)
    assemble_instances: Sequence[tuple[int, int]] = ((1, 2000),)


class Case(NamedTuple):
    """Arguments of an operator, its reference, and the arguments that get gradients."""

    op: str
    case: str
    functions: tuple[Callable, Callable]
    inputs: dict
    leaves: Sequence[str]

    def calls(self, direction: str) -> list[Callable[[], object]]:
        """Kernel and reference as functions without arguments; ``direction`` as in `OpRow`."""
        return [_call(x, self.inputs, self.leaves if direction == DIRECTIONS[1] else ()) for x in self.functions]


def cases(device: str, sizes: Sizes = Sizes()) -> Iterator[Case]:  # noqa: B008 (a tuple)
    """
    ``blend_masks`` (K = 4, R = 56, A = 14, bases of 200 x 272 cells): boxes of 10 to 700 pixels on 800 x 1088.
    ``mask_prob`` (D = 16, a map of 200 x 336 cells): boxes of 16 to 300 pixels at stride 4. The reference is the
    fastest plain formulation, over the whole map (see ``mask_prob_products``).
    ``assemble_instances`` (k = 5): windows of 21 x 21 on maps of 75 x 100 cells.
    """
    for images, boxes, masks in sizes.blend_masks:
        case = f"{boxes} boxes" if masks == boxes else f"{masks} positives of {boxes} boxes"
        inputs = blend_masks_inputs(images, boxes, masks, device)
        yield Case("blend_masks", case, (blend_masks, reference.blend_masks), inputs, ("bases", "attention"))
    leaves = ("pixel_embeddings", "proposal_embeddings", "margins")
    for objects in sizes.mask_prob:
        inputs = mask_prob_inputs(objects, device)
        yield Case("mask_prob", f"{objects} boxes, D = 16", (mask_prob, mask_prob_products), inputs, leaves)
    for images, windows in sizes.assemble_instances:
        case = f"{windows} windows, k = 5" if images == 1 else f"{images} x {windows} windows, k = 5"
        functions = (assemble_instances, reference.assemble_instances)
        yield Case(
            "assemble_instances", case, functions, assemble_instances_inputs(images, windows, device), ("score_maps",)
        )


def op_table(repeats: int = 20, device: str = "cpu", sizes: Sizes = Sizes()) -> list[OpRow]:  # noqa: B008
    """
    Times every operator; kernel and reference take turns in one run. Returns one row per case and direction.

    Without the extension (see ``has_extension``) the kernel is plain PyTorch, too.
    """
    rows = []
    for case in cases(device, sizes):
        for direction in DIRECTIONS:
            kernel_ms, reference_ms = interleaved_medians(case.calls(direction), repeats, device)
            rows.append(OpRow(case.op, case.case, direction, kernel_ms, reference_ms, reference_ms / kernel_ms))
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


def mask_prob_inputs(objects: int = 100, device: str = "cpu") -> dict[str, Tensor]:
    """Random arguments of ``mask_prob``: boxes of 16 to 300 pixels, grown by a cell, and a margin per dimension."""
    generator = torch.Generator().manual_seed(0)
    sides = 4 * (300 / 16) ** torch.rand(objects, 2, generator=generator)
    centers = torch.rand(objects, 2, generator=generator) * torch.tensor([336.0, 200.0])
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    inputs = {
        "pixel_embeddings": torch.randn(1, 16, 200, 336, generator=generator),
        "proposal_embeddings": torch.randn(objects, 16, generator=generator),
        "margins": torch.rand(objects, 16, generator=generator),
        "windows": grown_windows(boxes, 1.0, 200, 336),
        "image_index": torch.zeros(objects, dtype=torch.int64),
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


def assemble_instances_inputs(images: int = 1, windows: int = 2000, device: str = "cpu") -> dict:
    """Random arguments of ``assemble_instances``; the windows are centred on cells of the map, image after image."""
    generator = torch.Generator().manual_seed(0)
    places = [torch.randint(size, (images * windows,), generator=generator) - 10 for size in (75, 100)]
    image = torch.arange(images).repeat_interleave(windows)
    score_maps = torch.randn(images, 25, 75, 100, generator=generator)
    inputs = {"score_maps": score_maps, "windows": torch.stack([image, *places], dim=1)}
    return {**{name: tensor.to(device) for name, tensor in inputs.items()}, "mask_size": 21, "grid": 5}


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
