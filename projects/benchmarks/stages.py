"""Times the stages of inference and training; plain and optimised models take turns, because machines are noisy."""

import contextlib
import copy
import math
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from torch.utils.flop_counter import FlopCounterMode

from instseg_d2.apps.costs import cpu_peak, interleaved_medians
from instseg_d2.data import InstanceDatasetMapper, make_shapes, register_coco
from instseg_d2.data.images import read_image
from instseg_d2.errors import ConfigError
from instseg_d2.evaluation.coco import coco_results
from instseg_d2.inference.cpu import keep_freed_memory
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.inference.precision import autocast_type
from instseg_d2.modeling.postprocessing import masks_to_boxes
from instseg_d2.visualization import draw_instances

from .plain import PLAIN
from .rates import PlainConvolution

STAGES = ("load", "preprocess", "network", "post-process", "draw")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_module(model):
    """
    The module with the plain version of a method.

    Raises:
        ConfigError: there is none.
    """
    name = type(model).__name__
    if name not in PLAIN:
        raise ConfigError(f"{name} has no plain version to compare with; these have one: {', '.join(PLAIN)}.")
    return PLAIN[name]


def plain_model(model):
    """A copy of the model with `plain_infer` and, if there is one, `plain_postprocess` of its `plain_module`."""
    module, twin = plain_module(model), copy.copy(model)
    twin.infer = lambda images: [{"instances": x} for x in module.plain_infer(model, images)]
    if hasattr(module, "plain_postprocess"):
        twin.postprocess = lambda result, size, masks=True: module.plain_postprocess(model, result, size)
    return twin


class StageTimer:
    """
    Runs a model on images and records the seconds of each stage.

    Args:
        model: in eval mode.
        keep_memory: see `keep_freed_memory`.
        autocast: autocast dtype of the network, or None.
    """

    def __init__(self, model, keep_memory: bool = True, autocast=None):
        self.model = copy.copy(model)
        self.model.infer = self._infer
        self.network = model.infer
        self.keep_memory = keep_memory
        self.autocast = autocast
        self.seconds = {stage: [] for stage in STAGES}

    def _infer(self, images):
        """The model's `infer`, with time stamps before and after it."""
        precision = torch.autocast(images.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        self.marks.append(self._now())
        with precision:
            found = self.network(images)
        self.marks.append(self._now())
        return found

    @torch.inference_mode()
    def run(self, path: str, size: tuple) -> None:
        """Read an image, resize it to (H, W), detect, draw, and record the time of each stage."""
        keep_freed_memory(self.keep_memory)
        self.marks = [self._now()]
        image_rgb = read_image(path, "RGB")
        self.marks.append(self._now())
        image_rgb = cv2.resize(image_rgb, size[::-1], interpolation=cv2.INTER_LINEAR)
        channels = image_rgb if self.model.input_format == "RGB" else image_rgb[..., ::-1]
        image = torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))
        sample = {"image": image, "height": size[0], "width": size[1]}
        (output,) = self.model.detect([sample])
        self.marks.append(self._now())
        draw_instances(image_rgb, output["instances"])
        self.marks.append(self._now())
        for stage, start, stop in zip(STAGES, self.marks[:-1], self.marks[1:]):
            self.seconds[stage].append(stop - start)

    def _now(self) -> float:
        _synchronize(self.model.device)
        return time.perf_counter()

    def medians(self) -> list[float]:
        """Median milliseconds of each stage and of their sum."""
        rows = [[t * 1000 for t in self.seconds[stage]] for stage in STAGES]
        return [statistics.median(row) for row in rows] + [statistics.median(map(sum, zip(*rows)))]


def stage_rows(model, path: str, size: tuple = (800, 1088), repeats: int = 5) -> tuple[list[str], list[list], str]:
    """
    Median milliseconds of each stage on one image: plain, optimised and, if the device supports it, optimised under
    autocast; and how fast the optimised network is, compared with a plain convolution.

    Args:
        model: a method of this package in eval mode.
        path: path of an image.
        size: (H, W) of the network's input before padding, pixels.
        repeats: number of runs after one warm-up.

    Returns:
        the headers, one row per stage and for their sum, and a line with the rates. A ratio is the plain time over that
        in the column before. Only convolutions, except deformable ones, and matrix products count as operations.
    """
    fast = optimize_for_inference(model)
    timers = [StageTimer(plain_model(model), keep_memory=False), StageTimer(fast)]
    headers = ["stage", "plain ms", "optimised ms", "ratio"]
    convolutions = [PlainConvolution(model.device, torch.float32)]
    half = autocast_type(True, model.device)
    if half is not None:
        timers.append(StageTimer(fast, autocast=half))
        convolutions.append(PlainConvolution(model.device, half))
        headers += [f"{convolutions[-1].name} ms", "ratio"]
    with FlopCounterMode(display=False) as counter:
        timers[1].run(path, size)
    for repeat in range(repeats + 1):
        for timer in timers:
            timer.run(path, size)
        for convolution in convolutions:
            convolution.run()
        if repeat == 0:
            for timer in timers:
                timer.seconds = {stage: [] for stage in STAGES}
    rows = []
    for name, plain, *others in zip((*STAGES, "all"), *(timer.medians() for timer in timers)):
        rows.append([name, plain, *(value for other in others for value in (other, plain / other))])
    gflop = counter.get_total_flops() / 1e9
    rates = (x.compare(gflop, timer.seconds["network"]) for x, timer in zip(convolutions, timers[1:]))
    return headers, rows, "; ".join([f"network of {gflop:.3g} GFLOP", *rates])


def training_samples(cfg, folder: str, count: int) -> list:
    """The first ``count`` generated images with objects, as training samples with bitmasks."""
    name = "benchmark_shapes"
    if name not in DatasetCatalog.list():
        register_coco(name, make_shapes(folder, "train", 4 * count, 0), os.path.join(folder, "images"))
    cfg = cfg.clone()
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = InstanceDatasetMapper(cfg, is_train=True)
    return [sample for sample in map(mapper, DatasetCatalog.get(name)) if len(sample["instances"])][:count]


def training_row(model, samples: list, repeats: int = 5) -> list:
    """
    Median milliseconds of a forward and backward pass: [plain, as trained, ratio].

    Args:
        model: a method of this package whose `plain_module` has `plain_losses(model, images, gt_instances)`.
        samples: a batch of a training mapper, with bitmasks.
    """
    model.train()

    def plain(images):
        return plain_module(model).plain_losses(model, images, model.gt_instances(samples))

    def step(losses: Callable) -> Callable:
        def run():
            sum(losses(model.preprocess(samples)).values()).backward()
            model.zero_grad()

        return run

    steps = [step(plain), step(lambda images: model.losses(images, samples))]
    plain_ms, own_ms = interleaved_medians(steps, repeats, str(model.device))
    return [plain_ms, own_ms, plain_ms / own_ms]


@torch.no_grad()
def some_detections(model, count: int, size: tuple = (96, 128)) -> Instances:
    """``count`` detections in an image of noise (H, W), without empty boxes, repeated if there are fewer."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    result = model.infer(model.preprocess([{"image": image}]))[0]["instances"]
    if result.has("pred_boxes"):
        boxes = result.pred_boxes.clone()
        boxes.clip(result.image_size)
        result = result[boxes.nonempty(threshold=1)]
    return result[torch.arange(count, device=result.scores.device) % len(result)]


@torch.no_grad()
def large_image_row(model, count: int = 300, size: tuple = (3000, 4000)) -> list:
    """
    Cost of postprocessing detections to run lengths on an image of size (H, W): [number of detections, peak bytes,
    seconds].
    """
    result, outputs = some_detections(model, count), []
    twin = copy.copy(model)
    twin.infer = lambda images: [{"instances": result}]
    sample = {"image": torch.zeros((3, *result.image_size), dtype=torch.uint8), "height": size[0], "width": size[1]}

    def run():
        outputs[:] = twin.detect([sample], masks="run_lengths")

    start = time.perf_counter()
    peak = cpu_peak(run)
    return [len(outputs[0]["instances"]), peak, time.perf_counter() - start]


def _ellipses(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Masks (count, height, width) bool of about the size of COCO's objects: the median side is 1/7 of the image."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        centre = generator.uniform((0, 0), (width, height)).astype(int).tolist()
        axes = (np.exp(generator.normal(math.log(0.07), 0.7, 2)) * (width, height)).astype(int) + 2
        cv2.ellipse(mask, centre, axes.tolist(), float(generator.uniform(0, 180)), 0, 360, 1, -1)
    return torch.from_numpy(masks.astype(bool))


def conversion_row(images: int = 20, masks: int = 100, size: tuple = (480, 640)) -> list:
    """
    Median milliseconds of converting an image's detections to COCO's results: [Detectron2, this package, ratio].

    Args:
        size: (H, W) of the images, pixels.
    """
    seconds = [[], []]
    for seed in range(images):
        pixels = _ellipses(masks, *size, seed)
        instances = Instances(size, pred_masks=pixels, pred_boxes=Boxes(masks_to_boxes(pixels)))
        instances.scores, instances.pred_classes = torch.rand(masks), torch.zeros(masks, dtype=torch.int64)
        for number, convert in enumerate((instances_to_coco_json, coco_results)):
            start = time.perf_counter()
            convert(instances, seed)
            seconds[number].append(time.perf_counter() - start)
    plain_ms, own_ms = (statistics.median(times) * 1000 for times in seconds)
    return [plain_ms, own_ms, plain_ms / own_ms]
