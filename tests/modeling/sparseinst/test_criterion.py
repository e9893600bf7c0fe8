"""More objects than predictions: one warning per process, finite losses."""

import logging

import pytest
import torch

from instseg_d2.modeling.sparseinst import SparseInstCriterion
from instseg_d2.modeling.sparseinst.criterion import warn_too_many_objects
from tests.tiny import random_instances


@pytest.fixture
def criterion():
    weights = dict.fromkeys(("loss_ce", "loss_mask", "loss_dice", "loss_objectness"), 1.0)
    warn_too_many_objects.cache_clear()
    yield SparseInstCriterion(alpha=0.8, beta=0.2, weights=weights, items=("labels", "masks"))
    warn_too_many_objects.cache_clear()


def losses_of(criterion, *counts):
    """4 predictions per image of 32 x 32 pixels, 3 classes."""
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "class_logits": torch.randn(len(counts), 4, 3, generator=generator, requires_grad=True),
        "objectness_logits": torch.randn(len(counts), 4, generator=generator, requires_grad=True),
        "mask_logits": torch.randn(len(counts), 4, 8, 8, generator=generator, requires_grad=True),
    }
    truth = [random_instances(count, 32, 32, 3, generator) for count in counts]
    losses = criterion(outputs, truth, (32, 32))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(output.grad.isfinite().all() for output in outputs.values())


def test_one_warning_a_process(criterion, caplog):
    with caplog.at_level(logging.WARNING, logger="instseg_d2"):
        losses_of(criterion, 4, 0)
        assert not caplog.messages
        losses_of(criterion, 1, 5)
        losses_of(criterion, 9)
    assert len(caplog.messages) == 1
    assert "more objects than MODEL.SPARSE_INST.DECODER.NUM_MASKS 4" in caplog.messages[0]
    assert "training goes on" in caplog.messages[0]
