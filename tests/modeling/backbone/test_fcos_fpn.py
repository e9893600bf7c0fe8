"""The FPN of FCOS: its levels above the last one of the bottom-up network."""

import math

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.modeling.backbone import build_backbone, freeze_unused_levels
from instseg_d2.modeling.backbone.fcos_fpn import HalvingConv
from tests.tiny import tiny_config


@pytest.mark.parametrize(("maps", "last"), [(["res3", "res4", "res5"], "p5"), (["res3", "res4"], "p4")])
@pytest.mark.parametrize("top_levels", [0, 1, 2])
def test_levels_above_the_last_one(maps, last, top_levels):
    options = ["MODEL.RESNETS.OUT_FEATURES", maps, "MODEL.FPN.IN_FEATURES", maps, "MODEL.FCOS.TOP_LEVELS", top_levels]
    fpn = build_backbone(tiny_config("BlendMask", *options, "MODEL.BASIS_MODULE.IN_FEATURES", ["p3"])).eval()
    first = int(last[1:]) + 1
    names = [f"p{level}" for level in range(3, first + top_levels)]
    shapes = fpn.output_shape()
    assert [(name, shape.stride) for name, shape in shapes.items()] == [(name, 2 ** int(name[1])) for name in names]
    with torch.no_grad():
        levels = fpn(torch.rand(1, 3, 128, 192))
        x = levels[last]
        for name in names[-top_levels:] if top_levels else []:
            layer = getattr(fpn.top_block, "p6" if int(name[1]) == first else "p7")
            x = F.conv2d(x if int(name[1]) == first else x.relu(), layer.weight, layer.bias, stride=2, padding=1)
            torch.testing.assert_close(levels[name], x)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (3, 1), (5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halving_any_map(size, dtype):
    """Gradients of maps of one column, too, whatever was in the memory before."""
    torch.manual_seed(0)
    layer = HalvingConv(16)
    for _ in range(20):
        rubbish = [torch.full((16 * 16 * 9,), math.nan, dtype=kind) for kind in (torch.float32, torch.bfloat16)]
        del rubbish
        x = torch.randn(2, 16, *size).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = layer(x)
        assert found.dtype == dtype
        parameters = (x, layer.weight, layer.bias)
        grads = torch.autograd.grad(found.float().square().sum(), parameters)
        padded = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)  # (N, C, H', W', 3, 3)
        expected = torch.einsum("nchwij,ocij->nohw", padded, layer.weight) + layer.bias[:, None, None]
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(found.float(), expected, **tolerance)
        wanted = torch.autograd.grad(expected.square().sum(), parameters)
        for a, b in zip(grads, wanted):
            assert (a - b).norm() <= (1e-4 if dtype == torch.float32 else 0.05) * b.norm() + 1e-5


def test_unread_levels_are_frozen():
    maps = ["res2", "res3", "res4", "res5"]
    options = ["MODEL.RESNETS.OUT_FEATURES", maps, "MODEL.FPN.IN_FEATURES", maps, "MODEL.BASIS_MODULE.IN_FEATURES", []]
    fpn = build_backbone(tiny_config("BlendMask", *options))
    freeze_unused_levels(fpn, ["p3", "p5"])
    frozen = {name.rsplit(".", 1)[0] for name, p in fpn.named_parameters() if not p.requires_grad}
    top = {"top_block.p6", "top_block.p7"}
    assert frozen - {"bottom_up"} == {"fpn_lateral2", "fpn_output2", "fpn_output4", *top}
    fpn = build_backbone(tiny_config("BlendMask", *options))
    freeze_unused_levels(fpn, ["p2", "p3", "p4", "p5", "p6"])
    assert {n.rsplit(".", 1)[0] for n, p in fpn.named_parameters() if not p.requires_grad} == {"top_block.p7"}
    fpn = build_backbone(tiny_config("BlendMask", *options))
    freeze_unused_levels(fpn, ["p2", "p3", "p4", "p5", "p7"])
    assert {n.rsplit(".", 1)[0] for n, p in fpn.named_parameters() if not p.requires_grad} == set()


def test_unread_levels_of_detectron2s_retinanet_fpn():
    """Whose top block reads res5."""
    fpn = build_backbone(tiny_config("BlendMask", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"))
    freeze_unused_levels(fpn, ["p3", "p4", "p5", "p6"])
    frozen = {name.rsplit(".", 1)[0] for name, p in fpn.named_parameters() if not p.requires_grad}
    assert frozen == {"top_block.p7"}
