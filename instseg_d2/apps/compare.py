"""Compares models on the same data: same training and evaluation, interleaved timing, pictures side by side."""

import itertools
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Optional

import cv2
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from tabulate import tabulate

from ..checkpoint import InstSegCheckpointer
from ..config import load_config
from ..data import class_names, read_image
from ..data.coco import require_registered
from ..engine.setup import argument_parser, setup
from ..engine.trainer import Trainer
from ..errors import DatasetError
from ..evaluation import ProposalRecallEvaluator
from ..files import write_bytes
from ..inference.predictor import Predictor
from ..inference.tiles import in_tiles, seen_by_network
from ..methods import method_of
from ..modeling.meta_arch import detect
from ..visualization import draw_annotations, draw_instances, titled_grid
from .costs import count_parameters, gflops, interleaved_medians, peak_memory

__all__ = ["Contender", "compare", "contender_names", "find_data", "join"]

logger = logging.getLogger(__name__)

AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALL_COLUMN = "AR@100"  # class-agnostic recall of masks: the one metric that every model has
NOTE = """
AP of masks in percent, over {images} images of {data}. AR@100: average recall of the best 100 masks of an image,
regardless of class. GFLOPs: billions of multiply-adds of the network on one image. Latency: median time of one
image from pixels to full-size masks, models in turn ({where}). Memory: peak of that, without the weights.
Of models that are tested in tiles (TEST.TILE), these three are of one tile.
"""


class ComparisonTrainer(Trainer):
    """A trainer that also measures the class-agnostic recall of the masks."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_dir: str):
        evaluator = super().build_evaluator(cfg, dataset_name, output_dir)
        is_coco = MetadataCatalog.get(dataset_name).evaluator_type == "coco"
        if not is_coco or not cfg.MODEL.MASK_ON or isinstance(evaluator, ProposalRecallEvaluator):
            return evaluator
        return DatasetEvaluators([evaluator, ProposalRecallEvaluator(dataset_name, output_dir)])


class Contender(NamedTuple):
    """A model that takes part."""

    name: str
    config: str
    predictor: Predictor
    results: dict  # {task: {metric: percent}}
    parameters: int
    training: str  # iterations x images and minutes, or the weight file


def find_data(data: str) -> tuple[Optional[str], str]:
    """
    (training set or None, test set): ``data``_train and ``data``_val if they are registered, else ``data`` itself.

    Raises:
        DatasetError: there is no such data set.
    """
    train, test = f"{data}_train", f"{data}_val"
    if test not in DatasetCatalog:
        require_registered(data)
        test = data
    return (train if train in DatasetCatalog else None), test


def contender_names(configs: Sequence[str]) -> list[str]:
    """The names of the files; equal names get their folder, and a file given twice gets a number."""
    stems = [os.path.splitext(os.path.basename(config))[0] for config in configs]
    counts = Counter(stems)
    folders = [os.path.basename(os.path.dirname(os.path.abspath(config))) for config in configs]
    names = [f"{folder}/{stem}" if counts[stem] > 1 else stem for folder, stem in zip(folders, stems)]
    return [f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _budget(cfg, images: int) -> list[str]:
    """Overrides to train on this many images: the schedule is scaled, and warm-up takes at most a tenth of it."""
    solver = cfg.SOLVER
    iterations = max(1, round(images / (solver.IMS_PER_BATCH * solver.ACCUMULATE)))
    share = iterations / solver.MAX_ITER
    steps = tuple(sorted({int(step * share) for step in solver.STEPS} - {0}))  # distinct and after the start
    values = {"MAX_ITER": iterations, "STEPS": steps, "WARMUP_ITERS": min(solver.WARMUP_ITERS, iterations // 10)}
    values["PATIENCE"] = 0
    for key in ("FREEZE_BACKBONE_ITER", "FREEZE_NORMS_ITER"):
        if solver[key] > 0:
            values[key] = int(solver[key] * share)
    return [item for key, value in values.items() for item in (f"SOLVER.{key}", str(value))]


def join(
    name: str,
    config: str,
    data: tuple[Optional[str], str],
    folder: str,
    *,
    weights: Optional[str] = None,
    images: Optional[int] = None,
    resume: bool = False,
    opts: Sequence[str] = (),
) -> Contender:
    """
    Train or load a model, and evaluate it; in one process, on the GPU if there is one.

    Args:
        data: what :func:`find_data` returns.
        folder: folder for its log, checkpoints and results.
        weights: checkpoint to load; None: train.
        images: number of images to train on, including repetitions; None: use the schedule of the config.
        resume: continue the training in ``folder``.
        opts: config overrides KEY VALUE ...

    Raises:
        ValueError: a user error, see `errors`.
    """
    train, test = data
    if weights is None and train is None:
        raise DatasetError(f"there is no training set {test}_train; evaluate trained models with --weights.")
    args = argument_parser().parse_args([])
    args.config_file, args.resume, args.eval_only = config, resume, weights is not None
    args.num_gpus = min(1, torch.cuda.device_count())
    sets = ["DATASETS.TRAIN", f"('{train or test}',)", "DATASETS.TEST", f"('{test}',)", "OUTPUT_DIR", folder]
    args.opts = [*opts, *sets]
    if weights is not None:
        args.opts += ["MODEL.WEIGHTS", weights]
    elif images is not None:
        args.opts += _budget(load_config(config, opts), images)
    cfg = setup(args)
    if weights is None:
        start = time.perf_counter()
        trainer = ComparisonTrainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        minutes = f"{(time.perf_counter() - start) / 60:.1f} min" if trainer.start_iter == 0 else "resumed"
        training = f"{cfg.SOLVER.MAX_ITER} x {cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE}, {minutes}"
        results, parameters = trainer.results, count_parameters(trainer.model)
        weights = os.path.join(folder, "model_final.pth")
    else:
        model = ComparisonTrainer.build_model(cfg)
        InstSegCheckpointer(model, for_test=True).load(weights)
        results, parameters = ComparisonTrainer.test(cfg, model), count_parameters(model)
        training = os.path.basename(weights)
    predictor = Predictor(cfg, weights, class_names=class_names(test))
    return Contender(name, config, predictor, results, parameters, training)


def _row(contender: Contender, sample: dict, latency: float) -> dict:
    """One line of the table: column -> value or None."""
    results = contender.results
    # A model with masks that found nothing has only box results.
    task = "segm" if "segm" in results or contender.predictor.cfg.MODEL.MASK_ON else "bbox"
    values = results.get(task, {})
    metrics = {key: values.get(key) for key in AP_COLUMNS}
    metrics[RECALL_COLUMN] = results.get("proposals", {}).get(RECALL_COLUMN)
    model = contender.predictor.model
    return {
        "model": contender.name + (" (boxes)" if task == "bbox" else ""),
        **{key: value if value is not None and math.isfinite(value) else None for key, value in metrics.items()},
        "parameters, M": contender.parameters / 1e6,
        "GFLOPs": gflops(model, sample),
        "latency, ms": latency,
        "memory, MiB": peak_memory(model, sample) / 2**20,
        "training": contender.training,
    }


def _device(contenders: Sequence[Contender]) -> torch.device:
    return next(contenders[0].predictor.model.parameters()).device


@torch.no_grad()
def _latencies(contenders: Sequence[Contender], files: Sequence[str], repeats: int) -> list[float]:
    def call(predictor: Predictor):
        samples = itertools.cycle([seen_by_network(predictor, file, index) for index, file in enumerate(files)])
        return lambda: detect(predictor.model, [next(samples)])

    return interleaved_medians([call(c.predictor) for c in contenders], repeats, str(_device(contenders)))


def _pictures(contenders: Sequence[Contender], records: Sequence[dict], names, score_threshold: float) -> list:
    """(title, picture): one row per image, the ground truth first."""
    panels = []
    for record in records:
        image = read_image(record["file_name"], "RGB", value_range=contenders[0].predictor.value_range)
        panels.append(("ground truth", draw_annotations(image, record, names)))
        for contender in contenders:
            predictor = contender.predictor
            tested = in_tiles(predictor)
            (instances,) = tested.predict([tested.preprocess(image, "RGB")], score_threshold)
            if method_of(predictor.cfg).class_agnostic(predictor.cfg):  # show as many proposals as there are objects
                instances = instances[: len(record["annotations"])]
            panels.append((contender.name, draw_instances(image, instances, predictor.class_names)))
    return panels


def compare(
    contenders: Sequence[Contender],
    test_set: str,
    folder: str,
    *,
    num_images: int = 6,
    repeats: int = 20,
    score_threshold: float = 0.5,
) -> str:
    """
    Write ``comparison.md`` (table and pictures), ``comparison.json`` and ``pictures.jpg`` into ``folder``.

    Args:
        test_set: name of the data set that all models were evaluated on.
        num_images: number of images to show, spread over the data set; GFLOPs and memory are measured on the first.
        repeats: latency measurements of each model.
        score_threshold: objects that score lower are not shown.

    Returns:
        The table as text.
    """
    records = DatasetCatalog.get(test_set)
    shown = records[:: max(1, len(records) // num_images)][:num_images]
    files = [record["file_name"] for record in shown]
    latencies = _latencies(contenders, files, repeats)
    rows = [_row(c, c.predictor.preprocess(files[0]), ms) for c, ms in zip(contenders, latencies)]
    panels = _pictures(contenders, shown, class_names(test_set), score_threshold)
    grid = titled_grid(panels, columns=1 + len(contenders), cell_width=260)
    _, jpeg = cv2.imencode(".jpg", grid[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    write_bytes(os.path.join(folder, "pictures.jpg"), jpeg.tobytes())

    device = _device(contenders)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = tabulate(rows, headers="keys", floatfmt=".1f", missingval="-", tablefmt="pipe")
    note = NOTE.format(data=test_set, images=len(records), where=where)
    text = f"# Comparison on {test_set}\n\n{table}\n{note}\n![ground truth and detections](pictures.jpg)\n"
    write_bytes(os.path.join(folder, "comparison.md"), text.encode())
    models = [{"config": c.config, **row} for c, row in zip(contenders, rows)]
    content = {"data": test_set, "images": len(records), "device": where, "models": models}
    write_bytes(os.path.join(folder, "comparison.json"), json.dumps(content, indent=1).encode())
    logger.info("Comparison on %s:\n%s", test_set, table)
    return table
