// assemble_instances on CUDA: forward one thread per output cell. In the backward pass each cell of the maps
// gathers from the windows that read it, in their order: no atomic additions, the sums are always the same.
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

namespace instseg_d2 {
namespace {

constexpr int kThreads = 256;

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

template <typename scalar>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const Maps<scalar> maps, const int64_t* windows, const AssembleSizes sizes, const scalar outside, scalar* out) {
  const int cells = sizes.mask * sizes.mask;
  const int at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= cells) {
    return;
  }
  const int i = at / sizes.mask, j = at % sizes.mask;
  const scalar* plane = maps.data + (part_of(i, sizes) * sizes.grid + part_of(j, sizes)) * maps.plane;
  for (int64_t w = blockIdx.y; w < sizes.windows; w += gridDim.y) {
    const Window window = read_window(windows, w, sizes);
    const int y = window.top + i, x = window.left + j;
    const bool inside = y >= 0 && y < sizes.height && x >= 0 && x < sizes.width;
    out[w * cells + at] = inside ? plane[window.image * maps.image + y * maps.row + x * maps.column] : outside;
  }
}

template <typename scalar>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const scalar* grad, const int64_t* windows, const AssembleSizes sizes, scalar* out) {
  using T = at::opmath_type<scalar>;
  __shared__ Window shared[kThreads];
  const int cells = sizes.height * sizes.width, parts = sizes.grid * sizes.grid;
  const int at = blockIdx.x * kThreads + threadIdx.x;
  const int y = at / sizes.width, x = at % sizes.width;
  for (int64_t plane = blockIdx.y; plane < sizes.images * parts; plane += gridDim.y) {
    const int64_t image = plane / parts;
    const int row = plane % parts / sizes.grid, column = plane % parts % sizes.grid;
    const int first_row = first_of(row, sizes), last_row = first_of(row + 1, sizes);
    const int first_column = first_of(column, sizes), last_column = first_of(column + 1, sizes);
    T sum = T(0);
    for (int64_t base = 0; base < sizes.windows; base += kThreads) {
      const int count = static_cast<int>(::min(sizes.windows - base, static_cast<int64_t>(kThreads)));
      __syncthreads();
      if (threadIdx.x < count) {
        shared[threadIdx.x] = read_window(windows, base + threadIdx.x, sizes);
      }
      __syncthreads();
      for (int w = 0; w < count; ++w) {
        const Window window = shared[w];
        const int i = y - window.top, j = x - window.left;
        if (window.image == image && i >= first_row && i < last_row && j >= first_column && j < last_column) {
          sum += static_cast<T>(grad[((base + w) * sizes.mask + i) * sizes.mask + j]);
        }
      }
    }
    if (at < cells) {
      out[plane * cells + at] = static_cast<scalar>(sum);
    }
  }
}

dim3 grid_of(int64_t cells, int64_t items) {
  return dim3((cells + kThreads - 1) / kThreads, std::min<int64_t>(items, 65535));
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
    forward_kernel<scalar_t><<<grid_of(mask_size * mask_size, sizes.windows), kThreads, 0, stream>>>(
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
    backward_kernel<scalar_t><<<grid_of(height * width, images * grid * grid), kThreads, 0, stream>>>(
        upper.const_data_ptr<scalar_t>(), entries.const_data_ptr<int64_t>(), sizes, out.data_ptr<scalar_t>());
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
