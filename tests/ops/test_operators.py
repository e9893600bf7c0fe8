"""
Every operator against loops written from its definition, against its plain PyTorch twin, and at its edges; what an
operator has beside it is in the file of its name.
"""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from instseg_d2 import ops
from instseg_d2.ops import reference
from tests.ops.assemble_instances import ASSEMBLE_INSTANCES
from tests.ops.blend_masks import BLEND_MASKS
from tests.ops.harness import OPERATORS_ALONE, allocated, assert_same, compiled, cuda
from tests.ops.mask_prob import MASK_PROB

OPERATORS = [ASSEMBLE_INSTANCES, BLEND_MASKS, MASK_PROB]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALF = [torch.float16, torch.bfloat16]
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda x: x.name)
both = pytest.mark.parametrize("way", ["op", "plain"])


def cases_of(attribute):
    """Parametrizes a test with each case of each operator."""
    values = [
        pytest.param(operator, case, id=f"{operator.name}-{'-'.join(map(str, case.values()))}")
        for operator in OPERATORS
        for case in getattr(operator, attribute)
    ]
    return pytest.mark.parametrize(("operator", "case"), values)


def random_like(out, dtype=None, seed=1):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(dtype or out.dtype)


@both
@cases_of("oracle_cases")
def test_equals_loops(operator, case, way):
    inputs, options = operator.case(dtype=operator.oracle_dtype, **case)
    out, expected = getattr(operator, way)(**inputs, **options), operator.oracle(**inputs, **options)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=operator.oracle_tolerance)


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@cases_of("kernel_cases")
def test_kernel_equals_reference(operator, case, layout):
    inputs, options = operator.case(**case)
    inputs = operator.laid_out(inputs, layout)
    dtype = inputs[operator.leaves[0]].dtype
    grad = random_like(operator.plain(**inputs, **options))
    grad = grad.permute(*range(grad.dim())[::-1]).contiguous().permute(*range(grad.dim())[::-1])
    found = operator.gradients(operator.op, inputs, grad, **options)
    expected = operator.in_double(inputs, grad, **options)
    assert_same(found, expected, operator.tolerance, rtol=torch.finfo(dtype).eps)
    if operator.exact:
        assert torch.equal(found[0], expected[0])


@compiled
@pytest.mark.parametrize("dtype", HALF)
@cases_of("half_cases")
def test_half_types_are_summed_in_float32(operator, case, dtype):
    """They differ by the rounding of the result alone."""
    inputs, options = operator.case(dtype=dtype, **case)
    grad = random_like(operator.plain(**inputs, **options), seed=2)
    expected = operator.in_double(inputs, grad, **options)
    for op in (operator.op, operator.plain):
        found = operator.gradients(op, inputs, grad, **options)
        assert_same(found, expected, operator.tolerance, rtol=torch.finfo(dtype).eps)


@both
@pytest.mark.parametrize("operator", [x for x in OPERATORS if x.mixed], ids=lambda x: x.name)
def test_mixed_types_are_promoted(operator, way):
    inputs, op = operator.arguments(), getattr(operator, way)
    inputs[operator.mixed] = inputs[operator.mixed].bfloat16()
    out, *grads = operator.gradients(op, inputs)
    assert out.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [inputs[name].dtype for name in operator.leaves]
    assert torch.equal(out, op(**{**inputs, operator.mixed: inputs[operator.mixed].float()}))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_operator
def test_autocast_returns_the_type_of_its_input(operator, way, dtype):
    inputs, op = operator.arguments(dtype=dtype), getattr(operator, way)
    plain = operator.gradients(op, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = operator.gradients(op, inputs)
    assert all(torch.equal(c, p) and c.dtype == dtype for c, p in zip(cast, plain))


@both
@pytest.mark.parametrize(
    ("operator", "change"),
    [pytest.param(x, change, id=f"{x.name}-{name}") for x in OPERATORS for name, change in x.empty.items()],
)
def test_empty(operator, change, way):
    inputs = change(operator.arguments())
    out, *grads = operator.gradients(getattr(operator, way), inputs)
    assert out.shape == operator.empty_shape
    for name, grad in zip(operator.leaves, grads):
        assert torch.equal(grad, torch.zeros_like(inputs[name]))


@both
@pytest.mark.parametrize(
    ("operator", "argument", "value", "error", "message"),
    [pytest.param(x, *row, id=f"{x.name}-{row[0]}-{i}") for x in OPERATORS for i, row in enumerate(x.bad)],
)
def test_bad_arguments_are_named(operator, way, argument, value, error, message):
    with pytest.raises(error, match=f"{operator.name}: {message}"):
        getattr(operator, way)(**{**operator.arguments(), argument: value})


@every_operator
def test_devices_have_to_agree(operator):
    inputs = operator.arguments()
    first, *others = (name for name, value in inputs.items() if torch.is_tensor(value))
    for name in others:
        with pytest.raises(ValueError, match=rf"{operator.name}: {name} is on meta, it should be on .* {first}, cpu"):
            operator.plain(**{**inputs, name: inputs[name].to("meta")})


@compiled
@cases_of("gradcheck_cases")
def test_gradcheck(operator, case):
    inputs, options = operator.case(dtype=torch.float64, **case)

    def call(*leaves):
        return operator.op(**{**inputs, **dict(zip(operator.leaves, leaves))}, **options)

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in operator.leaves])


@compiled
@every_operator
def test_second_derivatives_are_refused(operator):
    inputs = operator.arguments()
    leaves = [inputs[name].requires_grad_() for name in operator.leaves]
    out = operator.op(**inputs)
    grad = torch.ones_like(out).requires_grad_()
    (first,) = torch.autograd.grad(out, leaves[0], grad, create_graph=True)
    for second in (grad, *leaves[1:]):
        with pytest.raises(NotImplementedError, match="differentiated once only"):
            torch.autograd.grad(first.square().sum(), second, retain_graph=True)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@cases_of("opcheck_cases")
def test_opcheck(operator, case, dtype):
    inputs = operator.laid_out(operator.arguments(dtype=dtype, **case), "channels_last")
    names = torch.ops.instseg_d2
    schema = operator.schema(inputs)
    out = getattr(names, operator.name)(*schema)
    grad = torch.randn_like(out if torch.is_tensor(out) else out[0])
    backward = getattr(names, f"_{operator.name}_backward").default
    torch.library.opcheck(backward, operator.backward_schema(grad, inputs))
    for name in operator.leaves:
        inputs[name].requires_grad_()
    torch.library.opcheck(getattr(names, operator.name).default, operator.schema(inputs))


@compiled
@cases_of("compile_cases")
def test_compiles_into_one_graph(operator, case):
    inputs, options = operator.case(**case)
    whole = torch.compile(operator.op, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = operator.gradients(whole, inputs, **options)
    assert_same(found, operator.gradients(operator.op, inputs, **options), 0.0)


@compiled
@cases_of("thread_cases")
def test_results_do_not_depend_on_the_threads(operator, case):
    inputs, options = operator.case(**case)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(operator.gradients(operator.op, inputs, **options))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0], 0.0)


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
@pytest.mark.parametrize("memory", [pytest.param(m, id=f"{x.name}-{m.large}") for x in OPERATORS for m in x.memory])
def test_temporaries_are_small(memory):
    forward, backward = allocated(memory)
    assert forward < memory.forward
    assert backward < memory.backward


@pytest.mark.parametrize("requires_grad", [False, True])
@every_operator
def test_without_the_extension(operator, monkeypatch, requires_grad):
    inputs = operator.arguments()
    inputs[operator.leaves[-1]].requires_grad_(requires_grad)
    expected = operator.op(**inputs)
    calls, plain = [], operator.plain
    monkeypatch.setattr("instseg_d2.ops.extension._BUILT_FOR", None)
    monkeypatch.setattr(reference, operator.name, lambda *a, **k: calls.append(1) or plain(*a, **k))
    assert ops.has_extension() is None
    assert_same([operator.op(**inputs)], [expected])
    assert calls == [1]


class _Namespaces(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.namespace)
        return function(*args, **(kwargs or {}))


@every_operator
def test_the_plain_twin_calls_pytorch_alone(operator):
    """What other libraries compute may depend on the device and on torch.use_deterministic_algorithms."""
    with _Namespaces() as mode:
        operator.gradients(operator.plain, operator.arguments())
    assert mode.seen == {"aten"}


def test_environment_variable_turns_the_extension_off():
    code = f"{OPERATORS_ALONE}print(ops.has_extension())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"INSTSEG_NO_EXT": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["None"]


def on_gpu(inputs):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", DTYPES)
@cases_of("cuda_cases")
def test_cuda_equals_cpu(operator, case, dtype):
    inputs, options = operator.case(dtype=dtype, **case)
    inputs = operator.laid_out(inputs, "channels_last")
    grad = random_like(operator.op(**inputs, **options))
    expected = operator.gradients(operator.op, inputs, grad, **options)
    found = operator.gradients(operator.op, on_gpu(inputs), grad.cuda(), **options)
    rounding = 2 * torch.finfo(dtype).eps if dtype in HALF else 5e-5
    tolerance = operator.double_tolerance if dtype == torch.float64 else rounding
    assert_same([t.cpu() for t in found], expected, tolerance)
    if operator.exact:
        assert torch.equal(found[0].cpu(), expected[0])
    assert_same(operator.gradients(operator.op, on_gpu(inputs), grad.cuda(), **options), found, 0.0)


@pytest.mark.gpu
@cuda
@every_operator
def test_cuda_names_what_is_elsewhere(operator):
    inputs = on_gpu(operator.arguments())
    _, *others = (name for name, value in inputs.items() if torch.is_tensor(value))
    for name in others:
        with pytest.raises(ValueError, match=rf"{operator.name}: {name} is on cpu, it should be on .* cuda"):
            operator.op(**{**inputs, name: inputs[name].cpu()})
