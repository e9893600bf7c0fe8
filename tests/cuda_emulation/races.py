"""
Runs each operator, forward and backward, with a thread for every CUDA thread. Under ThreadSanitizer (see the Makefile)
races in global memory, such as an addition that should be atomic, end it with status 66.
"""

import sys
from pathlib import Path

import torch

if len(sys.argv) > 1:  # the library to use
    import instseg_d2.ops  # noqa: F401
    from tests.cuda_emulation.mutate import use

    use(Path(sys.argv[1]))

from tests.ops.assemble_instances import ASSEMBLE_INSTANCES
from tests.ops.blend_masks import BLEND_MASKS
from tests.ops.harness import assert_same
from tests.ops.mask_prob import MASK_PROB

# Few blocks, of which several write to the same image.
CASES = [
    (ASSEMBLE_INSTANCES, {"windows": 20, "mask_size": 17, "grid": 2, "size": (15, 18)}),
    (BLEND_MASKS, {"images": 1, "boxes": 2, "masks": 3, "bases": 2, "size": 3, "resolution": 17}),
    (BLEND_MASKS, {"images": 2, "boxes": 4, "bases": 1, "size": 3, "resolution": 8, "top_interp": "nearest"}),
    (MASK_PROB, {"objects": 5, "dims": 2, "size": (9, 33)}),
    (MASK_PROB, {"objects": 2, "dims": 9, "whole": True, "size": (9, 33)}),
]

torch.set_num_threads(1)
for operator, case in CASES:
    inputs, options = operator.case(**case)
    found = operator.gradients(operator.op, inputs, **options)
    assert_same(found, operator.gradients(operator.plain, inputs, **options))
    print(f"{operator.name} {case}: no error", flush=True)
