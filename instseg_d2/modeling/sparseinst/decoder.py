"""
Decoders of SparseInst: instance activation maps pool features, dynamic kernels predict masks (sections 3.2 and 3.4).

N images, Q slots per image, G groups, C channels, E channels of a mask kernel, K classes, h x w cells of the features.
"""

import logging
import math

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, get_norm
from detectron2.utils.registry import Registry
from torch import nn

from ...layers import init_normal
from .tiles import carries_coordinates, start_with_tiles

logger = logging.getLogger(__name__)

SPARSE_INST_DECODER_REGISTRY = Registry("SPARSE_INST_DECODER")
SPARSE_INST_DECODER_REGISTRY.__doc__ = """
Modules called with (cfg) whose forward maps the encoder's features (N, C, h, w) to a dict of predictions.
"""


def build_sparse_inst_decoder(cfg) -> nn.Module:
    """The module named by MODEL.SPARSE_INST.DECODER.NAME."""
    return SPARSE_INST_DECODER_REGISTRY.get(cfg.MODEL.SPARSE_INST.DECODER.NAME)(cfg)


def coordinate_channels(x: torch.Tensor) -> torch.Tensor:
    """x and y coordinates of the cells, from -1 at the first to 1 at the last: (N, C, h, w) -> (N, 2, h, w)."""
    height, width = x.shape[-2:]
    ys, xs = (torch.arange(n, device=x.device) * 2 / max(n - 1, 1) - 1 for n in (height, width))
    ys, xs = ys.to(x.dtype), xs.to(x.dtype)
    shape = (x.shape[0], 1, height, width)
    return torch.cat([xs.expand(shape), ys[:, None].expand(shape)], dim=1)


def conv_stack(in_channels: int, channels: int, num_convs: int, norm: str = "") -> nn.Sequential:
    """``num_convs`` times a 3x3 convolution with bias (MSRA), the norm if there is one, and ReLU."""
    layers = []
    for inputs in [in_channels, *[channels] * (num_convs - 1)]:
        conv = Conv2d(inputs, channels, 3, padding=1, norm=get_norm(norm, channels))
        weight_init.c2_msra_fill(conv)
        layers += [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class InstanceBranch(nn.Module):
    """
    Features (N, C, h, w) -> class logits, mask kernels, objectness logits and activation maps.

    * groups = 0: a 3x3 convolution and a sigmoid give Q maps, each normalised by its sum (the paper's BaseIAM).
    * groups = G: a grouped convolution gives Q maps per group; a linear layer joins a slot's G vectors (GroupIAM).
    * softmax: a softmax over the cells replaces the normalised sigmoid (GroupIAMSoft).
    * norm: after the 3x3 convolutions; the paper has none.
    """

    checkpointed_methods = ("forward",)

    def __init__(
        self, in_channels, channels, num_convs, num_masks, num_classes, kernel_dim, groups=0, softmax=False, norm=""
    ):
        super().__init__()
        if groups and channels % groups:
            raise ValueError(f"channels must be a multiple of the groups, {groups}; got {channels}")
        self.groups = groups
        self.num_masks = num_masks
        self.convs = conv_stack(in_channels, channels, num_convs, norm)
        self.iam_conv = nn.Conv2d(channels, num_masks * max(groups, 1), 3, padding=1, groups=max(groups, 1))
        width = channels * max(groups, 1)
        self.fc = nn.Linear(width, width) if groups else None
        # In the authors' checkpoints, although a softmax ignores a constant.
        self.softmax_bias = nn.Parameter(torch.ones(1)) if softmax else None
        self.class_logits = nn.Linear(width, num_classes)
        self.mask_kernel = nn.Linear(width, kernel_dim)
        self.objectness = nn.Linear(width, 1)
        init_normal(self.iam_conv, self.class_logits, self.mask_kernel)
        for layer in (self.iam_conv, self.class_logits):
            nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))  # a probability of 0.01
        if self.fc is not None:
            weight_init.c2_xavier_fill(self.fc)

    def activation_maps(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, max(G, 1) * Q, h * w) float32. Each map sums to 1, or less if nothing is active."""
        logits = self.iam_conv(features).float().flatten(2)
        if self.softmax_bias is not None:
            return (logits + self.softmax_bias).softmax(-1)
        maps = logits.sigmoid()
        return maps / maps.sum(-1, keepdim=True).clamp(min=1e-6)

    def predict(self, maps: torch.Tensor, features: torch.Tensor):
        """
        Pool the features under maps, and predict from the vectors.

        Args:
            maps: (N, max(G, 1) * q, h * w), each with the sum 1; the maps of a group come together.
            features: (N, C, h, w).

        Returns:
            class logits (N, q, K), mask kernels (N, q, E), objectness logits (N, q, 1).
        """
        vectors = torch.bmm(maps.to(features.dtype), features.flatten(2).transpose(1, 2))
        if self.fc is not None:
            vectors = vectors.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(2)
            vectors = F.relu(self.fc(vectors))
        return self.class_logits(vectors), self.mask_kernel(vectors), self.objectness(vectors)

    def forward(self, x: torch.Tensor):
        """(N, in_channels, h, w) -> the results of `predict`, the maps, and the features that they pool."""
        features = self.convs(x)
        maps = self.activation_maps(features)
        return *self.predict(maps, features), maps, features


def _start_again(branch: InstanceBranch, keys) -> None:
    """
    After weights of another number of slots were loaded: the maps would read coordinates that no convolution carries.
    """
    lacks = {name for name in ("iam_conv.weight", "convs.0.weight") if any(key.endswith(name) for key in keys[0])}
    if lacks == {"iam_conv.weight"}:
        start_with_tiles(branch)


def _check_places(branch: InstanceBranch, _) -> None:
    """After weights were loaded for a training in which slots are matched by their places."""
    if not carries_coordinates(branch.convs):
        logger.warning(
            "These weights were not trained with MODEL.SPARSE_INST.DECODER.START tiles: their slots have no places, "
            "which MATCHER.SIGMA needs. Set MODEL.SPARSE_INST.MATCHER.SIGMA 0, or start from weights without slots."
        )


class MaskBranch(nn.Module):
    """Features (N, C, h, w) -> mask features (N, E, h, w)."""

    checkpointed_methods = ("forward",)

    def __init__(self, in_channels: int, channels: int, num_convs: int, kernel_dim: int, norm: str = ""):
        super().__init__()
        self.convs = conv_stack(in_channels, channels, num_convs, norm)
        self.projection = nn.Conv2d(channels, kernel_dim, 1)
        weight_init.c2_msra_fill(self.projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(self.convs(x))


class IAMDecoder(nn.Module):
    """The instance branch and the mask branch, which also read coordinate channels."""

    grouped = False
    softmax = False

    @configurable
    def __init__(self, *, instance_branch: nn.Module, mask_branch: nn.Module, scale_factor: float = 2.0):
        """
        Args:
            scale_factor: upsampling from the features to the masks.
        """
        super().__init__()
        self.instance_branch = instance_branch
        self.mask_branch = mask_branch
        self.scale_factor = scale_factor

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.SPARSE_INST.DECODER
        in_channels = cfg.MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS + 2
        branch = InstanceBranch(
            in_channels,
            node.INST.DIM,
            node.INST.CONVS,
            node.NUM_MASKS,
            node.NUM_CLASSES,
            node.KERNEL_DIM,
            groups=node.GROUPS if cls.grouped else 0,
            softmax=cls.softmax,
            norm=node.NORM,
        )
        if node.START == "tiles":
            start_with_tiles(branch)
            branch.register_load_state_dict_post_hook(_start_again)
        if cfg.MODEL.SPARSE_INST.MATCHER.SIGMA:
            branch.register_load_state_dict_post_hook(_check_places)
        return {
            "instance_branch": branch,
            "mask_branch": MaskBranch(in_channels, node.MASK.DIM, node.MASK.CONVS, node.KERNEL_DIM, node.NORM),
            "scale_factor": node.SCALE_FACTOR,
        }

    def masks(self, kernels: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """(N, q, E) and (N, E, h, w) -> mask logits (N, q, s h, s w) float32 for scale factor s."""
        with torch.autocast(kernels.device.type, enabled=False):  # float16 might overflow
            masks = torch.bmm(kernels.float(), mask_features.flatten(2).float())
        masks = masks.view(*kernels.shape[:2], *mask_features.shape[-2:])
        return F.interpolate(masks, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            features: (N, C, h, w).

        Returns:
            class_logits (N, Q, K), objectness_logits (N, Q), mask_logits (N, Q, s h, s w) float32 for scale factor s,
            and activation_maps (N, Q, max(G, 1), h, w). In training also instance_features (N, C, h, w) and
            mask_features (N, E, h, w).
        """
        batch, _, height, width = features.shape
        x = torch.cat([coordinate_channels(features), features], dim=1)
        class_logits, kernels, objectness, maps, instance_features = self.instance_branch(x)
        mask_features = self.mask_branch(x)
        outputs = {
            "class_logits": class_logits,
            "objectness_logits": objectness[..., 0],
            "mask_logits": self.masks(kernels, mask_features),
            "activation_maps": maps.view(batch, -1, self.instance_branch.num_masks, height, width).transpose(1, 2),
        }
        if self.training:
            outputs.update(instance_features=instance_features, mask_features=mask_features)
        return outputs


@SPARSE_INST_DECODER_REGISTRY.register()
class BaseIAMDecoder(IAMDecoder):
    """One activation map per slot (BaseIAM)."""


@SPARSE_INST_DECODER_REGISTRY.register()
class GroupIAMDecoder(IAMDecoder):
    """G activation maps per slot (GroupIAM)."""

    grouped = True


@SPARSE_INST_DECODER_REGISTRY.register()
class GroupIAMSoftDecoder(IAMDecoder):
    """G activation maps per slot, with a softmax over the cells (GroupIAMSoft)."""

    grouped = True
    softmax = True
