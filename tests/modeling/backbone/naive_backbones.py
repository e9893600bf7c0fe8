"""The backbones of SparseInst's authors written out layer by layer, under the names of their release."""

import math

import torch
import torch.nn.functional as F


class Weights(dict):
    """Parameters by name; one that is asked for the first time is drawn."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def get(self, name, *shape):
        if name not in self:
            draw = torch.randn(shape, generator=self.generator)
            if len(shape) > 1:
                self[name] = draw / math.sqrt(math.prod(shape[1:]))
            elif name.endswith(("running_var", ".weight")):
                self[name] = 0.5 + draw.abs()
            else:
                self[name] = 0.1 * draw
        assert self[name].shape == shape
        return self[name]


def conv(w, name, x, out, k, stride=1, padding=None, groups=1, bias=False):
    weight = w.get(f"{name}.weight", out, x.shape[1] // groups, k, k)
    bias = w.get(f"{name}.bias", out) if bias else None
    return F.conv2d(x, weight, bias, stride, k // 2 if padding is None else padding, groups=groups)


def batch_norm(w, name, x):
    mean, var, weight, bias = (
        w.get(f"{name}.{part}", x.shape[1])[:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def deform_conv(x, weight, offset, stride):
    """Nine shifted bilinear samplings, zero outside the image; offset: (dy, dx) of each tap."""
    height, width = x.shape[-2:]
    y0 = (torch.arange(offset.shape[2]) * stride - 1)[:, None]
    x0 = torch.arange(offset.shape[3]) * stride - 1
    total = 0
    for tap in range(9):
        i, j = divmod(tap, 3)
        py, px = y0 + i + offset[:, 2 * tap], x0 + j + offset[:, 2 * tap + 1]
        grid = torch.stack([2 * px / (width - 1) - 1, 2 * py / (height - 1) - 1], -1)
        sampled = F.grid_sample(x, grid, align_corners=True)
        total = total + torch.einsum("nchw,oc->nohw", sampled, weight[:, :, i, j])
    return total


def resnet_d(w, x, depths, deformable=()):
    """Maps of strides 4, 8, 16, 32; ``deformable``: indices of stages."""
    for i, (out, norm) in enumerate([(32, "conv1.1"), (32, "conv1.4"), (64, "bn1")]):
        x = batch_norm(w, norm, conv(w, f"conv1.{3 * i}", x, out, 3, stride=2 if i == 0 else 1)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for i in range(depth):
            name = f"layer{stage + 1}.{i}"
            stride = 2 if stage > 0 and i == 0 else 1
            y = batch_norm(w, f"{name}.bn1", conv(w, f"{name}.conv1", x, width, 1)).relu()
            if stage in deformable:
                offset = conv(w, f"{name}.conv2_offset", y, 18, 3, stride, bias=True)
                y = deform_conv(y, w.get(f"{name}.conv2.weight", width, width, 3, 3), offset, stride)
            else:
                y = conv(w, f"{name}.conv2", y, width, 3, stride)
            y = batch_norm(w, f"{name}.bn2", y).relu()
            y = batch_norm(w, f"{name}.bn3", conv(w, f"{name}.conv3", y, 4 * width, 1))
            if i == 0:
                if stage > 0:
                    x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
                x = batch_norm(w, f"{name}.downsample.2", conv(w, f"{name}.downsample.1", x, 4 * width, 1))
            x = (x + y).relu()
        maps.append(x)
    return maps


def _conv_norm_leaky(w, name, x, out, k, stride=1):
    return F.leaky_relu(batch_norm(w, f"{name}.bn", conv(w, f"{name}.conv", x, out, k, stride)), 0.01)


def csp_darknet53(w, x):
    """Maps of stages 0 to 4, strides 2 to 32."""
    x = _conv_norm_leaky(w, "stem.conv1", x, 32, 3)
    maps = []
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4))):
        name = f"stages.{stage}"
        x = _conv_norm_leaky(w, f"{name}.conv_down", x, width, 3, 2)
        x = _conv_norm_leaky(w, f"{name}.conv_exp", x, 128 if stage == 0 else width, 1)
        half = x.shape[1] // 2
        bypass, y = x[:, :half], x[:, half:]
        for i in range(depth):
            z = _conv_norm_leaky(w, f"{name}.blocks.{i}.conv1", y, 32 if stage == 0 else half, 1)
            y = y + _conv_norm_leaky(w, f"{name}.blocks.{i}.conv2", z, half, 3)
        y = _conv_norm_leaky(w, f"{name}.conv_transition_b", y, half, 1)
        x = _conv_norm_leaky(w, f"{name}.conv_transition", torch.cat([bypass, y], 1), width, 1)
        maps.append(x)
    return maps


def _linear(w, name, x, out):
    return F.linear(x, w.get(f"{name}.weight", out, x.shape[-1]), w.get(f"{name}.bias", out))


def _layer_norm(w, name, x, eps):
    size = x.shape[-1]
    return F.layer_norm(x, (size,), w.get(f"{name}.weight", size), w.get(f"{name}.bias", size), eps)


def _attention(w, name, x, size, heads, reduction, linear):
    """x: (N, tokens, C)."""
    channels = x.shape[-1]
    q = _linear(w, f"{name}.q", x, channels)
    image = x.transpose(1, 2).unflatten(2, size)
    if linear:
        image = conv(w, f"{name}.sr", F.adaptive_avg_pool2d(image, 7), channels, 1, bias=True)
        x = F.gelu(_layer_norm(w, f"{name}.norm", image.flatten(2).transpose(1, 2), 1e-5))
    elif reduction > 1:
        image = conv(w, f"{name}.sr", image, channels, reduction, reduction, padding=0, bias=True)
        x = _layer_norm(w, f"{name}.norm", image.flatten(2).transpose(1, 2), 1e-5)
    k, v = _linear(w, f"{name}.kv", x, 2 * channels).chunk(2, -1)
    outputs = []
    for q_head, k_head, v_head in zip(*(t.chunk(heads, -1) for t in (q, k, v))):
        weight = (q_head @ k_head.transpose(1, 2) / math.sqrt(channels // heads)).softmax(-1)
        outputs.append(weight @ v_head)
    return _linear(w, f"{name}.proj", torch.cat(outputs, -1), channels)


def _feed_forward(w, name, x, size, ratio, linear):
    channels = x.shape[-1]
    x = _linear(w, f"{name}.fc1", x, ratio * channels)
    x = F.relu(x) if linear else x
    x = x.transpose(1, 2).unflatten(2, size)
    x = conv(w, f"{name}.dwconv.dwconv", x, x.shape[1], 3, groups=x.shape[1], bias=True)
    return _linear(w, f"{name}.fc2", F.gelu(x.flatten(2).transpose(1, 2)), channels)


def pvt_v2(w, x, depths, linear=False):
    """Maps of stages 1 to 4, strides 4 to 32."""
    maps = []
    kinds = zip((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1), depths)
    for stage, (channels, heads, ratio, reduction, depth) in enumerate(kinds, 1):
        k, stride = (7, 4) if stage == 1 else (3, 2)
        x = conv(w, f"patch_embed{stage}.proj", x, channels, k, stride, bias=True)
        size = tuple(x.shape[-2:])
        x = _layer_norm(w, f"patch_embed{stage}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        for i in range(depth):
            name = f"block{stage}.{i}"
            y = _layer_norm(w, f"{name}.norm1", x, 1e-6)
            x = x + _attention(w, f"{name}.attn", y, size, heads, reduction, linear)
            y = _layer_norm(w, f"{name}.norm2", x, 1e-6)
            x = x + _feed_forward(w, f"{name}.mlp", y, size, ratio, linear)
        x = _layer_norm(w, f"norm{stage}", x, 1e-6).transpose(1, 2).unflatten(2, size)
        maps.append(x)
    return maps
