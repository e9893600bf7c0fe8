"""MODEL.ACTIVATION_CHECKPOINTING: the same training in less memory."""

import copy

import pytest
import torch
from torch import nn

from instseg_d2.errors import ConfigError
from instseg_d2.modeling.activation_checkpointing import checkpoint_activations
from instseg_d2.modeling.backbone import SwinBackbone, TimmBackbone
from instseg_d2.modeling.instancefcn.vgg import VGG16
from tests.peak_memory import PeakMemory
from tests.tiny import random_batch, tiny_model

STRIDES = {"res3": 8, "res5": 32}
BACKBONES = {
    "EfficientNet": lambda: TimmBackbone("tf_efficientnet_lite0", STRIDES, norm="BN", drop_path_rate=0.5, freeze_at=2),
    "Swin": lambda: SwinBackbone(STRIDES, embed_dim=24, depths=(2, 2, 6, 2), drop_path_rate=0.5),
    "VGG": lambda: VGG16(("conv4",), freeze_at=1),
}


class Bare(nn.Module):
    """A backbone as a model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return {name: x.float().square().mean() for name, x in self.backbone(images).items()}


def step(model, batch, autocast):
    """Losses, peak memory, gradients and buffers of a step that draws the same random numbers each time."""
    torch.manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.grad = torch.zeros_like(p)  # not part of the peak
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(batch)
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in trained.items()}
    return memory.peak, {name: x.detach() for name, x in losses.items()}, gradients, dict(model.named_buffers())


def check(plain, batch, parts, autocast=False):
    """Losses, gradients, running statistics and names are equal, bit by bit; less memory is needed."""
    saving = copy.deepcopy(plain.train())
    checkpoint_activations(saving, parts)
    saving = copy.deepcopy(saving)  # as is done for the average of the weights
    much, *expected = step(plain, batch, autocast)
    little, *found = step(saving, batch, autocast)
    assert little < 0.95 * much
    for part, other in zip(found, expected):
        assert part.keys() == other.keys()
        for key, value in part.items():
            assert torch.equal(value, other[key]), key
    assert saving.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("method", "opts", "autocast"),
    [
        ("BlendMask", [], False),
        ("InstanceFCN", [], False),
        ("SparseInst", [], True),
        ("ISTR", ["MODEL.ISTR.MASK_ENCODING_METHOD", "DCT", "MODEL.ISTR.NUM_HEADS", 2, "MODEL.ISTR.PILOTS", 2], True),
    ],
)
def test_methods(method, opts, autocast):
    check(tiny_model(method, *opts), random_batch([2, 0], 64, 96), ("backbone", "heads"), autocast)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name):
    """Stages that are called as sequences, block by block or by other names; dropped paths; frozen layers."""
    torch.manual_seed(0)
    check(Bare(BACKBONES[name]()), torch.rand(2, 3, 64, 64), ("backbone",))


@pytest.mark.parametrize(("method", "part"), [("MaskRCNN", "heads"), ("frozen", "backbone")])
def test_nothing_to_run_again(method, part):
    model = Bare(VGG16(("conv1",), 1)) if method == "frozen" else tiny_model(method)
    model.backbone = nn.Conv2d(1, 1, 1) if method == "frozen" else model.backbone
    with pytest.raises(ConfigError, match=f"names '{part}', but this .* has none that can be run again"):
        checkpoint_activations(model, [part])


def test_peak_memory_by_hand():
    x, weight = torch.rand(100, 1000), torch.rand(1000, 1000, requires_grad=True)
    with PeakMemory() as memory:
        y = (x @ weight).relu()
        assert memory.peak == 2 * x.nbytes  # the product, and what is left of it
        y.sum().backward()
    assert memory.peak == pytest.approx(2 * x.nbytes + weight.nbytes, abs=100)  # y, its gradient, the weight's


def test_the_meter():
    """1000 numbers of 4 bytes and as many bytes; the view and what was there before do not count, nor what is gone."""
    before = torch.ones(1000)
    with PeakMemory() as memory:
        result = (before + 1).view(10, 100)
        larger = result > 1
        assert memory.peak == 5000
        del result
        numbers = larger.float()
        assert memory.peak == 5000
    assert numbers.sum() == 1000
