"""Full-size masks from the compact ones of exported models. Files with compact masks carry this text."""

import numpy as np


def mask_patch(mask, box, canvas, image_size, output_size, information):
    """
    The part of a full-size mask that is not empty.

    Args:
        mask: (R, R) crop or (h, w) map, float. box: (4,) x1, y1, x2, y2 that a crop fills, output pixels.
        canvas, image_size, output_size: (height, width) of the file's input, of the image in it, and of the output.
        information: the entry "masks" of the file's metadata.

    Returns:
        y, x: first row and column of the part; (height, width) bool, the part.
    """

    def weights(pixels, cells, size):  # (pixels, cells): bilinear resizing of cells to size pixels, of which the first
        place = ((np.arange(pixels) + 0.5) * (cells / size) - 0.5).clip(0, cells - 1)
        return (1 - abs(place[:, None] - np.arange(cells))).clip(0).astype(np.float32)

    first, axes = [], []
    for axis in (0, 1):
        cells, pixels, image = mask.shape[axis], int(output_size[axis]), int(image_size[axis])
        if information["form"] == "crops":
            low, high = float(box[1 - axis]), float(box[3 - axis])
            start, stop = int(max(low - 1, 0)), int(min(max(np.ceil(high + 1), 0), pixels))
            place = (np.arange(start, max(stop, start)) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
            axes.append((1 - abs(place[:, None] - np.arange(cells))).clip(0).astype(np.float32))
            first.append(start)
            continue
        if "stride" in information:
            stretched = -(-cells * information["stride"] * pixels // image)
            rows = weights(pixels, cells, stretched)
        else:
            unit = information["size_divisibility"]
            padded = -(-int(canvas[axis]) // unit) * unit
            rows = weights(pixels, image, pixels) @ weights(image, cells, padded)
        inside = np.flatnonzero((mask > information["threshold"]).any(1 - axis))
        touched = np.flatnonzero(rows[:, inside].any(1)) if len(inside) else inside
        start, stop = (touched[0], touched[-1] + 1) if len(touched) else (0, 0)
        first.append(int(start))
        axes.append(rows[start:stop])
    values = axes[0] @ mask @ axes[1].T
    crop = information["form"] == "crops"
    return (*first, values >= information["threshold"] if crop else values > information["threshold"])
