"""The Lovasz hinge against a loop over objects, and where probabilities are 0 or 1."""

import pytest
import torch

from instseg_d2.modeling.embedmask.criterion import probability_logits
from instseg_d2.modeling.losses.lovasz import lovasz_hinge


def naive_lovasz(logits, labels):
    """One object, pixel by pixel: errors from the largest down, each times the increase of 1 - IoU."""
    errors = [1 - x if y else 1 + x for x, y in zip(logits, labels)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i].item())
    positives = int(sum(labels))
    missed = false = 0
    before, total = 0.0, logits.sum() * 0
    for i in order:
        missed += int(labels[i])
        false += int(not labels[i])
        now = 1 - (positives - missed) / (positives + false)
        total = total + torch.relu(errors[i]) * (now - before)
        before = now
    return total


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    objects = torch.randint(0, 7, (300,), generator=generator).sort().values
    objects[objects == 3] = 2  # object 3 has no pixel
    labels = torch.rand(300, generator=generator) < 0.3
    labels[objects == 1] = False
    labels[objects == 4] = True
    logits = (torch.randn(300, generator=generator) * 2).requires_grad_()
    found = lovasz_hinge(logits, labels, objects, 8)
    expected = torch.stack([naive_lovasz(logits[objects == k], labels[objects == k]) for k in range(8)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.arange(1.0, 9.0)
    (a,), (b,) = (torch.autograd.grad((loss * weights).sum(), logits, retain_graph=True) for loss in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    # The pixels of an object need not lie together.
    order = torch.randperm(300, generator=generator)
    torch.testing.assert_close(lovasz_hinge(logits[order], labels[order], objects[order], 8), found)


def test_hand_derived():
    # Errors 1.5 (a false positive), 1 (a missed pixel) and 0: 1 - IoU grows to 1/2 and then by 1/3 on {+, +, -}.
    logits, labels = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([True, True, False])
    loss = lovasz_hinge(logits, labels, torch.zeros(3, dtype=torch.int64), 1)
    torch.testing.assert_close(loss, torch.tensor([1.5 * (1 / 3) + 1.0 * (1 / 3)]))


def test_a_perfect_object_costs_nothing_and_an_empty_one_its_largest_error():
    logits = torch.tensor([3.0, -2.0, 0.5, -0.5])
    labels = torch.tensor([True, False, False, False])
    loss = lovasz_hinge(logits, labels, torch.tensor([0, 0, 1, 1]), 2)
    assert loss.tolist() == [0.0, 1.5]


def test_no_pixels():
    logits = torch.zeros(0, requires_grad=True)
    loss = lovasz_hinge(logits, torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 3)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    assert logits.grad.shape == (0,)
    assert lovasz_hinge(logits, torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 0).shape == (0,)


def test_many_pixels_are_as_exact_as_float64():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200_000, generator=generator)
    labels = torch.rand(200_000, generator=generator) < 0.2
    found = lovasz_hinge(logits, labels, torch.zeros(200_000, dtype=torch.int64), 1)
    errors = 1 - torch.where(labels, logits, -logits).double()
    errors, order = errors.sort(descending=True)
    hit = labels[order].double()
    jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
    expected = (errors.relu() * torch.cat([jaccard[:1], jaccard.diff()])).sum()
    assert abs(found.double() - expected) < 1e-5


@pytest.mark.parametrize("least", [0.0, 1e-9])
def test_logits_of_probabilities(least):
    log_p = torch.tensor([0.0, -1e-8, -1e-3, -0.7, -20.0, -30.0, -200.0], requires_grad=True)
    logits = probability_logits(log_p, least)
    p = log_p.detach().double().exp()
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[2:5], (p / (1 - p)).log()[2:5].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[5:].double(), (p.clamp(min=least).log() if least else log_p.double())[5:])
    (gradient,) = torch.autograd.grad(logits.sum(), log_p)
    assert torch.isfinite(gradient).all()
    assert gradient[:5].min() > 0
    assert (gradient[5:] > 0).all() == (least == 0)


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels, objects = torch.arange(50) < 20, torch.zeros(50, dtype=torch.int64)
    loss = lovasz_hinge(logits, labels, objects, 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, lovasz_hinge(logits.float(), labels, objects, 1))


def test_nan_stays_nan():
    logits = torch.tensor([3.0, float("nan"), -3.0, 1.5])
    losses = lovasz_hinge(logits, torch.tensor([True, True, False, True]), torch.tensor([0, 0, 1, 1]), 2)
    assert torch.isnan(losses[0])
    assert losses[1] == 0
