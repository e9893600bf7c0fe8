"""Muon: steps of weight matrices are made orthogonal; everything else is AdamW's."""

import math

import torch
from torch import nn
from torch.optim.adamw import adamw

__all__ = ["Muon", "is_matrix", "orthogonalize"]

# Coefficients of Jordan et al. of a X + b (X X^T) X + c (X X^T)^2 X: singular values come to between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MIN_SIDE = 8  # below it a matrix is rather a few vectors


def is_matrix(parameter: torch.Tensor) -> bool:
    """True for weights of convolutions and linear layers, also of groups, with 8 rows and columns at least."""
    return parameter.dim() >= 2 and min(len(parameter), parameter[0].numel()) >= MIN_SIDE


def orthogonalize(matrices: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """
    Bring all singular values near 1 and keep the singular vectors: Newton and Schulz's iteration.

    The polynomials are multiplied out for the Gram matrix of the shorter side, so that only the first and the last
    product see the longer one.

    Args:
        matrices: n x rows x columns, float.
        num_steps: of the iteration. Each makes small singular values 3.4 times larger; five bring those above a
            hundredth of the Frobenius norm near 1.

    Returns:
        A tensor of the same shape and type.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
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
    x = product @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """
    MomentUm Orthogonalized by Newton-Schulz.

    A weight of shape rows x ... is a matrix with one row an output. Its step is the orthogonalised running mean of
    its gradients, times ``lr * 0.2 * sqrt(longer side)``: as long as AdamW's usual ones, so that rates and weight
    decay carry over. Parameters that are no matrix (see :func:`is_matrix`), and groups with ``matrices=False``, are
    updated by AdamW.

    A matrix of more than ``block_rows`` rows is cut into blocks of about as many rows, each orthogonalised by itself:
    the work grows with the rows, not with their square, and a short training's losses are the same.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; the length of steps: Liu et
    al., Muon is scalable for LLM training, arXiv 2502.16982, equation 4.

    Args:
        params: parameters or groups; a group may say ``matrices=False``.
        lr: learning rate.
        momentum: memory of a matrix' mean gradient.
        nesterov: look one gradient ahead.
        num_steps: of Newton and Schulz's iteration, at least 1.
        block_rows: most rows of a block.
        betas, eps: of AdamW.
        weight_decay: decoupled, times the learning rate.
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
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_shape = {}  # blocks of one shape in all groups are orthogonalised together
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
