"""The dilated ResNet: the hole algorithm against the strided networks."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone

from instseg_d2.config import load_config

RESNET = [
    "MODEL.BACKBONE.NAME", "build_dilated_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.NORM", "FrozenBN",
]  # fmt: skip


@pytest.mark.parametrize(("depth", "in_1x1"), [(18, False), (50, False), (50, True)])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_resnet_has_holes(depth, in_1x1, stride):
    opts = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1]
    opts += ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.RESNETS.OUTPUT_STRIDE", stride]
    if depth == 18:
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    cfg = load_config("", RESNET + opts)
    torch.manual_seed(0)
    strided = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    dilated = build_backbone(cfg).eval()
    dilated.load_state_dict(strided.state_dict())  # the same names
    strides = {name: shape.stride for name, shape in dilated.output_shape().items()}
    assert strides == {"res3": 8, "res4": stride, "res5": stride}
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = dilated(x), strided(x)
    for name in ("res3", "res4", "res5"):
        assert found[name].shape[-2:] == (64 // strides[name], 96 // strides[name])
        step = strided.output_shape()[name].stride // strides[name]
        scale = expected[name].abs().max()
        torch.testing.assert_close(found[name][..., ::step, ::step] / scale, expected[name] / scale)


def test_dilated_resnet_freezes():
    cfg = load_config("", [*RESNET, "MODEL.BACKBONE.FREEZE_AT", 2])
    frozen = {name.split(".")[0] for name, p in build_backbone(cfg).named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
