"""Muon against its equations, and its AdamW against PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from instseg_d2.engine.muon import Muon, is_matrix, orthogonalize


def newton_schulz(matrix, num_steps):
    """The iteration as in Jordan et al."""
    x = matrix / matrix.norm()
    for _ in range(num_steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12), (1, 5)])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_orthogonalize_multiplies_the_same_polynomials(shape, num_steps):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([newton_schulz(m, num_steps) for m in matrices])
    torch.testing.assert_close(orthogonalize(matrices, num_steps), expected)
    in_single = orthogonalize(matrices.float(), num_steps)
    torch.testing.assert_close(in_single, expected.float(), atol=3e-4, rtol=0)


def test_orthogonalize_by_hand():
    """Norm 5: singular values 0.6 and 0.8 go through the polynomial."""
    result = orthogonalize(torch.tensor([[[3.0, 0.0], [0.0, -4.0]]]), num_steps=1)
    by_hand = [3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5 for s in (0.6, 0.8)]
    torch.testing.assert_close(result, torch.tensor([[[by_hand[0], 0.0], [0.0, -by_hand[1]]]]))


def test_singular_values_come_near_one_and_vectors_stay():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert s.max() / s.min() > 3
    core = u.T @ orthogonalize(matrix[None])[0] @ vh.T  # diagonal, if the vectors are the same
    values = core.diagonal()
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(core, values.diag(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("rank", "shape"), [(1, (16, 90)), (4, (90, 16)), (3, (40, 40))])
def test_matrices_of_low_rank_stay_so_in_single_precision(rank, shape):
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    result = orthogonalize(matrix[None])[0]
    expected = newton_schulz(matrix.double(), 5)
    values = torch.linalg.svdvals(result)
    assert 0.6 < values[rank - 1] <= values[0] < 1.3
    assert values[rank] < 2e-3
    torch.testing.assert_close(result.double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    matrices = torch.randn(2, 32, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = orthogonalize(matrices.float()).to(dtype)
    result = orthogonalize(matrices)
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(orthogonalize(matrices), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"momentum": 1.0}, {"momentum": -0.5}, {"num_steps": 0}, {"block_rows": 0}, {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)}, {"eps": -1.0}, {"weight_decay": float("nan")},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"Muon's {next(iter(wrong))} must be at least"):
        Muon([nn.Parameter(torch.zeros(8, 8))], **{"lr": 0.1, **wrong})


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 9)), torch.zeros(2, 8, 9))


def test_what_is_a_matrix():
    assert is_matrix(torch.zeros(8, 8))
    assert is_matrix(torch.zeros(16, 1, 3, 3))
    assert is_matrix(torch.zeros(64, 3, 7, 7))
    assert not is_matrix(torch.zeros(64))  # norms and biases
    assert not is_matrix(torch.zeros(()))
    assert not is_matrix(torch.zeros(0, 8))
    assert not is_matrix(torch.zeros(4, 256, 3, 3))  # a predictor of boxes
    assert not is_matrix(torch.zeros(256, 4))
    assert not is_matrix(torch.zeros(1, 256))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("block_rows", "cuts"), [(128, ([16], [16], [10])), (6, ([6, 5, 5], [6, 5, 5], [5, 5]))])
def test_steps_of_matrices_as_in_the_papers(nesterov, memory_format, block_rows, cuts):
    generator = torch.Generator().manual_seed(2)
    shapes = [(16, 4, 3, 3), (16, 36, 1, 1), (10, 9)]  # the first two are orthogonalised together
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in parameters[:2]:
        p.data = p.data.contiguous(memory_format=memory_format)
    expected = [p.detach().double().flatten(1) for p in parameters]
    means = [torch.zeros_like(p) for p in expected]
    rates = [0.25, 0.125, 0.125]
    optimizer = Muon(
        [{"params": parameters[:1], "lr": 0.25}, {"params": parameters[1:], "weight_decay": 0.5}],
        lr=0.125, momentum=0.75, nesterov=nesterov, num_steps=3, block_rows=block_rows,
    )  # fmt: skip
    for _ in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=generator).contiguous(
                memory_format=memory_format if p.dim() == 4 else torch.contiguous_format
            )
            gradient = p.grad.double().flatten(1)
            means[i] = 0.75 * means[i] + 0.25 * gradient
            ahead = 0.75 * means[i] + 0.25 * gradient if nesterov else means[i]
            decay = 0.5 if i else 0.0
            blocks = ahead.split(cuts[i])
            step = torch.cat([0.2 * max(b.shape) ** 0.5 * newton_schulz(b, 3) for b in blocks])  # Liu et al., eq. 4
            expected[i] = expected[i] * (1 - rates[i] * decay) - rates[i] * step
        optimizer.step()
    for p, e in zip(parameters, expected):
        torch.testing.assert_close(p.detach().double().flatten(1), e, atol=2e-5, rtol=2e-5)
    assert parameters[0].is_contiguous(memory_format=memory_format)


def toy():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 16), nn.Linear(16, 2)
    )


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 3, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def test_the_rest_is_adamw():
    ours, theirs = toy(), toy()
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    train(ours, Muon([{"params": list(ours.parameters()), "matrices": False}], **options), 4, seed=0)
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), 4, seed=0)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b)

    mixed = toy()
    before = copy.deepcopy(mixed)
    train(mixed, Muon(mixed.parameters(), **options), 1, seed=0)
    theirs = toy()
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), 1, seed=0)
    same = [torch.allclose(a, b) for a, b in zip(mixed.parameters(), theirs.parameters())]
    assert same == [not is_matrix(p) for p in mixed.parameters()]
    assert sum(same) == 5
    assert not any(torch.equal(a, b) for a, b in zip(mixed.parameters(), before.parameters()))


def test_parameters_without_gradient_stay():
    model = toy()
    optimizer = Muon(model.parameters(), lr=0.1, weight_decay=0.5)
    before = [p.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_state_travels():
    whole, half = toy(), toy()
    optimizer = Muon(whole.parameters(), lr=0.01, nesterov=True)
    train(whole, optimizer, 2, seed=0)
    train(whole, optimizer, 2, seed=1)

    first = Muon(half.parameters(), lr=0.01, nesterov=True)
    train(half, first, 2, seed=0)
    second = Muon(half.parameters(), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(half, second, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters()))


def test_a_closure_gives_the_loss():
    model = toy()
    optimizer = Muon(model.parameters(), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, 3, 3)).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    assert first > 0
    assert optimizer.step(closure).item() != first
