"""Measures the cost of a model on one image: parameters, multiply-adds, memory, time."""

import itertools
import json
import logging
import math
import os
import statistics
import tempfile
import time
import warnings
from typing import Callable

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..modeling.meta_arch import InstanceSegmenter, detect

__all__ = ["count_parameters", "gflops", "interleaved_medians", "peak_memory"]

logger = logging.getLogger(__name__)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, including frozen ones, without buffers and what only training has."""
    training = getattr(getattr(model, "module", model), "training_only", nn.Module())
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in training.parameters())


class _Network(nn.Module):
    """A method of this package without its full-size masks; any other model as a whole."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, samples):
        if isinstance(self.model, InstanceSegmenter):
            return self.model.infer(self.model.preprocess(samples))
        return self.model(samples)


def _deform_conv_flops(inputs, outputs) -> int:
    """Counted like a plain convolution of the same shape; inputs are (x, weight, offset, ...)."""
    return math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[1:])


@torch.no_grad()
def gflops(model: nn.Module, sample: dict) -> float:
    """
    Billions of multiply-adds of the network on an input record, counted by fvcore: convolutions, matrix products,
    norms and resizes, but not full-size masks, NMS, RoIAlign or this package's operators.

    If the model cannot be traced, PyTorch's counter counts convolutions and matrix products.
    """
    network = _Network(model)
    analysis = FlopCountAnalysis(network, [sample])
    analysis.set_op_handle("torchvision::deform_conv2d", _deform_conv_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        return analysis.total() / 1e9
    except (RuntimeError, TypeError) as error:
        logger.debug("%s cannot be traced: %s", type(model).__name__, error)
    with FlopCounterMode(display=False) as counter:
        network([sample])
    return counter.get_total_flops() / 2e9  # it counts a multiplication and an addition as two


def cpu_peak(run) -> int:
    """The peak of PyTorch's allocated bytes while ``run()`` runs."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in events), default=0)


@torch.no_grad()
def peak_memory(model: nn.Module, sample: dict) -> int:
    """Peak memory in bytes of detection on one input record, including full-size masks, without the weights."""
    device = next(model.parameters()).device
    detect(model, [sample])  # fills caches
    if device.type != "cuda":
        return cpu_peak(lambda: detect(model, [sample]))
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    detect(model, [sample])
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_medians(functions: list[Callable[[], object]], repeats: int, device: str = "cpu") -> list[float]:
    """Median milliseconds of each function over ``repeats`` rounds of all of them, after one warm-up round."""

    def timed(function: Callable[[], object]) -> float:
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        return 1000 * (time.perf_counter() - start)

    rounds = [[timed(function) for function in functions] for _ in range(repeats + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:])]
