"""The timings of the operators: the content of the table, and that both sides compute the same."""

import torch

from instseg_d2 import ops
from projects.benchmarks import operators as benchmark
from tests.ops.harness import compiled


@compiled
def test_benchmark_table():
    rows = benchmark.op_table(repeats=1)
    assert [row.direction for row in rows] == ["forward", "forward+backward"] * (len(rows) // 2)
    assert {row.op for row in rows} == {"assemble_instances", "blend_masks", "mask_prob"}
    assert all(row.kernel_ms > 0 and row.ratio == row.reference_ms / row.kernel_ms for row in rows)
    assert len(benchmark.format_table(rows).splitlines()) == len(rows) + 1


def test_benchmark_compares_the_same_values():
    inputs = benchmark.mask_prob_inputs()
    inside, whole = ops.mask_prob(**inputs), benchmark.mask_prob_products(**inputs).view(100, 200, 336)
    for m in (0, 50, 99):
        x1, y1, x2, y2 = inputs["windows"][m].tolist()
        first, last = ops.window_offsets(inputs["windows"])[m : m + 2]
        torch.testing.assert_close(inside[first:last], whole[m, y1:y2, x1:x2].flatten(), rtol=0, atol=1e-3)
