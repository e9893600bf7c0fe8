"""
Faults to seed in the CUDA kernels, each of which the tests have to find: a text that stands in a source exactly once,
and what stands there instead. Whoever changes a kernel keeps them up to date; `mutate.py` runs them.
"""

from dataclasses import dataclass


@dataclass
class Mutant:
    """
    Attributes:
        name: what is wrong.
        source: in csrc/ops/cuda.
        old, new: the text and its replacement.
        races: the results are right all the same; it is for ThreadSanitizer (`mutate.py --races`).
    """

    name: str
    source: str
    old: str
    new: str
    races: bool = False


BLEND, PIXELS = "blend_masks_kernel.cu", "blend_masks_pixels.h"
PLAN, GATHER = "blend_masks_plan.h", "blend_masks_backward.h"
ASSEMBLE, PROB, PROB_HOST = "assemble_instances_kernel.cu", "mask_prob_kernels.h", "mask_prob_kernel.cu"

MUTANTS = [
    Mutant(
        "blend: as many rows of blocks as masks", BLEND, "(tiles * tiles, blocks_of(masks))", "(tiles * tiles, masks)"
    ),
    Mutant(
        "assemble: as many rows of blocks as bands",
        ASSEMBLE,
        "blocks_of(images * grid * tiles_of(grid, kColumns))",
        "images * grid * tiles_of(grid, kColumns)",
    ),
    Mutant("prob: as many rows of blocks as images", PROB_HOST, "blocks_of(sizes.images), t", "sizes.images, t"),
    Mutant("blend: 65,535 masks", PIXELS, "mask += gridDim.y", "mask = end"),
    Mutant("blend: 65,535 images", GATHER, "item += gridDim.y", "item = a.sizes.images * chunks"),
    Mutant(
        "blend: no barrier before the taps",
        PIXELS,
        "image = a.image_of(box);\n    __syncthreads();",
        "image = a.image_of(box);",
    ),
    Mutant(
        "blend: no barrier after the taps",
        PIXELS,
        "__syncthreads();\n    if (x < size && y < size)",
        "if (x < size && y < size)",
    ),
    Mutant(
        "blend: threads without a pixel return",
        PIXELS,
        "  for (int64_t mask = begin + blockIdx.y;",
        "  if (x >= size || y >= size) {\n    return;\n  }\n  for (int64_t mask = begin + blockIdx.y;",
    ),
    Mutant("blend: columns beyond the mask", PIXELS, "if (x < size && y < size)", "if (x <= size && y < size)"),
    Mutant("blend: rows beyond the mask", BLEND, "if (r < pixels.rows) {", "if (r <= pixels.rows) {"),
    Mutant("blend: too few taps", BLEND, "taps[4 * kSide]", "taps[3 * kSide]"),
    Mutant(
        "blend: strides of an item not asked",
        BLEND,
        "return last <= std::numeric_limits<int>::max() ? tensor : tensor.contiguous();",
        "return tensor;",
    ),
    Mutant("blend: row and column exchanged", PIXELS, "row(stack.row)", "row(stack.column)"),
    Mutant("blend: an item in 32 bits", PIXELS, "data + index * item +", "data + static_cast<int>(index * item) +"),
    Mutant(
        "blend: results in 32 bits",
        BLEND,
        "out[(pixels.mask * size + y + r) * size + x]",
        "out[static_cast<int>((pixels.mask * size + y + r) * size) + x]",
    ),
    Mutant("blend: a row held too long", PIXELS, "tap.low != held_low || tap.high != held_high", "held_low < 0"),
    Mutant("blend: the softmax of the last bases", PIXELS, "value *= kept;", ""),
    Mutant("blend: the box of the mask's number", PIXELS, "nullptr ? mask : box_index[mask]", "nullptr ? mask : mask"),
    Mutant("blend: a cell of the bases is left out", PLAN, "extent - 2))) + 2;", "extent - 2))) + 1;"),
    Mutant("blend: a sample is left out", PLAN, "::min(one, other) - T(0.75)", "::min(one, other) + T(0.25)"),
    Mutant("blend: masks of every image", GATHER, "box.image == image && tile", "tile"),
    Mutant("blend: the last row of a crop is left out", GATHER, "write_until(first + size + 1);", "write_until(row);"),
    Mutant("blend: each part of the masks alone", GATHER, "scratch.begin > 0 ? *to + sums[i] : sums[i]", "sums[i]"),
    Mutant(
        "blend: the plan of the first block",
        PLAN,
        "at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < axes * size; at += step",
        "at = threadIdx.x; at < kThreads && at < axes * size; at += step",
    ),
    Mutant(
        "blend: no check of a launch",
        BLEND,
        "bases_grad.data_ptr<T>()));\n    C10_CUDA_KERNEL_LAUNCH_CHECK();",
        "bases_grad.data_ptr<T>()));",
    ),
    Mutant("tile: no barrier after the items", "tile.h", "__syncthreads();\n    for (int word", "for (int word"),
    Mutant("tile: no barrier before the items", "tile.h", "if (!__syncthreads_or(met))", "if (false)"),
    Mutant(
        "tile: warps without an item go on",
        "tile.h",
        "if (!__syncthreads_or(met))",
        "if (!__any_sync(0xffffffffu, met))",
    ),
    Mutant(
        "tile: a ballot of those that meet",
        "tile.h",
        "const unsigned bits = __ballot_sync(0xffffffffu, met);",
        "unsigned bits = 0;\n    if (met) {\n      bits = __ballot_sync(0xffffffffu, met);\n    }",
    ),
    Mutant("tile: 256 items", "tile.h", "start < count; start", "start < 1; start"),
    Mutant("tile: the last item is left out", "tile.h", "met = mine < count &&", "met = mine < count - 1 &&"),
    Mutant("tile: seven warps", "tile.h", "word < kWarps;", "word < kWarps - 1;"),
    Mutant(
        "tile: the last column is left out",
        "tile.h",
        "first_x - left < kTileColumns",
        "first_x - left < kTileColumns - 1",
    ),
    Mutant(
        "assemble: no barrier before the windows",
        ASSEMBLE,
        "__syncthreads();\n    if (threadIdx.x < count)",
        "if (threadIdx.x < count)",
    ),
    Mutant("assemble: no barrier after the windows", ASSEMBLE, "__syncthreads();\n    for (int w", "for (int w"),
    Mutant(
        "assemble: threads without a cell return",
        ASSEMBLE,
        "  // What the cell of every window has in common.",
        "  if (at >= cells) {\n    return;\n  }",
    ),
    Mutant("assemble: cells beyond the window", ASSEMBLE, "w < count && at < cells;", "w < count && at <= cells;"),
    Mutant(
        "assemble: 524,280 windows",
        ASSEMBLE,
        "first < sizes.windows; first += step",
        "first < kWindows * 65535; first += step",
    ),
    Mutant("assemble: 65,535 bands", ASSEMBLE, "band += gridDim.y", "band = sizes.images * sizes.grid * chunks"),
    Mutant("assemble: windows of every image", ASSEMBLE, "return window.image == image &&\n", "return\n"),
    Mutant("assemble: rows in 32 bits", ASSEMBLE, "i * maps.row + j", "static_cast<int>(i * maps.row) + j"),
    Mutant(
        "assemble: results in 32 bits",
        ASSEMBLE,
        "out[(first + w) * cells + at]",
        "out[static_cast<int>(first + w) * cells + at]",
    ),
    Mutant("assemble: a part ends early", ASSEMBLE, "y - corner.top < last_row", "y - corner.top < last_row - 1"),
    Mutant("assemble: shared memory one short", ASSEMBLE, "Source sources[kWindows]", "Source sources[kWindows - 1]"),
    Mutant("assemble: no device guard", ASSEMBLE, "  const c10::cuda::CUDAGuard guard(grad.device());\n", ""),
    Mutant("prob: 65,535 images", PROB, "n += gridDim.y", "n = a.sizes.images"),
    Mutant("prob: 65,535 objects", PROB, "m += gridDim.y", "m = a.sizes.objects"),
    Mutant(
        "prob: threads outside the map return",
        PROB,
        "  for (int64_t n = blockIdx.y;",
        "  if (!in_map) {\n    return;\n  }\n  for (int64_t n = blockIdx.y;",
    ),
    Mutant("prob: sums without a barrier", PROB, "half /= 2) {\n    __syncthreads();", "half /= 2) {"),
    Mutant("prob: half of the sums", PROB, "int half = kThreads / 2;", "int half = kThreads / 4;"),
    Mutant("prob: objects of every image", PROB, "a.image_index[m] != n", "false"),
    Mutant("prob: eight dimensions", PROB, "first = static_cast<int64_t>(blockIdx.z) * kDims", "first = 0"),
    Mutant(
        "prob: results in 32 bits",
        PROB,
        "out[area.begin + first + c * kThreads]",
        "out[static_cast<int>(area.begin + first + c * kThreads)]",
    ),
    Mutant("prob: a cell too many", PROB, "if (first + c * kThreads < cells)", "if (first + c * kThreads <= cells)"),
    Mutant("prob: a step too far", PROB, "x -= x >= width ? width : 0;", ""),
    Mutant(
        "prob: no device guard",
        PROB_HOST,
        "  const c10::cuda::CUDAGuard guard(pixel_embeddings.device());\n  const Inputs inputs(pixel_embeddings, "
        "proposal_embeddings, margins, windows, image_index);\n  const Mask",
        "  const Inputs inputs(pixel_embeddings, proposal_embeddings, margins, windows, image_index);\n  const Mask",
    ),
    Mutant("prob: two threads write the sum", PROB, "if (threadIdx.x == 0) {", "if (threadIdx.x < 2) {", races=True),
    Mutant("blend: two blocks write a mask", PIXELS, "begin + blockIdx.y;", "begin + blockIdx.y / 2;", races=True),
    Mutant("blend: several threads write a box", PLAN, "if (axis && p == 0) {", "if (axis && p < 2) {", races=True),
]
