"""Muon: orthogonalises the updates of weight matrices; AdamW updates all other parameters."""

import math

import torch
from torch import nn
from torch.optim.adamw import adamw

__all__ = ["Muon", "is_matrix", "orthogonalize"]

# Coefficients by Jordan et al. for a X + b (X X^T) X + c (X X^T)^2 X: singular values end up between 0.68 and 1.21.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MIN_SIDE = 8  # smaller matrices are left to AdamW
LOWEST = {"lr": 0, "num_steps": 1, "block_rows": 1, "eps": 0, "weight_decay": 0}


def is_matrix(parameter: torch.Tensor) -> bool:
    """
    True for a parameter of two or more dimensions with at least 8 rows (its first dimension) and 8 columns (the rest).

    So the classifier of a few classes is not a matrix, but that of 80 classes is.
    """
    rows = len(parameter) if parameter.dim() >= 2 else 0
    return rows >= MIN_SIDE and parameter.numel() // rows >= MIN_SIDE


def orthogonalize(matrices: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """
    Bring all singular values close to 1 and keep the singular vectors, by Newton-Schulz iteration.

    The polynomials are evaluated on the Gram matrix of the shorter side, so only the first and the last product involve
    the longer side. Rounding must not make an eigenvalue of the Gram matrix negative, since its powers would diverge:
    half types are therefore computed in float32, even under autocast.

    Args:
        matrices: (n, rows, columns), any floating dtype.
        num_steps: steps of the iteration. Each multiplies small singular values by 3.4; five steps bring those above
            a hundredth of the Frobenius norm close to 1.

    Returns:
        A tensor of the same shape and dtype.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.transpose(1, 2), num_steps).transpose(1, 2)
    with torch.autocast(matrices.device.type, enabled=False):
        x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
        gram = x @ x.transpose(1, 2)
        a, b, c = COEFFICIENTS
        product = None
        for step in range(num_steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if step < num_steps - 1:
                gram = factor @ gram @ factor
        return (product @ x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """
    MomentUm Orthogonalized by Newton-Schulz.

    A weight of shape (rows, ...) is a matrix. Its update is the orthogonalised running mean of its gradients, times
    ``lr * 0.2 * sqrt(longer side)``. The root mean square of the update is ``0.2 * lr``, about that of AdamW.
    Parameters that are not matrices (see :func:`is_matrix`) and groups with ``matrices=False`` are updated by AdamW at
    the same learning rate.

    A matrix of more than ``block_rows`` rows is split into blocks of about that many rows, each its own matrix, so the
    cost grows linearly with the rows, not quadratically. projects/benchmarks.md measures the effect on training.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; step length: Liu et al., Muon
    is scalable for LLM training, arXiv 2502.16982, equation 4.

    Args:
        params: parameters or groups; a group may set ``matrices=False``.
        lr: learning rate.
        momentum: decay of the running mean of a matrix's gradients.
        nesterov: use Nesterov momentum.
        num_steps: steps of the Newton-Schulz iteration, at least 1.
        block_rows: maximum number of rows of a block.
        betas, eps: for AdamW.
        weight_decay: decoupled, times the learning rate.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = False,
        num_steps: int = 5,
        block_rows: int = 128,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "num_steps": num_steps,
            "block_rows": block_rows, "betas": betas, "eps": eps, "weight_decay": weight_decay, "matrices": True,
            "fused": True,
        }  # fmt: skip
        # "fused" makes load_state_dict keep the step counters on the parameters' device.
        for name, lowest in LOWEST.items():
            if not defaults[name] >= lowest:
                raise ValueError(f"Muon's {name} must be at least {lowest}; got {defaults[name]}.")
        for name, memory in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= memory < 1:
                raise ValueError(f"Muon's {name} must be at least 0 and below 1; got {memory}.")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_shape = {}  # equally shaped blocks of all groups are orthogonalised together
        for group in self.param_groups:
            others = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not (group["matrices"] and is_matrix(parameter)):
                    others.append(parameter)
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                num_blocks = math.ceil(len(parameter) / group["block_rows"])
                momenta = self._momentum(parameter, group).flatten(1).tensor_split(num_blocks)
                for block, momentum in zip(parameter.tensor_split(num_blocks), momenta):
                    key = (*momentum.shape, group["num_steps"], block.dtype, block.device)
                    by_shape.setdefault(key, []).append((block, momentum, group["lr"]))
            self._update_others(others, group)
        for (rows, columns, num_steps, *_), members in by_shape.items():
            length = 0.2 * math.sqrt(max(rows, columns))
            updates = orthogonalize(torch.stack([momentum for _, momentum, _ in members]), num_steps)
            for (block, _, lr), update in zip(members, updates):
                block.add_(update.view_as(block), alpha=-lr * length)
        return loss

    def _momentum(self, parameter: nn.Parameter, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean

    def _update_others(self, parameters: list, group: dict) -> None:
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
