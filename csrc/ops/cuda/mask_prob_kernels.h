// The kernels of mask_prob. Backward without atomic additions, so that every sum has a fixed order: the gradient of
// the pixels is gathered per pixel over the windows that hold it, that of a proposal and its margin summed by a block
// over the cells of its window.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>

#include "../common/mask_prob_checks.h"
#include "../common/mask_prob_geometry.h"
#include "tile.h"

namespace instseg_d2 {
namespace {

constexpr int kCells = 4; // of a window that a thread has at once
constexpr int kDims = 8; // dimensions of a pixel that a thread sums at once

// The window of an object in 32 bits, and the place of its first cell in the packed values.
struct Area {
  int x1, y1, x2, y2;
  int64_t begin;

  __device__ unsigned width() const {
    return x2 - x1;
  }
  __device__ unsigned cells() const {
    return static_cast<unsigned>(x2 - x1) * static_cast<unsigned>(y2 - y1);
  }
};

// Values are read as `scalar` and computed with as `T`.
template <typename scalar, typename T>
struct Arguments {
  const scalar *pixels, *proposals, *margins; // contiguous
  bool one_margin; // of an object, not one for each dimension
  const int64_t* windows; // null: the whole map
  const int64_t* image_index;
  const int64_t* offsets; // M + 1; null without windows
  MaskProbSizes sizes;

  __device__ Area area(int64_t m) const {
    const Window window = window_of(windows, m, sizes.height, sizes.width);
    return {
        static_cast<int>(window.x1), static_cast<int>(window.y1), static_cast<int>(window.x2),
        static_cast<int>(window.y2), offsets == nullptr ? m * sizes.height * sizes.width : offsets[m]};
  }
  __device__ int64_t image(int64_t m) const {
    const int64_t n = image_index[m];
    CUDA_KERNEL_ASSERT(n >= 0 && n < sizes.images && "mask_prob: image_index should be in [0, N)");
    return n;
  }
  // Dimension 0 of an object; M * D is below 2**31.
  __device__ const scalar* proposal(int m) const {
    return proposals + m * static_cast<int>(sizes.dims);
  }
  __device__ const scalar* margin(int m) const {
    return margins + (one_margin ? m : m * static_cast<int>(sizes.dims));
  }
  // Dimension d of image n.
  __device__ int64_t plane(int64_t n, int64_t d) const {
    return (n * sizes.dims + d) * sizes.height * sizes.width;
  }
};

// Block (some cells of a window, object).
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Arguments<scalar, T> a, scalar* out) {
  const int dims = static_cast<int>(a.sizes.dims), map_width = static_cast<int>(a.sizes.width);
  const int64_t plane_size = a.sizes.height * a.sizes.width;
  const unsigned step = gridDim.x * kThreads * kCells;
  for (int64_t m = blockIdx.y; m < a.sizes.objects; m += gridDim.y) {
    const Area area = a.area(m);
    const unsigned cells = area.cells();
    const scalar* planes = a.pixels + a.plane(a.image(m), 0);
    const scalar *proposals = a.proposal(static_cast<int>(m)), *margins = a.margin(static_cast<int>(m));
    for (unsigned first = blockIdx.x * kThreads * kCells + threadIdx.x; first < cells; first += step) {
      int at[kCells];
      T sums[kCells] = {};
      for (int c = 0; c < kCells; ++c) {
        const unsigned cell = ::min(first + c * kThreads, cells - 1); // read once more rather than asked for
        at[c] = (area.y1 + static_cast<int>(cell / area.width())) * map_width + area.x1 +
            static_cast<int>(cell % area.width());
      }
      const scalar* plane = planes;
      for (int d = 0; d < dims; d += kDimsSummed) {
        T parts[kCells] = {}; // of a few dimensions: shorter sums have smaller errors
        for (int i = d; i < d + kDimsSummed; ++i, plane += plane_size) {
          if (i < dims) {
            const T proposal = static_cast<T>(proposals[i]), margin = static_cast<T>(margins[a.one_margin ? 0 : i]);
            for (int c = 0; c < kCells; ++c) {
              const T difference = static_cast<T>(plane[at[c]]) - proposal;
              parts[c] += margin * difference * difference;
            }
          }
        }
        for (int c = 0; c < kCells; ++c) {
          sums[c] -= parts[c];
        }
      }
      for (int c = 0; c < kCells; ++c) {
        if (first + c * kThreads < cells) {
          out[area.begin + first + c * kThreads] = static_cast<scalar>(sums[c]);
        }
      }
    }
  }
}

// Block (tile of pixels, image, kDims dimensions). A warp has one row of pixels: it skips windows of other rows.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) pixels_kernel(
    const Arguments<scalar, T> a, int tiles_x, const scalar* grad, T* pixels_grad) {
  __shared__ unsigned words[kWarps];
  __shared__ Area areas[kThreads];
  const Tile tile(blockIdx.x, tiles_x);
  const int y = tile.y(), x = tile.x(), height = static_cast<int>(a.sizes.height), width = static_cast<int>(a.sizes.width);
  const bool in_map = y < height && x < width;
  const int64_t first = static_cast<int64_t>(blockIdx.z) * kDims, pixel_at = static_cast<int64_t>(y) * width + x;
  const int dims = a.sizes.dims - first < kDims ? static_cast<int>(a.sizes.dims - first) : kDims;
  for (int64_t n = blockIdx.y; n < a.sizes.images; n += gridDim.y) {
    T sums[kDims] = {}, pixel[kDims] = {};
    for (int d = 0; d < kDims; ++d) { // arrays indexed by constants stay in registers
      if (d < dims && in_map) {
        pixel[d] = static_cast<T>(a.pixels[a.plane(n, first + d) + pixel_at]);
      }
    }
    visit_items(
        a.sizes.objects, words,
        [&](int64_t m) {
          if (a.image_index[m] != n) {
            return false;
          }
          const Area area = a.area(m);
          return tile.meets(area.y1, area.y2, area.x1, area.x2);
        },
        [&](int slot, int64_t m) { areas[slot] = a.area(m); },
        [&](int64_t start, int word, unsigned bits) {
          for (; bits != 0; bits &= bits - 1) {
            const int slot = 32 * word + __ffs(static_cast<int>(bits)) - 1;
            const Area area = areas[slot];
            if (y < area.y1 || y >= area.y2 || x < area.x1 || x >= area.x2) {
              continue;
            }
            const unsigned cell = static_cast<unsigned>(y - area.y1) * area.width() + (x - area.x1);
            const T upper = static_cast<T>(grad[area.begin + cell]);
            const int m = static_cast<int>(start) + slot;
            const scalar *proposal = a.proposal(m) + first, *margin = a.margin(m) + (a.one_margin ? 0 : first);
            T factor = upper * static_cast<T>(*margin);
            for (int d = 0; d < kDims; ++d) {
              if (d < dims) {
                factor = a.one_margin ? factor : upper * static_cast<T>(margin[d]);
                sums[d] += factor * (pixel[d] - static_cast<T>(proposal[d]));
              }
            }
          }
        });
    for (int d = 0; d < kDims; ++d) {
      if (d < dims && in_map) {
        pixels_grad[a.plane(n, first + d) + pixel_at] = T(-2) * sums[d];
      }
    }
  }
}

// Block (object, dimension). The gradient of the margin for every dimension. A thread adds a few cells in `T`, and
// these in float64: an object may have all cells of a map.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads)
    objects_kernel(
        const Arguments<scalar, T> a, int64_t cells, const scalar* grad, T* proposals_grad, T* margins_grad) {
  __shared__ double firsts[kThreads], seconds[kThreads];
  const int64_t own = blockIdx.x, m = own / a.sizes.dims, d = own % a.sizes.dims;
  const Area area = a.area(m);
  CUDA_KERNEL_ASSERT(
      window_of(a.windows, m, a.sizes.height, a.sizes.width).inside(a.sizes.height, a.sizes.width) &&
      area.begin >= 0 && area.begin + area.cells() <= cells && "mask_prob: windows should be those of the forward pass");
  const int map_width = static_cast<int>(a.sizes.width);
  const scalar* plane = a.pixels + a.plane(a.image(m), d);
  const scalar* upper = grad + area.begin;
  const T proposal = static_cast<T>(a.proposal(static_cast<int>(m))[d]);
  const unsigned width = ::max(area.width(), 1u), down = kThreads / width, along = kThreads % width;
  unsigned x = threadIdx.x % width, y = threadIdx.x / width;
  double first = 0, second = 0;
  for (unsigned cell = threadIdx.x; cell < area.cells();) {
    T part = T(0), other = T(0);
    for (int c = 0; c < kCells; ++c, cell += kThreads) {
      if (cell < area.cells()) {
        const int at = (area.y1 + static_cast<int>(y)) * map_width + area.x1 + static_cast<int>(x);
        const T difference = static_cast<T>(plane[at]) - proposal, share = static_cast<T>(upper[cell]) * difference;
        part += share;
        other += share * difference;
        x += along; // to the cell kThreads further
        y += down + (x >= width);
        x -= x >= width ? width : 0;
      }
    }
    first += part;
    second += other;
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
    const T margin = static_cast<T>(a.margin(static_cast<int>(m))[a.one_margin ? 0 : d]);
    proposals_grad[own] = area.cells() > 0 ? static_cast<T>(2 * margin * firsts[0]) : T(0); // the margin may be NaN
    margins_grad[own] = static_cast<T>(-seconds[0]);
  }
}

} // namespace
} // namespace instseg_d2
