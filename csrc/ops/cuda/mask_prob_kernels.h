// The kernels of mask_prob. Backward without atomic additions, so that every sum has a fixed order: the gradient of
// the pixels is gathered per pixel over the windows that hold it (a block of pixels tests the windows together),
// that of a proposal and its margin summed by a block over the cells of its window.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>

#include "../common/mask_prob_checks.h"
#include "../common/mask_prob_geometry.h"

namespace instseg_d2 {
namespace {

constexpr int kThreads = 256; // of a block; its pixels, in the gradient of the pixels, are 32 x 8
constexpr int kDims = 8; // dimensions of a pixel that a thread sums at once

// Contiguous arguments; values are read as `scalar` and computed with as `T`.
template <typename scalar, typename T>
struct Arguments {
  const scalar* pixels;
  const T* proposals;
  const T* margins; // for every dimension
  const int64_t* windows; // null: the whole map
  const int64_t* image_index;
  const int64_t* offsets; // M + 1
  MaskProbSizes sizes;

  __device__ Window window(int64_t m) const {
    return window_of(windows, m, sizes.height, sizes.width);
  }
  __device__ int64_t image(int64_t m) const {
    const int64_t n = image_index[m];
    CUDA_KERNEL_ASSERT(n >= 0 && n < sizes.images && "mask_prob: image_index should be in [0, N)");
    return n;
  }
  // The value of image n, dimension d at (y, x).
  __device__ int64_t at(int64_t n, int64_t d, int64_t y, int64_t x) const {
    return ((n * sizes.dims + d) * sizes.height + y) * sizes.width + x;
  }
};

template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Arguments<scalar, T> a, int64_t cells, scalar* out) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (cell >= cells) {
    return;
  }
  int64_t m = 0; // the last object that begins at or before this cell
  for (int64_t end = a.sizes.objects; end - m > 1;) {
    const int64_t middle = m + (end - m) / 2;
    (a.offsets[middle] <= cell ? m : end) = middle;
  }
  const Window window = a.window(m);
  const int64_t inside = cell - a.offsets[m], width = window.width(), plane = a.sizes.height * a.sizes.width;
  const scalar* pixel = a.pixels + a.at(a.image(m), 0, window.y1 + inside / width, window.x1 + inside % width);
  T sum = T(0);
  for (int64_t d = 0; d < a.sizes.dims;) {
    T part = T(0);
    for (const int64_t end = min(d + kDimsSummed, a.sizes.dims); d < end; ++d, pixel += plane) {
      const T difference = static_cast<T>(*pixel) - a.proposals[m * a.sizes.dims + d];
      part += a.margins[m * a.sizes.dims + d] * difference * difference;
    }
    sum -= part;
  }
  out[cell] = static_cast<scalar>(sum);
}

// Block (tile of pixels, image, kDims dimensions).
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) pixels_kernel(
    const Arguments<scalar, T> a, int tiles_x, const scalar* grad, T* pixels_grad) {
  __shared__ unsigned meets[kThreads / 32]; // a bit for each window that meets the tile
  const int64_t left = static_cast<int64_t>(blockIdx.x) % tiles_x * 32;
  const int64_t top = static_cast<int64_t>(blockIdx.x) / tiles_x * (kThreads / 32);
  const int64_t x = left + threadIdx.x % 32, y = top + threadIdx.x / 32;
  const bool in_map = y < a.sizes.height && x < a.sizes.width;
  const int64_t first = static_cast<int64_t>(blockIdx.z) * kDims;
  const int dims = a.sizes.dims - first < kDims ? static_cast<int>(a.sizes.dims - first) : kDims;
  for (int64_t n = blockIdx.y; n < a.sizes.images; n += gridDim.y) {
    T sums[kDims] = {}, pixel[kDims] = {};
    for (int d = 0; d < kDims; ++d) { // arrays indexed by constants stay in registers
      if (d < dims && in_map) {
        pixel[d] = static_cast<T>(a.pixels[a.at(n, first + d, y, x)]);
      }
    }
    for (int64_t start = 0; start < a.sizes.objects; start += kThreads) {
      const int64_t mine = start + threadIdx.x;
      bool met = false;
      if (mine < a.sizes.objects && a.image_index[mine] == n) {
        const Window window = a.window(mine);
        met = window.x1 < left + 32 && left < window.x2 && window.y1 < top + kThreads / 32 && top < window.y2;
      }
      const unsigned warp = __ballot_sync(0xffffffffu, met);
      __syncthreads(); // nobody reads the bits before these any more
      if (threadIdx.x % 32 == 0) {
        meets[threadIdx.x / 32] = warp;
      }
      __syncthreads();
      for (int word = 0; word < kThreads / 32 && in_map; ++word) {
        for (unsigned bits = meets[word]; bits != 0; bits &= bits - 1) {
          const int64_t m = start + 32 * word + __ffs(static_cast<int>(bits)) - 1;
          const Window window = a.window(m);
          if (!window.holds(y, x)) {
            continue;
          }
          const T upper = static_cast<T>(grad[a.offsets[m] + (y - window.y1) * window.width() + x - window.x1]);
          const int64_t own = m * a.sizes.dims + first;
          for (int d = 0; d < kDims; ++d) {
            if (d < dims) {
              sums[d] -= 2 * upper * a.margins[own + d] * (pixel[d] - a.proposals[own + d]);
            }
          }
        }
      }
    }
    for (int d = 0; d < kDims; ++d) {
      if (d < dims && in_map) {
        pixels_grad[a.at(n, first + d, y, x)] = sums[d];
      }
    }
  }
}

// Block (object, dimension). The gradient of the margin for every dimension.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads)
    objects_kernel(
        const Arguments<scalar, T> a, int64_t cells, const scalar* grad, T* proposals_grad, T* margins_grad) {
  __shared__ T firsts[kThreads], seconds[kThreads];
  const int64_t own = blockIdx.x, m = own / a.sizes.dims, d = own % a.sizes.dims;
  const Window window = a.window(m);
  CUDA_KERNEL_ASSERT(
      window.inside(a.sizes.height, a.sizes.width) && a.offsets[m] + window.area() <= cells &&
      "mask_prob: windows should be those of the forward pass");
  const int64_t width = window.width(), image = a.image(m);
  const T proposal = a.proposals[own];
  T first = T(0), second = T(0);
  for (int64_t cell = threadIdx.x; cell < window.area(); cell += kThreads) {
    const int64_t at = a.at(image, d, window.y1 + cell / width, window.x1 + cell % width);
    const T difference = static_cast<T>(a.pixels[at]) - proposal;
    const T share = static_cast<T>(grad[a.offsets[m] + cell]) * difference;
    first += share;
    second += share * difference;
  }
  firsts[threadIdx.x] = first;
  seconds[threadIdx.x] = second;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      firsts[threadIdx.x] += firsts[threadIdx.x + half];
      seconds[threadIdx.x] += seconds[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    // Without cells the margin is not read: it may be NaN.
    proposals_grad[own] = window.area() > 0 ? 2 * a.margins[own] * firsts[0] : T(0);
    margins_grad[own] = -seconds[0];
  }
}

} // namespace
} // namespace instseg_d2
