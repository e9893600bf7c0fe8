"""Where the time goes, plain against optimised, measured in turns in one run because machines are noisy."""

import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from ..data.images import read_image
from ..modeling.blendmask.plain import plain_infer
from ..visualization import draw_instances
from .inference import optimize_for_inference
from .memory import keep_freed_memory

STAGES = ("load", "preprocess", "network", "post-process", "draw")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StageTimer:
    """Runs one model on one sample stage by stage and keeps the seconds of each."""

    def __init__(self, model, infer: Callable, keep_memory: bool):
        self.model = model
        self.keep_memory = keep_memory
        self.infer = infer
        self.seconds = {stage: [] for stage in STAGES}

    @torch.inference_mode()
    def run(self, path: str, size: tuple) -> None:
        """Read an image, resize it to (H, W), detect, draw; append the time of each stage."""
        keep_freed_memory(self.keep_memory)
        marks = [self._now()]
        image_rgb = read_image(path, "RGB")
        marks.append(self._now())
        image_rgb = cv2.resize(image_rgb, size[::-1], interpolation=cv2.INTER_LINEAR)
        channels = image_rgb if self.model.input_format == "RGB" else image_rgb[..., ::-1]
        image = torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))
        sample = {"image": image, "height": size[0], "width": size[1]}
        images = self.model.preprocess([sample])
        marks.append(self._now())
        results = self.infer(self.model, images)
        marks.append(self._now())
        (output,) = self.model.postprocess(results, [sample])
        marks.append(self._now())
        draw_instances(image_rgb, output["instances"])
        marks.append(self._now())
        for stage, start, stop in zip(STAGES, marks[:-1], marks[1:]):
            self.seconds[stage].append(stop - start)

    def _now(self) -> float:
        _synchronize(self.model.device)
        return time.perf_counter()

    def medians(self) -> list[float]:
        """Median milliseconds of each stage, and of the sum."""
        rows = [[t * 1000 for t in self.seconds[stage]] for stage in STAGES]
        return [statistics.median(row) for row in rows] + [statistics.median(map(sum, zip(*rows)))]


def stage_rows(model, path: str, size: tuple = (800, 1088), repeats: int = 5) -> list[list]:
    """
    Milliseconds of every stage on one image, plain and optimised in turns.

    Args:
        model: a BlendMask in evaluation mode.
        path: of an image file.
        size: (H, W) of the network's input, pixels.
        repeats: runs of each, after one warm-up.

    Returns:
        rows [stage, plain ms, optimised ms, ratio]; the last is the sum of a run.
    """
    plain = StageTimer(model, plain_infer, keep_memory=False)
    fast = StageTimer(optimize_for_inference(model), lambda model, images: model.infer(images), keep_memory=True)
    for repeat in range(repeats + 1):
        for timer in (plain, fast):
            timer.run(path, size)
            if repeat == 0:
                timer.seconds = {stage: [] for stage in STAGES}
    names = (*STAGES, "all")
    return [[name, a, b, a / b] for name, a, b in zip(names, plain.medians(), fast.medians())]
