"""How fast a network computes, compared with a plain convolution beside it on the same machine."""

import statistics
import time

import torch
from torch import nn

CHANNELS, HEIGHT, WIDTH = 256, 100, 136
GFLOP = 2 * HEIGHT * WIDTH * 9 * CHANNELS**2 / 1e9  # a multiplication and an addition are two operations


class PlainConvolution:
    """
    A 3x3 convolution of 256 channels, about the fastest layer of any network.

    Args:
        dtype: of its input and weights.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, device=device, dtype=dtype)
        self.layer.to(memory_format=torch.channels_last)
        x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device, dtype=dtype)
        self.x = x.to(memory_format=torch.channels_last)
        self.name = str(dtype).replace("torch.", "")
        self.seconds = []

    @torch.inference_mode()
    def run(self) -> None:
        """Record the best time of three: it is short, so that whatever else the machine does hits it harder."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self.layer(self.x)
            if self.x.is_cuda:
                torch.cuda.synchronize(self.x.device)
            times.append(time.perf_counter() - start)
        self.seconds.append(min(times))

    def compare(self, gflop: float, seconds: list[float]) -> str:
        """The rate of a network of ``gflop`` that took ``seconds``, in words. Times are medians."""
        own, most = gflop / statistics.median(seconds), GFLOP / statistics.median(self.seconds)
        return f"{self.name} {own:.0f} GFLOP/s, {own / most:.0%} of a 3x3 convolution's {most:.0f}"
