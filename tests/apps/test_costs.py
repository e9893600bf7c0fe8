"""Parameters, multiply-adds and memory of toy models, computed by hand, and of real ones."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from instseg_d2.apps.costs import count_parameters, gflops, peak_memory
from instseg_d2.config import load_config
from instseg_d2.layers import SelfOffsetDeformConv
from tests.scripts import ROOT
from tests.tiny import random_batch


class Toy(nn.Module):
    """A convolution without bias, 3 -> 8 channels, 3 x 3, stride 1."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("extra", torch.zeros(1000))

    def forward(self, samples):
        return [{"sum": self.layer(torch.stack([sample["image"].float() for sample in samples]))}]


@pytest.fixture
def sample():
    return {"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}


def convolution():
    return nn.Conv2d(3, 8, 3, padding=1, bias=False)


def test_a_convolution(sample):
    model = Toy(convolution())
    assert count_parameters(model) == 3 * 8 * 9
    assert gflops(model, sample) == pytest.approx(3 * 8 * 9 * 64 * 96 / 1e9)


def test_a_model_that_cannot_be_traced(sample):
    class Rounding(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)[: round(x.shape[0])]

    model = Toy(Rounding(3, 8, 3, padding=1, bias=False))
    assert gflops(model, sample) == pytest.approx(3 * 8 * 9 * 64 * 96 / 1e9)


def test_a_deformable_convolution(sample):
    plain, offsets = 3 * 8 * 9 * 64 * 96, 3 * 27 * 9 * 64 * 96
    model = Toy(SelfOffsetDeformConv(convolution(), modulated=True))
    assert gflops(model, sample) == pytest.approx((plain + offsets) / 1e9)


def test_memory(sample):
    """The stacked input, its double and their sum exist at the same time; later there are fewer tensors."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            doubled = x * 2
            total = doubled + x
            del doubled
            return (total + 1).sum()

    assert peak_memory(Toy(Sum()), sample) == pytest.approx(3 * 4 * 3 * 64 * 96, rel=0.01)


@pytest.mark.parametrize("name", ["blendmask", "embedmask", "sparseinst", "istr", "instancefcn", "maskrcnn"])
def test_every_method_can_be_counted(name):
    """The convolutions, counted by hooks, are most of the total."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.INSTANCE_FCN.SCALES_TEST", (48, 96), "MODEL.INSTANCE_FCN.TOP_WINDOWS", 50]
    cfg = load_config(str(ROOT / f"configs/quick/{name}_shapes.yaml"), opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    (sample,) = random_batch([2])
    convolutions = []

    def note(module, inputs, output):
        convolutions.append(module.weight[0].numel() * output.numel())

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model([sample])
    for hook in hooks:
        hook.remove()
    counted = gflops(model, sample)
    # Results that do not depend on training are skipped. Much of what ISTR computes is linear layers.
    assert 0.4 * counted < sum(convolutions) / 1e9 < 1.05 * counted
    assert 1e6 < peak_memory(model, sample) < 1e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_a_gpu(sample):
    model = Toy(convolution()).cuda()
    sample["image"] = sample["image"].cuda()
    assert 4 * 8 * 64 * 96 <= peak_memory(model, sample) < 1e8
