"""
Linear mask codes: the pixels themselves, DCT coefficients, principal components.

M masks, S side of a mask, L length of a code, k x k grid of the DCT frequencies in use.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from detectron2.config import configurable

from ...config.istr import istr_value
from ...errors import CheckpointError, DatasetError
from ...files import atomic_write
from .embedding import MASK_EMBEDDING_REGISTRY, MaskEmbedding

_KEYS = ("components_c", "mean_c", "explained_variance_c", "ratio_c")


@MASK_EMBEDDING_REGISTRY.register()
class RawMask(MaskEmbedding):
    """The pixels of the mask, row by row (the paper's ablation without an embedding)."""

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


def cosine_basis(size: int) -> torch.Tensor:
    """
    The orthonormal one-dimensional DCT-II as a matrix with frequencies in rows: (S, S) float64.

    B[u, x] = c_u cos(pi (2 x + 1) u / (2 S)), c_0 = sqrt(1 / S), c_u = sqrt(2 / S).
    """
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * (2 * torch.arange(size, dtype=torch.float64) + 1) * frequency / (2 * size))
    basis *= math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def zigzag(size: int, count: int) -> torch.Tensor:
    """
    The first ``count`` cells (row, column) of an S x S grid in zigzag order: (count, 2) int64.

    Diagonal i holds (i - j, j) for j = 0..i if i is even, (j, i - j) if it is odd.
    """
    pairs = []
    for i in range(2 * size - 1):
        diagonal = [(i - j, j) if i % 2 == 0 else (j, i - j) for j in range(i + 1)]
        pairs += [pair for pair in diagonal if max(pair) < size]
        if len(pairs) >= count:
            break
    return torch.tensor(pairs[:count], device="cpu")


@MASK_EMBEDDING_REGISTRY.register()
class DCT(MaskEmbedding):
    """
    The first L coefficients of the orthonormal two-dimensional DCT-II in zigzag order. Needs no fit.

    Decoding is the inverse transform with all other coefficients 0, without sigmoid or clamp.
    """

    @configurable
    def __init__(self, *, dim: int, size: int):
        super().__init__(dim=dim, size=size)
        places = zigzag(size, dim)
        rows = int(places.max()) + 1  # k
        self.register_buffer("basis", cosine_basis(size)[:rows].float(), persistent=False)  # (k, S)
        self.register_buffer("index", places[:, 0] * rows + places[:, 1], persistent=False)  # (L,) in the k x k grid

    def _encode(self, masks):
        return (self.basis @ masks @ self.basis.T).flatten(1)[:, self.index]

    def decode(self, codes, roi_features=None):
        with torch.autocast(codes.device.type, enabled=False):
            rows = len(self.basis)
            grid = codes.new_zeros((len(codes), rows * rows), dtype=torch.float32)
            grid = grid.index_copy(1, self.index, codes.float())
            return self.basis.T @ grid.unflatten(1, (rows, rows)) @ self.basis


@MASK_EMBEDDING_REGISTRY.register()
class PCA(MaskEmbedding):
    """
    Whitened principal components of the masks' logits.

    A mask is squeezed to values r and 1 - r, and x is their logit. The code is z = (x - mean) C^T / sqrt(variance), and
    decoding gives sigmoid((z sqrt(variance)) C + mean). The rows of C have unit norm.

    Buffers: components (L, S * S), means (S * S,), explained_variances (L,).
    """

    @configurable
    def __init__(self, *, dim: int, size: int, noise: bool = False, squeeze: float = 0.025):
        """
        Args:
            noise: draw r = max(0.01, 0.05 u), u uniform in [0, 1), for each pixel and encoding, as in the authors'
                training. Matching and loss then see different codes.
            squeeze: r without noise.
        """
        super().__init__(dim=dim, size=size)
        self.noise = noise
        self.squeeze = squeeze
        self.register_buffer("components", torch.zeros(dim, size * size))
        self.register_buffer("explained_variances", torch.ones(dim))
        self.register_buffer("means", torch.zeros(size * size))
        self.explained_ratio = np.zeros(dim, np.float32)  # shares of the total variance, set by a fit or a file

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "noise": cfg.MODEL.ISTR.ENCODE_NOISE}

    @property
    def fitted(self) -> bool:
        return bool(self.components.any())

    def _logits(self, masks: torch.Tensor) -> torch.Tensor:
        """(M, S, S) of 0 and 1 -> (M, S * S) logits of the squeezed masks."""
        masks = masks.flatten(1)
        if not self.noise:
            return (2 * masks - 1) * math.log((1 - self.squeeze) / self.squeeze)
        r = (0.05 * torch.rand_like(masks)).clamp(min=0.01)
        return torch.where(masks > r, 1 - r, r).logit()

    def _encode(self, masks):
        return (self._logits(masks) - self.means) @ self.components.T / self.explained_variances.sqrt()

    def decode(self, codes, roi_features=None):
        with torch.autocast(codes.device.type, enabled=False):
            logits = (codes.float() * self.explained_variances.sqrt()) @ self.components + self.means
            return logits.sigmoid().unflatten(1, (self.size, self.size))

    @torch.no_grad()
    def fit(self, mask_batches: Iterable, *, batch_size: int = 1024) -> None:
        """
        Fit scikit-learn's IncrementalPCA, which needs memory for two batches, however many masks there are.

        With fewer masks than L the last components are 0.

        Args:
            mask_batches: see `MaskEmbedding.fit`.
            batch_size: masks per update; the last update takes up to twice as many.

        Raises:
            DatasetError: there is no mask.
            CheckpointError: scikit-learn is not installed.
        """
        try:
            from sklearn.decomposition import IncrementalPCA
        except ImportError as error:
            raise CheckpointError(
                "fitting the PCA mask embedding needs scikit-learn: pip install scikit-learn, or name a fitted file in "
                "MODEL.ISTR.PATH_COMPONENTS."
            ) from error

        pca = None
        for batch in rebatched(mask_batches, max(batch_size, self.dim)):
            masks = torch.as_tensor(batch, dtype=torch.float32, device="cpu")
            pca = pca or IncrementalPCA(min(self.dim, len(masks)))
            with np.errstate(invalid="ignore"):  # equal masks have no variance
                pca.partial_fit(self._logits(masks).numpy())
        if pca is None:
            raise DatasetError("the PCA mask embedding is fitted to masks, but the training set has none.")
        self._set(pca.components_, pca.mean_, pca.explained_variance_, pca.explained_variance_ratio_)

    def _set(self, components, mean, variance, ratio) -> None:
        """Arrays (l, S * S), (S * S,), (l,), (l,), l <= L. Components without variance are not whitened."""
        count = len(components)
        variance = np.nan_to_num(variance)
        variance = np.where(variance > 1e-6 * variance.max(), variance, 1)
        self.components.zero_()[:count] = torch.as_tensor(components)
        self.explained_variances.fill_(1)[:count] = torch.as_tensor(variance)
        self.means.copy_(torch.as_tensor(mean))
        self.explained_ratio[:] = 0
        self.explained_ratio[:count] = np.nan_to_num(ratio)

    @torch.no_grad()
    def _load(self, path: str) -> None:
        """
        Read an npz file of the authors' release or of `save_file`: components_c (1, l, S * S), mean_c (1, S * S),
        explained_variance_c (1, l), ratio_c (1, l). Uses the first L of l >= L components.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                components, mean, variance, ratio = (np.asarray(file[key], np.float32)[0] for key in _KEYS)
        except (KeyError, IndexError, ValueError, OSError, EOFError) as error:
            raise CheckpointError(f"{path} does not contain the arrays {', '.join(_KEYS)}.") from error
        if components.ndim != 2 or components.shape[1] != self.size**2 or len(components) < self.dim:
            raise CheckpointError(
                f"{path} contains components of shape {components.shape}; this config needs {self.dim} of "
                f"{self.size} x {self.size} pixels."
            )
        self._set(components[: self.dim], mean, variance[: self.dim], ratio[: self.dim])

    def save_file(self, path: str) -> None:
        """Write the npz file of the authors' release, see `_load`."""
        tensors = (self.components, self.means, self.explained_variances, torch.from_numpy(self.explained_ratio))
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{key: x.cpu().numpy()[None] for key, x in zip(_KEYS, tensors)})


def rebatched(mask_batches: Iterable, size: int) -> Iterator[np.ndarray]:
    """Regroup the rows of all batches into batches of ``size`` rows; the last one has up to 2 size - 1."""
    waiting = np.zeros(0)
    for batch in mask_batches:
        waiting = np.concatenate([waiting, batch]) if len(waiting) else np.asarray(batch)
        while len(waiting) >= 2 * size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting
