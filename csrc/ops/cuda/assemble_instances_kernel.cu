// assemble_instances on CUDA. Forward, a thread has one cell of some windows. In the backward pass each cell of the
// maps gathers from the windows that read it, in their order: no atomic additions, the sums are always the same.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>

#include "../common/assemble_instances_checks.h"
#include "tile.h"

namespace instseg_d2 {
namespace {

constexpr int kWindows = 8; // that a block assembles one after another
constexpr int kColumns = 8; // parts side by side that a thread sums for

template <typename scalar>
struct Maps {
  const scalar* data;
  int64_t image, plane, row, column; // strides
};

struct Window {
  int64_t image;
  int top, left;
};

__device__ Window read_window(const int64_t* windows, int64_t index, const AssembleSizes& sizes) {
  const int64_t* entry = windows + 3 * index;
  CUDA_KERNEL_ASSERT(
      entry[0] >= 0 && entry[0] < sizes.images && "assemble_instances: the image of windows should be in [0, N)");
  return {entry[0], start_of(entry[1], sizes.height, sizes), start_of(entry[2], sizes.width, sizes)};
}

// Where a window begins in the maps, in values; this may lie before them.
struct Source {
  int64_t offset;
  int top, left;
};

// Block (256 cells of a window, kWindows windows).
template <typename scalar>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const Maps<scalar> maps, const int64_t* windows, const AssembleSizes sizes, const scalar outside, scalar* out) {
  __shared__ Source sources[kWindows];
  const int cells = sizes.mask * sizes.mask;
  const int at = blockIdx.x * kThreads + threadIdx.x;
  const int i = at / sizes.mask, j = at % sizes.mask;
  // What the cell of every window has in common.
  const int64_t own = (part_of(i, sizes) * sizes.grid + part_of(j, sizes)) * maps.plane + i * maps.row + j * maps.column;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kWindows;
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kWindows; first < sizes.windows; first += step) {
    const int count = static_cast<int>(::min(sizes.windows - first, static_cast<int64_t>(kWindows)));
    __syncthreads();
    if (threadIdx.x < count) {
      const Window window = read_window(windows, first + threadIdx.x, sizes);
      const int64_t corner = window.top * maps.row + window.left * maps.column;
      sources[threadIdx.x] = Source{window.image * maps.image + corner, window.top, window.left};
    }
    __syncthreads();
    for (int w = 0; w < count && at < cells; ++w) {
      const Source source = sources[w];
      const bool inside = static_cast<unsigned>(source.top + i) < static_cast<unsigned>(sizes.height) &&
          static_cast<unsigned>(source.left + j) < static_cast<unsigned>(sizes.width);
      out[(first + w) * cells + at] = inside ? maps.data[source.offset + own] : outside;
    }
  }
}

struct Corner {
  int top, left;
};

// Block (tile of the maps, kColumns parts of an image that lie side by side). A warp has one row of the maps: it skips
// the windows of which another part lies there.
template <typename scalar>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const scalar* grad, const int64_t* windows, const AssembleSizes sizes, int tiles_x, scalar* out) {
  using T = at::opmath_type<scalar>;
  __shared__ unsigned words[kWarps];
  __shared__ Corner corners[kThreads];
  const Tile tile(blockIdx.x, tiles_x);
  const int y = tile.y(), x = tile.x(), size = sizes.mask;
  const int chunks = (sizes.grid + kColumns - 1) / kColumns;
  for (int64_t band = blockIdx.y; band < sizes.images * sizes.grid * chunks; band += gridDim.y) {
    const int column = static_cast<int>(band % chunks) * kColumns;
    const int row = static_cast<int>(band / chunks % sizes.grid);
    const int64_t image = band / chunks / sizes.grid;
    const int first_row = first_of(row, sizes), last_row = first_of(row + 1, sizes);
    int first[kColumns + 1]; // the first column of each part
    for (int c = 0; c <= kColumns; ++c) {
      first[c] = first_of(::min(column + c, sizes.grid), sizes);
    }
    T sums[kColumns] = {};
    visit_items(
        sizes.windows, words,
        [&](int64_t w) {
          const Window window = read_window(windows, w, sizes);
          return window.image == image &&
              tile.meets(window.top + first_row, window.top + last_row, window.left + first[0],
                         window.left + first[kColumns]);
        },
        [&](int slot, int64_t w) {
          const Window window = read_window(windows, w, sizes);
          corners[slot] = Corner{window.top, window.left};
        },
        [&](int64_t start, int word, unsigned bits) {
          const int lane = threadIdx.x % 32;
          bool mine = false; // whether the window of this lane has the part in this row
          if (bits >> lane & 1u) {
            const Corner corner = corners[32 * word + lane];
            mine = y - corner.top >= first_row && y - corner.top < last_row;
          }
          for (bits = __ballot_sync(0xffffffffu, mine); bits != 0; bits &= bits - 1) {
            const int slot = 32 * word + __ffs(static_cast<int>(bits)) - 1;
            const Corner corner = corners[slot];
            const int j = x - corner.left;
            if (j >= first[0] && j < first[kColumns]) {
              const T value = static_cast<T>(grad[((start + slot) * size + y - corner.top) * size + j]);
              for (int c = 0; c < kColumns; ++c) { // by constants: the sums stay in registers
                if (j >= first[c] && j < first[c + 1]) {
                  sums[c] += value;
                }
              }
            }
          }
        });
    if (y < sizes.height && x < sizes.width) {
      const int64_t plane = (image * sizes.grid + row) * sizes.grid + column;
      for (int c = 0; c < kColumns; ++c) {
        if (column + c < sizes.grid) {
          out[((plane + c) * sizes.height + y) * sizes.width + x] = static_cast<scalar>(sums[c]);
        }
      }
    }
  }
}

int blocks_of(int64_t items) {
  return static_cast<int>(std::min<int64_t>(items, 65535));
}

at::Tensor assemble_instances_cuda(
    const at::Tensor& score_maps, const at::Tensor& windows, int64_t mask_size, int64_t grid, double outside) {
  const AssembleSizes sizes = check_assemble_instances(score_maps, windows, mask_size, grid);
  const c10::cuda::CUDAGuard guard(score_maps.device());
  const at::Tensor out = at::empty({sizes.windows, mask_size, mask_size}, score_maps.options());
  if (out.numel() == 0) {
    return out;
  }
  const at::Tensor entries = windows.contiguous();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, score_maps.scalar_type(), "assemble_instances", [&] {
    const Maps<scalar_t> maps = {
        score_maps.const_data_ptr<scalar_t>(), score_maps.stride(0), score_maps.stride(1), score_maps.stride(2),
        score_maps.stride(3)};
    const dim3 blocks(tiles_of(mask_size * mask_size, kThreads), blocks_of((sizes.windows + kWindows - 1) / kWindows));
    forward_kernel<scalar_t><<<blocks, kThreads, 0, stream>>>(
        maps, entries.const_data_ptr<int64_t>(), sizes, static_cast<scalar_t>(outside), out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

at::Tensor assemble_instances_backward_cuda(
    const at::Tensor& grad, const at::Tensor& windows, int64_t images, int64_t height, int64_t width, int64_t grid) {
  const AssembleSizes sizes = check_assemble_instances_grad(grad, windows, images, height, width, grid);
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::Tensor out = at::empty({images, grid * grid, height, width}, grad.options());
  if (out.numel() == 0) {
    return out;
  }
  const at::Tensor entries = windows.contiguous(), upper = grad.contiguous();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "assemble_instances_backward", [&] {
    const int tiles_x = tiles_of(width, kTileColumns);
    const dim3 blocks(tiles_x * tiles_of(height, kTileRows), blocks_of(images * grid * tiles_of(grid, kColumns)));
    backward_kernel<scalar_t><<<blocks, kThreads, 0, stream>>>(
        upper.const_data_ptr<scalar_t>(), entries.const_data_ptr<int64_t>(), sizes, tiles_x,
        out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CUDA, m) {
  m.impl("assemble_instances", TORCH_FN(assemble_instances_cuda));
  m.impl("_assemble_instances_backward", TORCH_FN(assemble_instances_backward_cuda));
}

} // namespace instseg_d2
