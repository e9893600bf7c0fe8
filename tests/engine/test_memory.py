"""The largest batch that fits, for a model whose memory is known."""

import torch
from torch import nn

from instseg_d2.engine.memory import largest_batch
from tests.engine.toy_trainer import ToyTrainer, registered_toys, toy_cfg  # noqa: F401 (a fixture)

PARAMETERS, AN_IMAGE = 1_000_000, 50_000  # numbers of four bytes


class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(PARAMETERS))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        values = [(self.scale * torch.ones(AN_IMAGE)).exp() for _ in batch]  # kept for the backward pass
        return {"loss": sum(x.mean() for x in values) + self.weight.sum()}


class KnownTrainer(ToyTrainer):
    @classmethod
    def build_model(cls, cfg):
        return Known()


def test_largest_batch(tmp_path):
    """
    Weights, gradient and momentum, then what the images keep. Random numbers stay as they were.
    """
    before = torch.get_rng_state()
    cfg = toy_cfg(tmp_path, OPTIMIZER="SGD", MOMENTUM=0.9)
    counts = [
        largest_batch(cfg, 4 * limit, KnownTrainer) for limit in (2 * PARAMETERS, 6 * PARAMETERS, 11 * PARAMETERS)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert counts[0] == 0
    # For the gradient of each image: its 50,000 factors, 50,000 results, and the gradients of these.
    assert abs(counts[2] - counts[1] - 5 * PARAMETERS / (3 * AN_IMAGE)) < 1
    assert counts[1] in (19, 20)  # three of six parts are for the images
    assert not list(tmp_path.iterdir())
