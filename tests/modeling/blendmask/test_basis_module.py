"""BlendMask's bottom modules against their layers written out, and config values that do not fit together."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.errors import ConfigError
from tests.tiny import tiny_model

DEEPLAB = ["MODEL.BASIS_MODULE.NAME", "DeepLabV3Plus", "MODEL.BASIS_MODULE.IN_FEATURES", ["p3", "p5"]]


def unit(weights, name, x, dilation=1):
    """Convolution without bias, batch norm, ReLU."""
    kernel = weights[f"{name}.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2 * dilation, dilation=dilation)
    parts = (weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *parts))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def proto_net(weights, maps):
    x = sum(resized(unit(weights, f"refine.{i}", level), (12, 16)) for i, level in enumerate(maps.values()))
    x = unit(weights, "upsampled_conv", resized(unit(weights, "tower.0", x), (24, 32)))
    return F.conv2d(x, weights["predictor.weight"], weights["predictor.bias"])


def deeplab(weights, maps):
    high = maps["p5"]
    parts = [unit(weights, f"pyramid.convs.{i}", high, rate) for i, rate in enumerate((1, 6, 12, 18))]
    mean = high.mean((2, 3), keepdim=True)
    mean = F.relu(F.conv2d(mean, weights["pyramid.convs.4.1.weight"], weights["pyramid.convs.4.1.bias"]))
    high = unit(weights, "pyramid.project", torch.cat([*parts, mean.expand(-1, -1, *high.shape[-2:])], 1))
    x = torch.cat([resized(high, (12, 16)), unit(weights, "project", maps["p3"])], 1)
    x = resized(unit(weights, "tower.0", x), (24, 32))
    return F.conv2d(x, weights["predictor.weight"], weights["predictor.bias"])


@pytest.mark.parametrize(("opts", "expected"), [([], proto_net), (DEEPLAB, deeplab)])
def test_layers_written_out(opts, expected):
    module = tiny_model("BlendMask", *opts).basis_module.eval()
    weights = module.state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    sizes = {"p3": (12, 16), "p4": (6, 8), "p5": (3, 4)}
    maps = {name: torch.randn(2, 64, *size, generator=generator) for name, size in sizes.items()}
    with torch.no_grad():
        torch.testing.assert_close(module(maps), expected(weights, maps), rtol=1e-4, atol=1e-4)


def test_the_common_stride_is_that_of_the_semantic_logits():
    with pytest.raises(ConfigError, match=r"BASIS_MODULE\.COMMON_STRIDE is 4; the semantic loss on p3 needs its .* 8"):
        tiny_model("BlendMask", "MODEL.BASIS_MODULE.COMMON_STRIDE", 4)
    tiny_model("BlendMask", "MODEL.BASIS_MODULE.COMMON_STRIDE", 4, "MODEL.BASIS_MODULE.LOSS_ON", False)
