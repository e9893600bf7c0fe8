"""
Finds the feature maps of a timm network and the parameters that each depends on, by running the network on meta
tensors: timm's own description is not correct for all networks. N images, C channels, H x W pixels.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import torch

# Test sizes (H, W): multiples of 64, multiples of 32, and odd numbers.
_SIZE, _OTHER_SIZE, _ODD_SIZE = (128, 192), (224, 352), (135, 201)


class Map(NamedTuple):
    """
    A feature map.

    Attributes:
        index: its index in timm.
        channels: C.
        stride: in pixels; None if its size is not the image's divided by a stride.
        parameters: names of the parameters that it depends on.
    """

    index: int
    channels: int
    stride: Optional[int]
    parameters: frozenset[str]


class Probe(NamedTuple):
    """
    What is known about a network.

    Attributes:
        maps: its feature maps.
        size_divisibility: height and width of the input must be multiples of this; 0 for any size.
        arguments: arguments of ``create_model`` that make it accept images of any size.
    """

    maps: tuple[Map, ...]
    size_divisibility: int
    arguments: dict


def import_timm():
    """
    Import timm.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("MODEL.BACKBONE.NAME needs timm: pip install timm") from error
    return timm


def probe(name: str, arguments: dict) -> Probe:
    """
    Probe a network.

    Args:
        name: timm's name of the network.
        arguments: passed to timm's ``create_model``.

    Raises:
        ValueError: the network has no feature maps, or does not run on images of any size.
    """
    return _probe(name, tuple(sorted(arguments.items())))


def maps_of(net, x: torch.Tensor) -> list[torch.Tensor]:
    """Run timm's ``features_only`` network: x (N, 3, H, W) -> maps (N, C, H', W')."""
    maps = net(x)
    if getattr(net, "output_fmt", None) == "NHWC":
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps]
    return list(maps)


@functools.lru_cache(maxsize=32)
def _probe(name: str, arguments: tuple) -> Probe:
    try:
        return _measure(name, dict(arguments), "meta")
    except Exception as error:  # timm's networks raise errors of all kinds
        if "meta" in str(error):  # the network reads tensor values, which meta tensors lack
            try:
                return _measure(name, dict(arguments), "cpu")
            except Exception as second:
                error = second
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ValueError(
            f"{name} of timm cannot be a backbone, because it has no maps for images of any size ({reason}); most "
            "convolutional networks have."
        ) from error


@torch.inference_mode(False)
@torch.enable_grad()  # whatever modes the caller has set
def _measure(name: str, arguments: dict, device: str) -> Probe:
    with torch.device(device), torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, arguments = _create(name, arguments)
        indices = [i for i, stage in enumerate(net.feature_info.info) if stage["module"]]
        net = _create(name, {**arguments, "out_indices": indices})[0].eval()

        def run(size: tuple[int, int]) -> list[torch.Tensor]:
            return maps_of(net, torch.zeros(1, arguments.get("in_chans", 3), *size))

        maps = run(_SIZE)
        with torch.no_grad():
            strides = [_stride(m, other) for m, other in zip(maps, run(_OTHER_SIZE))]
            divisibility = 0 if _fits(run, strides) else 32
        found = [Map(i, m.shape[1], stride, _sources(net, m)) for i, m, stride in zip(indices, maps, strides)]
    return Probe(tuple(found), divisibility, arguments)


def _create(name: str, arguments: dict):
    """(network, arguments), with timm's option for images of any size if the network supports it."""
    timm = import_timm()
    try:
        given = {"dynamic_img_size": True, **arguments}
        return timm.create_model(name, features_only=True, **given), given
    except TypeError:
        return timm.create_model(name, features_only=True, **arguments), arguments


def _stride(m: torch.Tensor, other: torch.Tensor) -> Optional[int]:
    """The stride of a map, if the map sizes of both images are the image sizes divided by it, rounded up."""
    stride = _SIZE[0] // m.shape[2] if m.dim() == 4 else 0
    return stride if stride and _is_part(m, _SIZE, stride) and _is_part(other, _OTHER_SIZE, stride) else None


def _is_part(m: torch.Tensor, size: tuple[int, int], stride: int) -> bool:
    return m.shape[2:] == tuple(-(-side // stride) for side in size)


def _fits(run: Callable, strides: Sequence[Optional[int]]) -> bool:
    """Whether the network has the same strides on images of any size."""
    try:
        maps = run(_ODD_SIZE)
    except Exception:
        return False
    return all(stride is None or _is_part(m, _ODD_SIZE, stride) for m, stride in zip(maps, strides))


def _sources(net, m: torch.Tensor) -> frozenset[str]:
    """The names of the parameters that a map depends on."""
    names, values = zip(*((name, p) for name, p in net.named_parameters() if p.requires_grad))
    found = torch.autograd.grad(m.sum(), values, retain_graph=True, allow_unused=True)
    return frozenset(name for name, gradient in zip(names, found) if gradient is not None)
