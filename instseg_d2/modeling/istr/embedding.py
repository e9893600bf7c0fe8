"""
Mask embeddings of ISTR (arXiv 2105.00637, section 3.2), which encode square masks as short codes and decode them.

M masks, S side of a mask in pixels, L length of a code. Masks are 0 or 1, cropped to a box and resized to S x S. Codes
and decoded masks are float32, even under autocast. What a fit learns is saved in the checkpoint.
"""

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import nn
from tqdm import tqdm

from ...config.istr import istr_value, istr_version
from ...data.training_masks import TrainingMasks
from ...errors import CheckpointError
from ..losses.dice import paired_dice

MASK_EMBEDDING_REGISTRY = Registry("MASK_EMBEDDING")
MASK_EMBEDDING_REGISTRY.__doc__ = "Subclasses of MaskEmbedding, called with (cfg)."

DICE_EPSILON = 1e-5  # the authors'

logger = logging.getLogger(__name__)


class MaskEmbedding(nn.Module):
    """
    Base class of mask embeddings. Subclasses implement ``_encode`` and `decode`; learned ones also `fitted`, `fit`,
    ``_load`` and `save_file`.
    """

    roi_channels = 0  # channels of the RoI features that ``decode`` reads in addition to codes
    known_fitted = False  # set by `require_fitted`

    def __init__(self, *, dim: int, size: int):
        """
        Args:
            dim: L.
            size: S.
        """
        super().__init__()
        if not 0 < dim <= size * size:
            raise ValueError(f"dim is {dim}; a code of a {size} x {size} mask has 1 to {size * size} numbers")
        self.dim = dim
        self.size = size

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.ISTR
        return {
            "dim": node.MASK_DIM if istr_version(cfg) == 1 else node.MASK_FEAT_DIM,
            "size": istr_value(cfg, "MASK_SIZE"),
        }

    @property
    def fitted(self) -> bool:
        """Whether the embedding was fitted or loaded. This waits for the device."""
        return True

    @torch.no_grad()
    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (M, S, S) of 0 and 1, any dtype -> codes (M, L), without gradient."""
        with torch.autocast(masks.device.type, enabled=False):
            return self._encode(masks.float())

    def _encode(self, masks: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, codes: torch.Tensor, roi_features: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            codes: (M, L).
            roi_features: (M, roi_channels, h, w), or None.

        Returns:
            masks (M, S, S), near 0 outside the object and near 1 inside.
        """
        raise NotImplementedError

    def fit(self, mask_batches: Iterable, **settings) -> None:
        """
        Learn the embedding.

        Args:
            mask_batches: iterable of arrays or tensors (m, S, S) of 0 and 1, read once.
            settings: see the subclass.
        """

    def load_file(self, path: str) -> None:
        """
        Load the embedding from a file in the layout of the authors' release.

        Raises:
            CheckpointError: the file is missing, has another layout or other sizes.
        """
        if not os.path.isfile(path):
            raise CheckpointError(
                f"MODEL.ISTR.PATH_COMPONENTS: there is no file {path}; make one with "
                "projects/ISTR/fit_mask_embedding.py, or leave the key empty to fit the embedding when training starts."
            )
        try:
            self._load(path)
        except CheckpointError as error:
            raise CheckpointError(f"MODEL.ISTR.PATH_COMPONENTS: {error}") from error

    def _load(self, path: str) -> None:
        """Raises a CheckpointError that names the file and what is wrong with it."""
        raise CheckpointError(f"{type(self).__name__} is not learned, so it cannot read {path}.")

    def save_file(self, path: str) -> None:
        """Write the embedding in the layout of the authors' release."""
        raise CheckpointError(f"{type(self).__name__} is not learned, so it cannot write {path}.")


def build_mask_embedding(cfg: CfgNode) -> MaskEmbedding:
    """
    Build the embedding MODEL.ISTR.EMBEDDING or, if that is empty, MASK_ENCODING_METHOD; PCA if both are (version 1).

    Raises:
        KeyError: the registry has no such name.
    """
    name = cfg.MODEL.ISTR.EMBEDDING or cfg.MODEL.ISTR.MASK_ENCODING_METHOD or "PCA"
    return MASK_EMBEDDING_REGISTRY.get(name)(cfg)


def mask_dice_losses(decoded: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - dice of decoded and true masks, (M, S, S) each: (M,)."""
    return 1 - paired_dice(decoded.flatten(1), masks.flatten(1), DICE_EPSILON)


@torch.no_grad()
def reconstruction_ious(embedding: MaskEmbedding, mask_batches: Iterable, components: Sequence[int] = ()):
    """
    IoU of each mask with its decoded code, thresholded at 0.5, in eval mode.

    Args:
        mask_batches: iterable of arrays or tensors (m, S, S) of 0 and 1, without empty masks.
        components: code lengths to evaluate, one column of the result each; the rest of a code is set to 0. Default:
            L only.

    Returns:
        (M,) or, with components, (M, len(components)), on the CPU.
    """
    device = next(iter((*embedding.buffers(), *embedding.parameters())), torch.zeros(0)).device
    was_training = embedding.training
    embedding.eval()
    rows = []
    for batch in mask_batches:
        masks = torch.as_tensor(batch, device=device)
        codes = embedding.encode(masks)
        inside = masks > 0
        columns = []
        for count in components or (embedding.dim,):
            kept = codes.clone()
            kept[:, count:] = 0
            decoded = embedding.decode(kept) >= 0.5
            union = (decoded | inside).flatten(1).sum(1)
            columns.append((decoded & inside).flatten(1).sum(1) / union.clamp(min=1))
        rows.append(torch.stack(columns, 1).cpu())
    embedding.train(was_training)
    ious = torch.cat(rows) if rows else torch.zeros(0, max(len(components), 1))
    return ious if components else ious[:, 0]


def held_out_split(records: Sequence[dict], every: int = 10):
    """Split off every tenth record, or the last of fewer than ten: (other records, held-out records)."""
    every = min(every, len(records))
    return [x for i, x in enumerate(records) if (i + 1) % every], list(records[every - 1 :: every])


def fit_embedding(embedding: MaskEmbedding, masks: TrainingMasks, **settings) -> None:
    """Fit the embedding to a stream of masks with a progress bar; for ``settings`` see the subclass's ``fit``."""
    logger.info("Fitting the %s mask embedding to %d masks.", type(embedding).__name__, len(masks))

    def with_progress():
        with tqdm(total=len(masks), unit="mask", desc="masks", disable=None, leave=False) as bar:
            for batch in masks:
                yield batch
                bar.update(len(batch))

    embedding.fit(with_progress(), **settings)


def embedding_file(cfg: CfgNode) -> str:
    """The path in MODEL.ISTR.PATH_COMPONENTS or its other name MASK_EMBEDDING_FILE; "" if neither is set."""
    return cfg.MODEL.ISTR.PATH_COMPONENTS or cfg.MODEL.ISTR.MASK_EMBEDDING_FILE


def ensure_fitted(model: nn.Module, cfg: CfgNode) -> None:
    """
    Load or fit the model's mask embedding, unless it has none or the loaded weights contain it.

    The main process reads `embedding_file` or fits up to FIT_MAX_MASKS masks of DATASETS.TRAIN, and sends the result to
    the others. Call this in all processes, after loading weights and before training.

    Raises:
        CheckpointError: the file is missing or does not fit.
        DatasetError: the training set has no masks.
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
    Check that the embedding was fitted or loaded. A successful check is remembered, because it waits for the device.

    Raises:
        CheckpointError: it was neither fitted nor loaded.
    """
    if embedding.known_fitted:
        return
    if not embedding.fitted:
        raise CheckpointError(
            f"the {type(embedding).__name__} mask embedding is not fitted: train with instseg_d2.engine.Trainer, which "
            "fits it, call instseg_d2.modeling.istr.ensure_fitted(model, cfg) before training, or set "
            "MODEL.ISTR.MASK_ENCODING_METHOD to DCT, which needs no fit."
        )
    embedding.known_fitted = True
