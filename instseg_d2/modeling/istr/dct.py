"""Masks in their lowest cosine frequencies. M masks, s their side, l coefficients, k the rows and columns they use."""

import math

import torch
from detectron2.config import configurable

from .embedding import MASK_EMBEDDING_REGISTRY, MaskEmbedding


def cosine_basis(size: int) -> torch.Tensor:
    """
    The orthonormal one-dimensional DCT-II as a matrix: B[u, x] = c_u cos(pi (2 x + 1) u / (2 s)), c_0 = sqrt(1 / s),
    c_u = sqrt(2 / s); float64 (s, s), frequencies in rows.
    """
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * (2 * torch.arange(size, dtype=torch.float64) + 1) * frequency / (2 * size))
    basis *= math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def zigzag(size: int, count: int) -> torch.Tensor:
    """
    The first ``count`` places (row, column) of an s x s grid in zig-zag order: int64 (count, 2).

    Diagonal i holds (i - j, j) for j = 0..i where i is even, (j, i - j) where it is odd.
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
    The first l coefficients of the orthonormal two-dimensional DCT-II of the mask, in zig-zag order. Nothing is
    fitted. The decoded mask is the inverse transform with all other coefficients 0; no sigmoid, no clamp.
    """

    @configurable
    def __init__(self, *, dim: int, size: int):
        super().__init__(dim=dim, size=size)
        places = zigzag(size, dim)
        rows = int(places.max()) + 1  # k: higher frequencies never occur
        self.register_buffer("basis", cosine_basis(size)[:rows].float(), persistent=False)  # (k, s)
        self.register_buffer("index", places[:, 0] * rows + places[:, 1], persistent=False)  # (l,) in the k x k grid

    def _encode(self, masks):
        return (self.basis @ masks @ self.basis.T).flatten(1)[:, self.index]

    def decode(self, codes, roi_features=None):
        with torch.autocast(codes.device.type, enabled=False):
            rows = len(self.basis)
            grid = codes.new_zeros((len(codes), rows * rows), dtype=torch.float32)
            grid = grid.index_copy(1, self.index, codes.float())
            return self.basis.T @ grid.unflatten(1, (rows, rows)) @ self.basis
