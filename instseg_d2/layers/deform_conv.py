"""
torchvision's deformable convolutions, with the parameter names of Detectron2's compiled ones.

N images, h x w cells of the input, h' x w' cells of the output.
"""

import torch
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """
    Deformable 3x3 convolution (Deformable ConvNets v1, v2).

    The first 2 * 9 * groups channels of ``offset_mask`` are offsets (dy, dx) in input pixels. With ``modulated``, the
    other 9 * groups are logits of the modulation.

    Args:
        weight: (C_out, C_in / conv_groups, 3, 3) parameter.
        bias: (C_out,) parameter, or None.
        norm: applied to the output, or None.
    """

    def __init__(self, weight, bias=None, *, stride=1, dilation=1, modulated=True, norm=None):
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.stride = stride
        self.dilation = dilation
        self.modulated = modulated
        self.norm = norm

    def forward(self, x: torch.Tensor, offset_mask: torch.Tensor) -> torch.Tensor:
        """x (N, C_in, h, w), offset_mask (N, 18 or 27 times groups, h', w') -> (N, C_out, h', w')."""
        mask = None
        if self.modulated:
            split = offset_mask.shape[1] // 3 * 2
            offset_mask, mask = offset_mask[:, :split], offset_mask[:, split:].sigmoid()
        # torchvision needs a single dtype, which autocast does not ensure on the CPU: use the weight's, float32.
        x, offset, mask = (None if t is None else t.to(self.weight.dtype) for t in (x, offset_mask, mask))
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.dilation, self.dilation, mask=mask)
        return x if self.norm is None else self.norm(x)


def offset_conv(conv: nn.Conv2d, modulated: bool, groups: int) -> nn.Module:
    """The zero-initialised 3x3 convolution that predicts the ``offset_mask`` of a deformable ``conv``."""
    offset = Conv2d(
        conv.in_channels,
        (27 if modulated else 18) * groups,
        kernel_size=3,
        stride=conv.stride,
        padding=conv.dilation,
        dilation=conv.dilation,
    )
    nn.init.zeros_(offset.weight)
    nn.init.zeros_(offset.bias)
    return offset


class SelfOffsetDeformConv(DeformConv):
    """
    A 3x3 convolution made deformable, which predicts its own offsets.

    Args:
        conv: the convolution whose weight, bias, stride and dilation are used.
        groups: number of offset groups.
    """

    def __init__(self, conv: nn.Conv2d, *, modulated: bool, groups: int = 1):
        super().__init__(conv.weight, conv.bias, stride=conv.stride, dilation=conv.dilation, modulated=modulated)
        self.offset = offset_conv(conv, modulated, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C_in, h, w) -> (N, C_out, h', w')."""
        return super().forward(x, self.offset(x))


class _DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck block whose 3x3 convolution is deformable; built by `make_block_deformable`."""

    def __init__(self, block: BottleneckBlock, modulated: bool, groups: int):
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        conv = block.conv2
        if conv.groups != 1:
            raise ValueError(f"the 3x3 convolution has {conv.groups} groups; a deformable block needs 1 group")
        self.conv2_offset = offset_conv(conv, modulated, groups)
        self.conv2 = DeformConv(
            conv.weight, stride=conv.stride, dilation=conv.dilation, modulated=modulated, norm=conv.norm
        )
        self.conv3 = block.conv3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(x).relu_()
        out = self.conv2(out, self.conv2_offset(out)).relu_()
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return (self.conv3(out) + shortcut).relu_()


def make_block_deformable(block: BottleneckBlock, *, modulated: bool, groups: int = 1) -> nn.Module:
    """The bottleneck block with its 3x3 convolution made deformable; offsets start at zero."""
    return _DeformBottleneckBlock(block, modulated, groups)
