"""Fitting the mask embedding to a training set: by command, or by itself when training starts."""

import itertools
import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ...errors import ConfigError
from .autoencoder import AE
from .embedding import MaskEmbedding
from .masks import TrainingMasks

__all__ = ["embedding_file", "ensure_fitted", "fit_embedding", "held_out_split", "require_fitted"]

logger = logging.getLogger(__name__)


def held_out_split(records: Sequence[dict], every: int = 10):
    """(the records without every tenth, every tenth of them); of fewer than ten, the last is held out."""
    every = min(every, len(records))
    return [x for i, x in enumerate(records) if (i + 1) % every], list(records[every - 1 :: every])


def fit_embedding(embedding: MaskEmbedding, masks: TrainingMasks, **settings) -> None:
    """Fit to a stream of masks with a progress bar; ``settings`` as `MaskEmbedding.fit` of the class takes them."""
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
    Give the model's mask embedding, if it has one that weights have not filled, its values, on all processes alike.

    They come from `embedding_file` or from a fit to up to FIT_MAX_MASKS masks of DATASETS.TRAIN on the main process.
    Call it in all processes after the weights are loaded and before training.

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
            settings = {"epochs": cfg.MODEL.ISTR.FIT_EPOCHS} if isinstance(embedding, AE) else {}
            masks = TrainingMasks(records, embedding.size, max_masks=cfg.MODEL.ISTR.FIT_MAX_MASKS)
            fit_embedding(embedding, masks, **settings)
        state = {key: value.cpu() for key, value in embedding.state_dict().items()}
    if comm.get_world_size() > 1:
        embedding.load_state_dict(comm.all_gather(state)[0])


def require_fitted(embedding: MaskEmbedding) -> None:
    """
    Check once that the embedding has values: that reads from the device.

    Raises:
        ConfigError: neither weights nor a fit have filled the embedding.
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
