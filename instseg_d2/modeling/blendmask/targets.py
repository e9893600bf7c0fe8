"""The semantic training target of BlendMask's basis module. N images, H x W pixels."""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances

from ..ground_truth import pad_maps, semantic_map


def semantic_target(
    batched_inputs: Sequence[dict], gt_instances: Sequence[Instances], size: tuple, stride: int
) -> torch.Tensor:
    """
    Semantic labels at every ``stride``-th pixel: class + 1, or 0 for background. They come from the samples'
    ``basis_sem`` (H, W) or, if a mapper gives none, from the instance masks.

    Args:
        size: (H, W) of the padded batch.

    Returns:
        (N, ceil(H / stride), ceil(W / stride)) int64.
    """
    maps = [
        x["basis_sem"][::stride, ::stride] if "basis_sem" in x else semantic_map(instances, stride)
        for x, instances in zip(batched_inputs, gt_instances)
    ]
    return pad_maps(maps, [-(-side // stride) for side in size], 0, gt_instances[0].gt_boxes.device)
