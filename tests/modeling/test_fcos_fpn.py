"""The FPN of FCOS: its levels above the last one of the bottom-up network."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.config import ConfigError
from instseg_d2.modeling.backbone import build_backbone
from tests.tiny import tiny_config


@pytest.mark.parametrize(("maps", "last"), [(["res3", "res4", "res5"], "p5"), (["res3", "res4"], "p4")])
@pytest.mark.parametrize("top_levels", [0, 1, 2])
def test_levels_above_the_last_one(maps, last, top_levels):
    options = ["MODEL.RESNETS.OUT_FEATURES", maps, "MODEL.FPN.IN_FEATURES", maps, "MODEL.FCOS.TOP_LEVELS", top_levels]
    fpn = build_backbone(tiny_config(*options, "MODEL.BASIS_MODULE.IN_FEATURES", ["p3"])).eval()
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


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.TOP_LEVELS is 3"):
        build_backbone(tiny_config("MODEL.FCOS.TOP_LEVELS", 3))
