"""
The tiled start: before training, each slot's activation map is a spot at a place of its own.

With the authors' start all maps are nearly even, so all slots see the same vector, and matching can tell them apart
only by chance. Here a few channels of the instance branch carry the coordinates, and the convolution of the maps reads
from them minus the squared distance to the slot's place. The network is the same; only its first weights differ.

Q slots, K knots, C channels. Coordinates are those of `coordinate_channels`, from -1 to 1.
"""

import math

import torch
from torch import nn

from ...config.sparseinst import KNOTS

__all__ = ["carries_coordinates", "places", "start_with_tiles"]

_GRID = torch.linspace(-1, 1, 401, dtype=torch.float64, device="cpu")


def places(num_slots: int) -> torch.Tensor:
    """Places (x, y) of the slots in rows of about equal distances: (Q, 2) float32, each coordinate in (-1, 1)."""
    rows = max(1, round(math.sqrt(num_slots)))
    counts = [num_slots // rows + (row < num_slots % rows) for row in range(rows)]
    middles = [_middles(n) for n in counts]
    ys = _middles(rows)
    return torch.cat([torch.stack([x, y.expand_as(x)], dim=1) for x, y in zip(middles, ys)])


def _middles(count: int) -> torch.Tensor:
    """The middles of so many equal parts of [-1, 1]."""
    return (torch.arange(count, device="cpu") + 0.5) / count * 2 - 1


def _knots() -> torch.Tensor:
    return -1 + 2 * torch.arange(KNOTS, dtype=torch.float64, device="cpu") / KNOTS


def _hinges(x: torch.Tensor) -> torch.Tensor:
    """max(0, x - knot) for each knot: (n,) -> (n, K)."""
    return (x[:, None] - _knots()).clamp(min=0)


def _fit(centre: float, sigma: float) -> tuple[torch.Tensor, float]:
    """Coefficients of the hinges, and a constant, whose sum is about -(x - centre)^2 / (2 sigma^2) near the centre."""
    squares = (_GRID - centre) ** 2
    root = 1 / (1 + squares / sigma**2)  # square root of the weight
    columns = torch.cat([_hinges(_GRID), torch.ones(len(_GRID), 1, dtype=torch.float64, device="cpu")], dim=1)
    target = -squares / (2 * sigma**2)
    solution = torch.linalg.lstsq(columns * root[:, None], (target * root)[:, None]).solution[:, 0]
    return solution[:-1].float(), float(solution[-1])


def _carry_coordinates(convs: nn.Sequential) -> None:
    """Let the first 2 K channels after each convolution be the hinges of x and of y, the first two input channels."""
    passed = torch.arange(2 * KNOTS, device="cpu")
    for number, conv in enumerate(layer for layer in convs if hasattr(layer, "weight")):
        conv.weight[passed] = 0
        source = passed // KNOTS if number == 0 else passed
        conv.weight[passed, source, 1, 1] = 1
        shift = -_knots().float().repeat(2).to(conv.weight) if number == 0 else conv.weight.new_zeros(2 * KNOTS)
        norm = getattr(conv, "norm", None)
        if norm is None:
            conv.bias[passed] = shift
            continue
        # The norm subtracts the mean and divides by the deviation over the image: undo both.
        values = _GRID[:, None].expand(-1, KNOTS) if number == 0 else _hinges(_GRID)
        scale, mean = (values.var(0, unbiased=False) + norm.eps).sqrt(), values.mean(0)
        norm.weight[passed] = scale.float().repeat(2).to(norm.weight)
        norm.bias[passed] = mean.float().repeat(2).to(norm.bias) + shift


@torch.no_grad()
def carries_coordinates(convs: nn.Sequential) -> bool:
    """
    Whether the first convolution is one that `start_with_tiles` set, also after training: the taps that carry the
    coordinates are 1 at first, and on average those of other convolutions are much smaller than a typical weight.
    """
    weight, passed = convs[0].weight, torch.arange(2 * KNOTS, device="cpu")
    return bool(weight[passed, passed // KNOTS, 1, 1].mean() > weight.square().mean().sqrt())


@torch.no_grad()
def start_with_tiles(branch: nn.Module, sharpness: float = 0.5) -> None:
    """
    Set the first weights of an `InstanceBranch`, in place.

    The activation of a slot's (first) map is 0.5 at its place, and falls off like a Gaussian.

    Args:
        sharpness: standard deviation of the spots, in distances between slots.

    Raises:
        ValueError: a group has fewer channels than the coordinates need.
    """
    conv = branch.iam_conv
    if conv.weight.shape[1] < 2 * KNOTS:
        raise ValueError(f"the tiled start needs {2 * KNOTS} channels in a group; there are {conv.weight.shape[1]}")
    _carry_coordinates(branch.convs)
    slots = branch.num_masks
    sigma = sharpness * 2 / math.sqrt(slots)
    conv.weight[:slots, : 2 * KNOTS] = 0
    for slot, place in enumerate(places(slots).tolist()):
        fits = [_fit(centre, sigma) for centre in place]
        conv.weight[slot, : 2 * KNOTS, 1, 1] = torch.cat([fit[0] for fit in fits]).to(conv.weight)
        conv.bias[slot] = sum(fit[1] for fit in fits)
