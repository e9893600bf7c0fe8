"""Pictures of a mask embedding: masks beside their decoded codes, and mean IoU against the length of a code."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from instseg_d2.files import atomic_write, write_bytes
from instseg_d2.modeling.istr import MaskEmbedding

SIDE = 112  # pixels of a drawn mask


@torch.no_grad()
def draw_reconstructions(embedding: MaskEmbedding, masks: torch.Tensor, columns: int = 8) -> np.ndarray:
    """
    Pairs of rows of masks: originals above, decoded codes below.

    Args:
        masks: (M, S, S) of 0 and 1.

    Returns:
        (H, W) uint8, grey.
    """
    was_training = embedding.training
    decoded = embedding.eval().decode(embedding.encode(masks)).clamp(0, 1)
    embedding.train(was_training)
    rows = []
    for start in range(0, len(masks), columns):
        for tiles in (masks[start : start + columns], decoded[start : start + columns]):
            row = np.full((SIDE + 4, columns * (SIDE + 4)), 128, np.uint8)
            for i, tile in enumerate(tiles.float().cpu().numpy()):
                picture = cv2.resize(tile * 255, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
                row[2:-2, i * (SIDE + 4) + 2 : (i + 1) * (SIDE + 4) - 2] = picture.round()
            rows.append(row)
        rows.append(np.full((8, columns * (SIDE + 4)), 255, np.uint8))
    return np.concatenate(rows[:-1])


def save_picture(path, picture: np.ndarray) -> None:
    """Write a grey or RGB uint8 picture in the format of the path's suffix."""
    suffix = "." + str(path).rsplit(".", 1)[-1]
    write_bytes(path, cv2.imencode(suffix, picture[..., ::-1] if picture.ndim == 3 else picture)[1].tobytes())


def plot_components(path, components: Sequence[int], curves: dict) -> None:
    """Write a line plot of mean IoU against the number of components; ``curves``: title -> a value for each number."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="components", ylabel="mean IoU of decoded masks", xticks=list(components))
    for title, values in curves.items():
        axes.plot(components, values, marker="o", label=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
