"""
Mask embeddings of ISTR (arXiv 2105.00637, section 3.2): square masks as short codes, and back.

M masks, s their side in pixels, l the numbers of a code. Masks are 0/1, cropped by a box and resized to s x s. Codes
and decoded masks are float32, also under autocast. What a fit learns are persistent buffers and parameters: it
travels in the checkpoint.
"""

import os
from collections.abc import Iterable
from typing import Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import nn

from ...config.istr import istr_value, istr_version
from ...errors import ConfigError

MASK_EMBEDDING_REGISTRY = Registry("MASK_EMBEDDING")
MASK_EMBEDDING_REGISTRY.__doc__ = "Subclasses of MaskEmbedding, called with (cfg)."


class MaskEmbedding(nn.Module):
    """Codes of masks; subclasses define ``_encode`` and ``decode``, and ``fitted``, ``fit`` and files if they learn."""

    roi_channels = 0  # of the RoI features that ``decode`` reads beside the codes
    known_fitted = False  # set by `require_fitted`

    def __init__(self, *, dim: int, size: int):
        """
        Args:
            dim: l.
            size: s.
        """
        super().__init__()
        if not 0 < dim <= size * size:
            raise ConfigError(
                f"a code of a {size} x {size} mask has 1 to {size * size} numbers, not {dim} (MODEL.ISTR.MASK_DIM in "
                "version 1, MASK_FEAT_DIM in version 2)."
            )
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
        """False before a fit, or a checkpoint or file with one, has filled the tensors; a host read."""
        return True

    @torch.no_grad()
    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        """masks (M, s, s) of 0 and 1, any type -> codes (M, l), without gradient."""
        with torch.autocast(masks.device.type, enabled=False):
            return self._encode(masks.float())

    def _encode(self, masks: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, codes: torch.Tensor, roi_features: Optional[torch.Tensor] = None) -> torch.Tensor:
        """codes (M, l), roi_features (M, roi_channels, h, w) or None -> masks (M, s, s), about 0 outside, 1 inside."""
        raise NotImplementedError

    def fit(self, mask_batches: Iterable, **settings) -> None:
        """
        Learn the embedding.

        Args:
            mask_batches: arrays or tensors (b, s, s) of 0 and 1, read once.
            settings: of the subclass.
        """

    def load_file(self, path: str) -> None:
        """Take the embedding from a file of the public layout."""
        raise ConfigError(f"{type(self).__name__} is not learned and reads no file ({path}).")

    def save_file(self, path: str) -> None:
        """Write the embedding in the public layout."""
        raise ConfigError(f"{type(self).__name__} is not learned and writes no file ({path}).")


def require_file(path: str) -> str:
    """
    Raises:
        ConfigError: there is no file at ``path``.
    """
    if not os.path.isfile(path):
        raise ConfigError(
            f"MODEL.ISTR.PATH_COMPONENTS: there is no file {path}. projects/ISTR/fit_mask_embedding.py makes one; with "
            "an empty key the embedding is fitted when training starts."
        )
    return path


@MASK_EMBEDDING_REGISTRY.register()
class RawMask(MaskEmbedding):
    """The mask's own pixels, row by row (the paper's ablation without an embedding)."""

    @configurable
    def __init__(self, *, size: int):
        super().__init__(dim=size * size, size=size)

    @classmethod
    def from_config(cls, cfg):
        return {"size": istr_value(cfg, "MASK_SIZE")}

    def _encode(self, masks):
        return masks.flatten(1)

    def decode(self, codes, roi_features=None):
        return codes.float().unflatten(1, (self.size, self.size))


def build_mask_embedding(cfg: CfgNode) -> MaskEmbedding:
    """
    The embedding of MODEL.ISTR.EMBEDDING or else MASK_ENCODING_METHOD; PCA where both are empty (version 1).

    Raises:
        ConfigError: the name is unknown, or sizes do not fit.
    """
    name = cfg.MODEL.ISTR.EMBEDDING or cfg.MODEL.ISTR.MASK_ENCODING_METHOD or "PCA"
    if name not in MASK_EMBEDDING_REGISTRY:
        key = "EMBEDDING" if cfg.MODEL.ISTR.EMBEDDING else "MASK_ENCODING_METHOD"
        raise ConfigError(f"MODEL.ISTR.{key} is {name!r}; it must be one of PCA, DCT, AE, RawMask.")
    return MASK_EMBEDDING_REGISTRY.get(name)(cfg)
