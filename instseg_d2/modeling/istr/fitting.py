"""
Fitting the mask embedding to a training set, by command or when training starts. M masks, S their side in pixels.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ...data.segmentations import to_rle
from ...errors import ConfigError, DatasetError
from ..ground_truth import annotation_mask
from .embedding import MaskEmbedding

__all__ = ["TrainingMasks", "embedding_file", "ensure_fitted", "fit_embedding", "held_out_split", "require_fitted"]

logger = logging.getLogger(__name__)


class TrainingMasks:
    """
    The masks of the objects of data set dicts, in the order of the dicts, without crowds and empty ones.

    Every iteration makes them anew: arrays (m, S, S), uint8, of up to ``batch_size`` masks. ``len`` also counts the
    objects that are left out for an empty mask or for ``min_area``.
    """

    def __init__(
        self,
        records: Sequence[dict],
        size: int,
        *,
        max_masks: int = 0,
        min_area: float = 0,
        batch_size: int = 256,
        seed: int = 0,
    ):
        """
        Args:
            records: dicts of Detectron2's standard data set format.
            size: S.
            max_masks: of so many objects, drawn at random; 0: of all.
            min_area: leave out objects of at most so many pixels.
        """
        self.records = records
        self.size = size
        self.min_area = min_area
        self.batch_size = batch_size
        pairs = [
            (i, j)
            for i, record in enumerate(records)
            for j, annotation in enumerate(record.get("annotations", ()))
            if not annotation.get("iscrowd", 0)
        ]
        self._pairs = np.array(pairs, np.int32).reshape(-1, 2)
        if 0 < max_masks < len(pairs):
            chosen = np.random.default_rng(seed).choice(len(pairs), max_masks, replace=False)
            self._pairs = self._pairs[np.sort(chosen)]

    def __len__(self) -> int:
        return len(self._pairs)

    def _crop(self, record: dict, annotation: dict) -> np.ndarray:
        """Raises: DatasetError that names the image."""
        height, width = record["height"], record["width"]
        try:
            if self.min_area:
                area = mask_util.area(to_rle(annotation["segmentation"], height, width))
                if area <= self.min_area:
                    return np.zeros((self.size, self.size), bool)
            return annotation_mask(annotation, height, width, self.size)
        except DatasetError as error:
            raise DatasetError(f"{record.get('file_name', 'an image')}: {error}.") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._pairs), self.batch_size):
            crops = []
            for i, j in self._pairs[start : start + self.batch_size]:
                record = self.records[i]
                crops.append(self._crop(record, record["annotations"][j]))
            kept = [crop for crop in crops if crop.any()]
            if kept:
                yield np.stack(kept).astype(np.uint8)


def held_out_split(records: Sequence[dict], every: int = 10):
    """The records without every tenth one, and every tenth one; of fewer than ten records the last is held out."""
    every = min(every, len(records))
    return [x for i, x in enumerate(records) if (i + 1) % every], list(records[every - 1 :: every])


def fit_embedding(embedding: MaskEmbedding, masks: TrainingMasks, **settings) -> None:
    """Fit to a stream of masks, with a progress bar; ``settings`` are those of the class's `MaskEmbedding.fit`."""
    logger.info("Fitting the %s mask embedding to %d masks.", type(embedding).__name__, len(masks))

    def watched():
        with tqdm(total=len(masks), unit="mask", desc="masks", disable=None, leave=False) as bar:
            for batch in masks:
                yield batch
                bar.update(len(batch))

    embedding.fit(watched(), **settings)


def embedding_file(cfg: CfgNode) -> str:
    """
    The path in MODEL.ISTR.PATH_COMPONENTS or its other name MASK_EMBEDDING_FILE; "" where neither is set.

    Raises:
        ConfigError: both are set and differ.
    """
    paths = {path for path in (cfg.MODEL.ISTR.PATH_COMPONENTS, cfg.MODEL.ISTR.MASK_EMBEDDING_FILE) if path}
    if len(paths) > 1:
        raise ConfigError("MODEL.ISTR.PATH_COMPONENTS and MASK_EMBEDDING_FILE name different files; set one of them.")
    return next(iter(paths), "")


def ensure_fitted(model: nn.Module, cfg: CfgNode) -> None:
    """
    Fill the model's mask embedding, if it has one that no weights have filled, with the same values in all processes.

    The main process reads `embedding_file` or fits to up to FIT_MAX_MASKS masks of DATASETS.TRAIN. Call this in all
    processes, after the weights are loaded and before training.

    Raises:
        ConfigError: the named file is missing or does not fit, or there is no mask.
    """
    embedding = next((module for module in model.modules() if isinstance(module, MaskEmbedding)), None)
    if embedding is None or embedding.fitted:
        return
    state = None
    if comm.is_main_process():
        path = embedding_file(cfg)
        if path:
            embedding.load_file(path)
            logger.info("Mask embedding from %s.", path)
        else:
            records = list(itertools.chain.from_iterable(DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN))
            fit_embedding(embedding, TrainingMasks(records, embedding.size, max_masks=cfg.MODEL.ISTR.FIT_MAX_MASKS))
        state = {key: value.cpu() for key, value in embedding.state_dict().items()}
    if comm.get_world_size() > 1:
        embedding.load_state_dict(comm.all_gather(state)[0])


def require_fitted(embedding: MaskEmbedding) -> None:
    """
    Check that the embedding has values; once, since that reads from the device.

    Raises:
        ConfigError: no weights and no fit have filled the embedding.
    """
    if embedding.known_fitted:
        return
    if not embedding.fitted:
        raise ConfigError(
            f"the {type(embedding).__name__} mask embedding has no values yet: train with instseg_d2.engine.Trainer, "
            "which fits it, call instseg_d2.modeling.istr.ensure_fitted(model, cfg) before training, or set "
            "MODEL.ISTR.MASK_ENCODING_METHOD to DCT, which needs no fit."
        )
    embedding.known_fitted = True
