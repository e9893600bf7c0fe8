"""What every operator's tests share: how an operator is declared, called, differentiated and compared."""

import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import pytest
import torch

from instseg_d2 import ops
from instseg_d2.ops import reference

compiled = pytest.mark.skipif(ops.has_extension() is None, reason="the package is built without its extension")
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or ops.has_extension() != "cuda", reason="needs a GPU and the extension built for it"
)

INT = {"dtype": torch.int64}


def product(**values) -> list[dict]:
    """Every combination of the keywords' values."""
    return [dict(zip(values, combination)) for combination in itertools.product(*values.values())]


def named(names, *rows) -> list[dict]:
    """Rows of values under the same names."""
    return [dict(zip(names, row)) for row in rows]


def crossed(first, second) -> list[dict]:
    """Every case of the first with every one of the second."""
    return [{**a, **b} for a, b in itertools.product(first, second)]


def ways(name: str):
    """Parametrizes a test with ``op``: the operator itself and its plain twin."""
    return pytest.mark.parametrize("op", [getattr(ops, name), getattr(reference, name)], ids=["op", "reference"])


@dataclass
class Memory:
    """
    A large call that may allocate little beside its output.

    Attributes:
        prepare: the body of ``prepare(*size)``, which returns a call without arguments and the gradient of its result.
        small, large: sizes of a first call, which warms up, and of the measured one.
        forward, backward: limits of what the two directions allocate, bytes.
    """

    prepare: str
    small: tuple
    large: tuple
    forward: float
    backward: float


@dataclass
class Operator:
    """
    An operator and its cases. A case is a dict of keywords, of `arguments` or among the `options`.

    Attributes:
        name: in instseg_d2.ops and ops.reference; its first argument is the floating-point map (N, C, H, W).
        oracle: its definition in loops, of the same signature.
        arguments: makes random arguments; takes dtype.
        options: the operator's arguments that `arguments` does not make, but cases may say.
        leaves: names of the differentiable arguments.
        layouts: for "channels_last" and "strided", the arguments that get the layout: {layout: names}.
        <what>_cases: of each shared test in test_operators.py.
        oracle_tolerance: of the output against the oracle, whose arguments have oracle_dtype.
        exact: values are only copied to the output, so that it is equal whatever computes it.
        tolerance: of float32 against the same in float64, see `assert_same`.
        mixed: the leaf that may come in another type than the others; None: there is one leaf alone.
        empty: {id: arguments -> arguments without masks}; empty_shape: the result's shape then.
        bad: (argument, value, error, message) of what cannot be used.
        schema: arguments -> positional arguments of the registered operator.
        backward_schema: (gradient, arguments) -> those of its backward.
        double_tolerance: of CUDA against the CPU in float64.
    """

    name: str
    oracle: Callable
    arguments: Callable
    leaves: tuple
    layouts: dict
    oracle_cases: list
    kernel_cases: list
    half_cases: list
    gradcheck_cases: list
    opcheck_cases: list
    compile_cases: list
    thread_cases: list
    cuda_cases: list
    empty: dict
    empty_shape: tuple
    bad: list
    schema: Callable
    backward_schema: Callable
    memory: list
    oracle_tolerance: float = 0.0
    oracle_dtype: torch.dtype = torch.float32
    exact: bool = False
    tolerance: float = 2e-5
    mixed: Optional[str] = None
    double_tolerance: float = 1e-6
    options: tuple = ()

    @property
    def op(self) -> Callable:
        return getattr(ops, self.name)

    @property
    def plain(self) -> Callable:
        return getattr(reference, self.name)

    def case(self, **case) -> tuple[dict, dict]:
        """Arguments, and the options that the case says beside them."""
        options = {name: case.pop(name) for name in self.options if name in case}
        return self.arguments(**case), options

    def gradients(self, op, inputs: dict, grad=None, **options) -> tuple:
        """The result and the gradient of each leaf, for a random gradient of the result."""
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.leaves}
        out = op(**{**inputs, **leaves}, **options)
        if grad is None:
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return (out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad))

    def in_double(self, inputs: dict, grad, **options) -> tuple:
        """What `gradients` gives for the plain twin in float64, rounded once to the leaves' type."""
        wide = {name: value.double() if name in self.leaves else value for name, value in inputs.items()}
        dtype = inputs[self.leaves[0]].dtype
        return tuple(x.to(dtype) for x in self.gradients(self.plain, wide, grad.double(), **options))

    def laid_out(self, inputs: dict, layout: str) -> dict:
        """The arguments in another memory layout, none of them contiguous if "strided"."""
        return {
            name: _laid_out(value, layout) if name in self.layouts.get(layout, ()) and value is not None else value
            for name, value in inputs.items()
        }


def _laid_out(tensor, layout):
    if layout == "channels_last":
        return tensor.to(memory_format=torch.channels_last)
    if tensor.dim() == 4:
        result = tensor.transpose(1, 3).repeat_interleave(2, dim=2)[:, :, ::2].transpose(3, 1)
    elif tensor.dim() == 2:
        result = tensor.T.contiguous().T
    else:
        result = tensor.repeat_interleave(2, dim=0)[::2]
    if result.is_contiguous():  # of one column
        result = tensor.repeat_interleave(2, dim=0)[::2]
    assert torch.equal(result, tensor)
    assert not result.is_contiguous()
    return result


def assert_same(actual, expected, tolerance=2e-5, rtol=0.0):
    """Pairs of tensors of equal types and shapes; the tolerance is a share of the largest value, at least 1."""
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        scale = float(e.detach().abs().max()) if e.numel() else 1.0
        torch.testing.assert_close(a, e, rtol=rtol, atol=tolerance * max(scale, 1.0))


# The operators without the package's other modules, which take seconds to import.
OPERATORS_ALONE = f"""
import sys, types
package = types.ModuleType("instseg_d2")
package.__path__ = [{str(Path(ops.__file__).parents[1])!r}]
sys.modules["instseg_d2"] = package
from instseg_d2 import ops
"""
_PEAK = """
import resource, torch
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def prepare(*size):
{prepare}
def run(*size):
    call, grad = prepare(*size)
    before = peak()
    out = call()
    after = peak()
    out.backward(grad)
    return after - before, peak() - after
run(*{small})
print(*run(*{large}))
"""


def allocated(memory: Memory) -> tuple[int, int]:
    """Bytes by which the forward and the backward pass raise the peak of a process of their own."""
    body = "\n".join(f"    {line.strip()}" for line in memory.prepare.strip().splitlines())
    code = OPERATORS_ALONE + _PEAK.format(prepare=body, small=memory.small, large=memory.large)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    forward, backward = map(int, done.stdout.split())
    return forward, backward
