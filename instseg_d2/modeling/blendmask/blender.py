"""
The blender of BlendMask: merges the bases of the image and the attention of each detection into masks.

N images, K bases (the paper's letter; elsewhere K is the number of classes), D boxes (of objects in training, else of
detections), P attention maps (one per positive location or detection), A attention size, R mask resolution, h x w cells
of the bases.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ... import ops
from ...layers import assemble_boxes, check_choice, crop_boxes


class Blender(nn.Module):
    """
    Merges bases and attention inside boxes (BlendMask, section 3.3; `yolact` and `fcis` are its ablations).

    * blender: the attention is resized to R x R and passes a softmax over the bases; the mask is the weighted sum of
      the cropped bases (eq. 3-5).
    * yolact: the sum of the cropped bases with one weight per base.
    * fcis: no attention. The box is divided into k x k parts; a cell of part (i, j) reads basis i * k + j.
    """

    @configurable
    def __init__(
        self,
        *,
        num_bases: int,
        attention_size: int = 14,
        resolution: int = 56,
        spatial_scale: float = 0.25,
        sampling_ratio: int = 1,
        aligned: bool = True,
        top_interp: str = "bilinear",
        bottom_interp: str = "bilinear",
        merging: str = "blender",
    ):
        """
        Args:
            num_bases: K.
            attention_size: A.
            resolution: R.
            spatial_scale: cells of the bases per input pixel.
            sampling_ratio, aligned: see RoIAlign.
            top_interp, bottom_interp: interpolation of the attention and of the bases, "bilinear" or "nearest".
            merging: "blender", "yolact" or "fcis".

        Raises:
            ValueError: unknown value, or fcis with a number of bases that is not a square.
        """
        super().__init__()
        check_choice("top_interp", top_interp, ("bilinear", "nearest"))
        check_choice("bottom_interp", bottom_interp, ("bilinear", "nearest"))
        check_choice("merging", merging, ("blender", "yolact", "fcis"))
        self.grid = math.isqrt(num_bases)
        if merging == "fcis" and self.grid**2 != num_bases:
            raise ValueError(f"fcis needs a square number of bases; got {num_bases}")
        self.num_bases = num_bases
        self.attention_size = 1 if merging == "yolact" else attention_size
        self.resolution = resolution
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.top_interp = top_interp
        self.bottom_interp = bottom_interp
        self.merging = merging

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.BLENDMASK
        return {
            "num_bases": cfg.MODEL.BASIS_MODULE.NUM_BASES,
            "attention_size": node.ATTN_SIZE,
            "resolution": node.BOTTOM_RESOLUTION,
            "spatial_scale": node.POOLER_SCALES[0],
            "sampling_ratio": node.POOLER_SAMPLING_RATIO,
            "aligned": node.POOLER_TYPE == "ROIAlignV2",
            "top_interp": node.TOP_INTERP,
            "bottom_interp": node.BOTTOM_INTERP,
            "merging": node.MERGING,
        }

    @property
    def num_attention_channels(self) -> int:
        """Number of attention values per detection; 0 for fcis."""
        return 0 if self.merging == "fcis" else self.num_bases * self.attention_size**2

    def crop(self, bases: torch.Tensor, boxes: torch.Tensor, batch_index: torch.Tensor) -> torch.Tensor:
        """Crop the bases to each box: (D, K, R, R)."""
        return crop_boxes(bases, boxes, batch_index, self.resolution, self.spatial_scale, **self._sampling)

    @property
    def _sampling(self) -> dict:
        return {
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
            "interpolation": self.bottom_interp,
        }

    def forward(
        self,
        bases: torch.Tensor,
        boxes: torch.Tensor,
        batch_index: torch.Tensor,
        attention: Optional[torch.Tensor],
        box_index: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            bases: (N, K, h, w).
            boxes: (D, 4) x1, y1, x2, y2, input pixels.
            batch_index: (D,) int64, the image of each box.
            attention: (P, K * A * A), basis-major; None for fcis.
            box_index: (P,) int64, the box of each attention map; None if there is one per box, in order.

        Returns:
            (P, R, R) mask logits.
        """
        if self.merging == "blender":
            attention = attention.view(-1, self.num_bases, self.attention_size, self.attention_size)
            if self.bottom_interp == "bilinear" and self.aligned and self.sampling_ratio == 1:
                return ops.blend_masks(
                    bases,
                    boxes,
                    batch_index,
                    attention,
                    box_index=box_index,
                    resolution=self.resolution,
                    spatial_scale=self.spatial_scale,
                    top_interp=self.top_interp,
                )
            weights = F.interpolate(
                attention,
                (self.resolution, self.resolution),
                mode=self.top_interp,
                align_corners=False if self.top_interp == "bilinear" else None,
            ).softmax(dim=1)
        elif self.merging == "yolact":
            weights = attention[..., None, None]
        else:
            masks = assemble_boxes(
                bases, boxes, batch_index, self.grid, self.resolution, self.spatial_scale, **self._sampling
            )[:, 0]
            return masks if box_index is None else masks[box_index]
        crops = self.crop(bases, boxes, batch_index)
        return (weights * (crops if box_index is None else crops[box_index])).sum(1)
