"""Data loaders: an endless training stream that can start at any iteration, and one pass over a test set."""

import functools
import logging
import multiprocessing.queues
import os
import signal
import sys

import cv2
import torch
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..errors import ConfigError, DatasetError, ImageError, WorkerError, sentence
from .coco import require_registered
from .mapper import InstanceDatasetMapper
from .mixing import MixingMapper, mixed_batches
from .packing import pack, unpack
from .presence import loading
from .samples import BatchIndices, TestSamples, TrainingSamples
from .value_range import common_range

__all__ = ["TestLoader", "TrainLoader", "build_test_loader", "build_train_loader"]

logger = logging.getLogger(__name__)


def _as_list(batch):
    return batch


def _exit_worker(error, _):
    """End a worker that cannot send a batch; otherwise the loader would wait for the batch forever."""
    sys.stderr.write(f"error: a data loader worker cannot send a batch: {sentence(error)}\n")
    sys.stderr.flush()
    os._exit(1)


def _start_worker(_):
    if not multiprocessing.parent_process().is_alive():  # PyTorch checks this only later
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process ends its workers
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_exit_worker)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _torch_loader(samples, num_workers: int, **kwargs) -> DataLoader:
    return DataLoader(
        samples,
        num_workers=num_workers,
        collate_fn=pack if num_workers else _as_list,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # instead of the global one
        **kwargs,
    )


def _drawn(loader: DataLoader):
    """The batches of one pass. The workers end with it, even after an error."""
    iterator = iter(loader)
    try:
        yield from map(unpack, iterator) if loader.num_workers else iterator
    except (EOFError, ConnectionError) as error:
        if str(error).startswith("Caught "):  # PyTorch's prefix for an error in the worker
            raise
        raise WorkerError(
            "the data loader cannot receive a batch from its worker: see its output above, or set "
            "DATALOADER.NUM_WORKERS 0 to load images without workers."
        ) from error
    finally:
        if loader.num_workers:
            # An error's traceback keeps the iterator alive, and ending it by garbage collection takes 5 s per worker.
            iterator._shutdown_workers()


class TrainLoader:
    """
    Endless iterable of batches (lists of samples) that counts unreadable images.

    Attributes:
        seed: seed of the order and augmentation; store it to resume exactly if SEED is negative.
        bad_files: {file: message} of the unreadable files so far.
    """

    def __init__(self, samples: TrainingSamples, batches: BatchIndices, num_workers: int):
        self.seed = samples.seed
        self.bad_files = {}
        self._size = len(samples.dataset)
        self._drawn = 0  # samples of this process so far
        self._loader = _torch_loader(samples, num_workers, batch_sampler=batches)

    def __iter__(self):
        for batch in _drawn(self._loader):
            for sample, errors in batch:
                self._drawn += 1
                self._count(errors)
                if sample is None:
                    raise DatasetError(f"training stops: {errors[-1][1]}")
            yield [sample for sample, _ in batch]

    def _max_bad_files(self) -> int:
        """
        The number of unreadable images to tolerate: 1 % of all images, at least 1. With several processes, each draws
        only a share of the images in the first epoch, but all of them in the long run: until it has drawn half of the
        images, it tolerates 2 % of its share or of what it has drawn.
        """
        seen = max(self._size // comm.get_world_size(), self._drawn)
        return max(1, min(self._size, 2 * seen) // 100)

    def _count(self, errors) -> None:
        for file, message in errors:
            if not file or file in self.bad_files:
                continue
            self.bad_files[file] = message
            count, tolerated = len(self.bad_files), self._max_bad_files()
            if count > tolerated:
                share = "1 %" if comm.get_world_size() == 1 else "about 1 %, in one process"
                raise DatasetError(
                    f"training stops: {count} images are unusable, more than the {tolerated} ({share}) allowed; the "
                    f"last one: {message}"
                )
            logger.warning(f"skipped image {count} of at most {tolerated}: {message}")


class TestLoader:
    """
    One pass over the images of this process, in batches of one.

    Attributes:
        leave_out: skip unreadable images with a warning instead of raising ImageError.
    """

    __test__ = False  # not a test class
    leave_out = False

    def __init__(self, samples: TestSamples, num_workers: int):
        self._loader = _torch_loader(samples, num_workers, sampler=InferenceSampler(len(samples)))

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for batch in _drawn(self._loader):
            for _, error in batch:
                if error is not None and not self.leave_out:
                    raise ImageError(error)
                if error is not None:
                    logger.warning(f"excluded from the evaluation: {error}")
            samples = [sample for sample, error in batch if error is None]
            if samples:
                yield samples


def _dataset_dicts(names, filter_empty: bool) -> list:
    for name in names:
        require_registered(name)
    with loading(names):
        return get_detection_dataset_dicts(list(names), filter_empty=filter_empty)


def _group(record: dict) -> str:
    if not (record.get("width") and record.get("height")):
        return "unknown"
    return "landscape" if record["width"] > record["height"] else "other"


def _sampler(cfg, dicts: list, seed: int):
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, cfg.DATALOADER.REPEAT_THRESHOLD)
    return RepeatFactorTrainingSampler(factors, seed=seed)


def _with_range(cfg, dicts: list, names):
    """The config with INPUT.VALUE_RANGE set for these images, if they have more than eight bits."""
    if cfg.INPUT.VALUE_RANGE:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.VALUE_RANGE = common_range([str(record["file_name"]) for record in dicts], ", ".join(names))
    return cfg


def _train_mappers(cfg) -> list:
    """One mapper, or one for each of INPUT.MIN_SIZE_TRAIN if all images of a batch share a size."""
    mapper = MixingMapper if mixed_batches(cfg) else functools.partial(InstanceDatasetMapper, is_train=True)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "batch":
        return [mapper(cfg)]
    mappers = []
    for size in cfg.INPUT.MIN_SIZE_TRAIN:
        of_size = cfg.clone()
        of_size.defrost()
        of_size.INPUT.MIN_SIZE_TRAIN = (size,)
        mappers.append(mapper(of_size))
    return mappers


def build_train_loader(cfg, mapper=None, start_iteration: int = 0, seed=None) -> TrainLoader:
    """
    The endless training stream of this process.

    With the same seed and number of processes, batch n is bitwise identical for any ``start_iteration`` and
    DATALOADER.NUM_WORKERS.

    Args:
        cfg: DATASETS.TRAIN, SOLVER.IMS_PER_BATCH (images of all processes together), DATALOADER.{NUM_WORKERS,
            SAMPLER_TRAIN, REPEAT_THRESHOLD, ASPECT_RATIO_GROUPING, FILTER_EMPTY_ANNOTATIONS},
            INPUT.{MIN_SIZE_TRAIN_SAMPLING, COPY_PASTE, MOSAIC, CLOSING_PHASE}, SOLVER.{MAX_ITER, ACCUMULATE} and SEED
            are read.
        mapper: callable on a data set dict; None: InstanceDatasetMapper(cfg, True), or MixingMapper(cfg) if
            INPUT.COPY_PASTE or INPUT.MOSAIC is on. With MIN_SIZE_TRAIN_SAMPLING batch, all images of a batch, in all
            processes, are resized to the same size from INPUT.MIN_SIZE_TRAIN.
        start_iteration: number of batches to skip, because they have been trained on.
        seed: replaces cfg.SEED; if both are missing or negative, a random seed shared by all processes.

    Raises:
        ValueError: the batch does not divide among the processes.
        ConfigError: semantic labels would have to be mixed.
        DatasetError: there is no training set, or it is unusable; while iterating, when more than max(1, 1 %) of its
            images are unreadable (with several processes, each counts the images that it draws).
    """
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty: name a data set to train on.")
    world_size, total = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if total % world_size:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {total}; it must be a multiple of the {world_size} processes.")
    seed = cfg.SEED if seed is None else seed
    if seed < 0:
        seed = comm.shared_random_seed()
    dicts = _dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    groups = [_group(record) for record in dicts] if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    batches = BatchIndices(_sampler(cfg, dicts, seed), total // world_size, groups, start_iteration)
    mixed = mixed_batches(cfg) if mapper is None else 0
    if mixed and any("sem_seg_file_name" in record for record in dicts):
        raise ConfigError(
            f"INPUT.COPY_PASTE and INPUT.MOSAIC.PROB must be 0 for {', '.join(cfg.DATASETS.TRAIN)}: semantic labels, "
            "as of panoptic data, are not mixed."
        )
    mappers = _train_mappers(_with_range(cfg, dicts, cfg.DATASETS.TRAIN)) if mapper is None else [mapper]
    samples = TrainingSamples(DatasetFromList(dicts), mappers, seed, comm.get_rank(), mixed)
    return TrainLoader(samples, batches, cfg.DATALOADER.NUM_WORKERS)


def build_test_loader(cfg, dataset_name: str, mapper=None) -> TestLoader:
    """
    One pass over a data set, one image per batch, split among the processes as Detectron2's evaluators expect.

    Args:
        cfg: DATALOADER.NUM_WORKERS is read.
        dataset_name: a registered data set; images without objects are included.
        mapper: callable on a data set dict; None: InstanceDatasetMapper(cfg, False).

    Raises:
        DatasetError: the data set is unusable; while iterating, ImageError for an unreadable image.
    """
    dicts = _dataset_dicts([dataset_name], filter_empty=False)
    mapper = InstanceDatasetMapper(_with_range(cfg, dicts, [dataset_name]), False) if mapper is None else mapper
    return TestLoader(TestSamples(DatasetFromList(dicts), mapper), cfg.DATALOADER.NUM_WORKERS)
