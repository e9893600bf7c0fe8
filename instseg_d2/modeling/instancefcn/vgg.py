"""VGG-16 with stride 8, as InstanceFCN uses it. N images, C channels, h x w cells of a map, H x W pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import nn

# (number of convolutions, channels) of the five stages.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class ShiftedMaxPool(nn.Module):
    """A 2x2 max pool of stride 1 that keeps the size; every second value equals that of a pool with stride 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, h, w), at least 0 (after a ReLU) -> (N, C, h, w)."""
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)


class VGG16(Backbone):
    """
    The convolutions of VGG-16 (Simonyan and Zisserman 2015), numbered as in torchvision's ``vgg16().features``. The
    fourth pool has stride 1 and conv5 has dilation 2, so conv5 has stride 8 (InstanceFCN, section 3.4).
    """

    checkpointed_methods = ("stage",)

    def __init__(self, out_features: Sequence[str] = ("conv5",), freeze_at: int = 0, in_channels: int = 3):
        """
        Args:
            out_features: some of conv1 (stride 1), conv2 (2), conv3 (4), conv4 (8) and conv5 (8).
            freeze_at: number of frozen stages, 0 to 5.

        Raises:
            ValueError: ``out_features`` is empty or has other names.
        """
        super().__init__()
        if not out_features or not set(out_features) <= {f"conv{i}" for i in range(1, len(STAGES) + 1)}:
            raise ValueError(f"out_features is {list(out_features)}; VGG-16 only has the maps conv1 to conv5.")
        self._out_features = list(out_features)
        self._out_feature_strides = {}
        self._out_feature_channels = {}
        self._ends = {}  # index of a stage's last layer -> its name
        layers = []
        stride = 1
        for number, (convs, channels) in enumerate(STAGES, start=1):
            dilation = 2 if number == 5 else 1
            for _ in range(convs):
                conv = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(conv.bias)
                conv.requires_grad_(number > freeze_at)
                layers += [conv, nn.ReLU(inplace=True)]
                in_channels = channels
            name = f"conv{number}"
            self._ends[len(layers) - 1] = name
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels
            if name == max(self._out_features):
                break
            layers.append(ShiftedMaxPool() if number == 4 else nn.MaxPool2d(2))
            stride *= 1 if number == 4 else 2
        self.features = nn.Sequential(*layers)

    @property
    def size_divisibility(self) -> int:
        """8, because the pools drop incomplete blocks at the border."""
        return 8

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """x (N, 3, H, W) -> name -> (N, C, H / stride, W / stride)."""
        outputs, start = {}, 0
        for end, name in self._ends.items():
            x = self.stage(start, end, x)
            if name in self._out_features:
                outputs[name] = x
            start = end + 1
        return outputs

    def stage(self, first: int, last: int, x: torch.Tensor) -> torch.Tensor:
        """Run the layers ``first`` to ``last``."""
        for layer in self.features[first : last + 1]:
            x = layer(x)
        return x


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg, input_shape: ShapeSpec) -> VGG16:
    """VGG-16 up to MODEL.INSTANCE_FCN.IN_FEATURE; MODEL.BACKBONE.FREEZE_AT counts its stages conv1, conv2, ..."""
    out_features = {cfg.MODEL.INSTANCE_FCN.IN_FEATURE}
    if cfg.MODEL.INSTANCE_FCN.CLASSIFY:
        out_features |= set(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    return VGG16(sorted(out_features), cfg.MODEL.BACKBONE.FREEZE_AT, input_shape.channels)
