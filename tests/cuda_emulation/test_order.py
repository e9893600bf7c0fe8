"""Results and gradients of the CUDA kernels are the same bits in every order of threads and blocks."""

import pytest
import torch

from tests.ops.assemble_instances import ASSEMBLE_INSTANCES
from tests.ops.blend_masks import BLEND_MASKS
from tests.ops.mask_prob import MASK_PROB

CASES = [
    (BLEND_MASKS, {"images": 3, "boxes": 12, "masks": 30, "bases": 6, "size": 7, "resolution": 21}),
    (BLEND_MASKS, {"images": 1, "boxes": 9, "masks": 20, "bases": 4, "size": 14, "resolution": 56, "shrunk": 0.5}),
    (MASK_PROB, {"images": 2, "objects": 40, "dims": 9, "size": (30, 43)}),
    (ASSEMBLE_INSTANCES, {"images": 2, "windows": 600, "mask_size": 15, "grid": 5}),
]


@pytest.mark.parametrize(("operator", "case"), CASES, ids=lambda x: getattr(x, "name", None))
def test_the_order_of_threads_does_not_matter(operator, case, monkeypatch):
    inputs, options = operator.case(**case)
    results = []
    for seed in (0, 1, 2):
        monkeypatch.setenv("INSTSEG_EMULATION_SEED", str(seed))
        results.append(operator.gradients(operator.op, inputs, **options))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))
