"""
Mask embeddings of ISTR (arXiv 2105.00637, section 3.2): square masks as short codes, and back.

M masks, S their side in pixels, L numbers of a code. Masks are 0 or 1, cropped by a box and resized to S x S. Codes and
decoded masks are float32, also under autocast. A fit fills persistent buffers and parameters, so it is saved in the
checkpoint.
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
    """Codes of masks. Subclasses define ``_encode`` and ``decode``; learned ones also ``fitted``, ``fit`` and files."""

    roi_channels = 0  # of the RoI features that ``decode`` reads beside the codes
    known_fitted = False  # set by `require_fitted`

    def __init__(self, *, dim: int, size: int):
        """
        Args:
            dim: L.
            size: S.
        """
        super().__init__()
        if not 0 < dim <= size * size:
            raise ValueError(f"a code of a {size} x {size} mask has 1 to {size * size} numbers, not {dim}")
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
        """Whether a fit, a checkpoint or a file has filled the tensors. This reads from the device."""
        return True

    @torch.no_grad()
    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        """masks (M, S, S) of 0 and 1, any type -> codes (M, L), without gradient."""
        with torch.autocast(masks.device.type, enabled=False):
            return self._encode(masks.float())

    def _encode(self, masks: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, codes: torch.Tensor, roi_features: Optional[torch.Tensor] = None) -> torch.Tensor:
        """codes (M, L), roi_features (M, roi_channels, h, w) or None -> masks (M, S, S), about 0 outside, 1 inside."""
        raise NotImplementedError

    def fit(self, mask_batches: Iterable, **settings) -> None:
        """
        Learn the embedding.

        Args:
            mask_batches: arrays or tensors (m, S, S) of 0 and 1, read once.
            settings: of the subclass.
        """

    def load_file(self, path: str) -> None:
        """
        Take the embedding from a file of the public layout.

        Raises:
            CheckpointError: the file is missing, of another layout, or made for other sizes.
        """
        if not os.path.isfile(path):
            raise CheckpointError(
                f"MODEL.ISTR.PATH_COMPONENTS: there is no file {path}. projects/ISTR/fit_mask_embedding.py makes one; "
                "with an empty key the embedding is fitted when training starts."
            )
        try:
            self._load(path)
        except CheckpointError as error:
            raise CheckpointError(f"MODEL.ISTR.PATH_COMPONENTS: {error}") from error

    def _load(self, path: str) -> None:
        """Raises: CheckpointError that names the file and its fault."""
        raise CheckpointError(f"{type(self).__name__} is not learned and reads no file ({path}).")

    def save_file(self, path: str) -> None:
        """Write the embedding in the public layout."""
        raise CheckpointError(f"{type(self).__name__} is not learned and writes no file ({path}).")


def build_mask_embedding(cfg: CfgNode) -> MaskEmbedding:
    """
    The embedding that MODEL.ISTR.EMBEDDING or else MASK_ENCODING_METHOD names; PCA where both are empty (version 1).

    Raises:
        KeyError: the registry has no such name.
    """
    name = cfg.MODEL.ISTR.EMBEDDING or cfg.MODEL.ISTR.MASK_ENCODING_METHOD or "PCA"
    return MASK_EMBEDDING_REGISTRY.get(name)(cfg)


def mask_dice_losses(decoded: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - dice of decoded masks and the true ones, (M, S, S) each: (M,)."""
    return 1 - paired_dice(decoded.flatten(1), masks.flatten(1), DICE_EPSILON)


@torch.no_grad()
def reconstruction_ious(embedding: MaskEmbedding, mask_batches: Iterable, components: Sequence[int] = ()):
    """
    How well codes describe masks: the IoU of each mask with its decoded code, cut at 0.5, in eval mode.

    Args:
        mask_batches: arrays or tensors (m, S, S) of 0 and 1; no mask is empty.
        components: numbers of a code to keep, one column of the result for each; the rest are set to 0. Default: all.

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
    """The path in MODEL.ISTR.PATH_COMPONENTS or its other name MASK_EMBEDDING_FILE; "" where neither is set."""
    return cfg.MODEL.ISTR.PATH_COMPONENTS or cfg.MODEL.ISTR.MASK_EMBEDDING_FILE


def ensure_fitted(model: nn.Module, cfg: CfgNode) -> None:
    """
    Fill the model's mask embedding, if it has one that no weights have filled, with the same values in all processes.

    The main process reads `embedding_file` or fits to up to FIT_MAX_MASKS masks of DATASETS.TRAIN. Call this in all
    processes, after the weights are loaded and before training.

    Raises:
        CheckpointError: the named file is missing or does not fit.
        DatasetError: there is no mask.
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
        CheckpointError: no weights and no fit have filled the embedding.
    """
    if embedding.known_fitted:
        return
    if not embedding.fitted:
        raise CheckpointError(
            f"the {type(embedding).__name__} mask embedding has no values yet: train with instseg_d2.engine.Trainer, "
            "which fits it, call instseg_d2.modeling.istr.ensure_fitted(model, cfg) before training, or set "
            "MODEL.ISTR.MASK_ENCODING_METHOD to DCT, which needs no fit."
        )
    embedding.known_fitted = True
