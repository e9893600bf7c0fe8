// assemble_instances on the CPU. Where a cell lies relative to the start of its window is the same for all
// windows: one table of offsets serves them all, and assembling is one indexed read a cell. In the backward pass
// a thread owns maps and adds the windows in their order: its sums do not depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../common/assemble_instances_checks.h"

namespace instseg_d2 {
namespace {

constexpr int64_t kGrain = 32768; // cells that are worth a thread

// A window, and the rows and columns of it that lie inside the map.
struct Window {
  int64_t image;
  int top, left, first_row, last_row, first_column, last_column;

  Window(const int64_t* entry, const AssembleSizes& sizes)
      : image(entry[0]),
        top(start_of(entry[1], sizes.height, sizes)),
        left(start_of(entry[2], sizes.width, sizes)),
        first_row(clip(-top, 0, sizes.mask)),
        last_row(clip(sizes.height - top, 0, sizes.mask)),
        first_column(clip(-left, 0, sizes.mask)),
        last_column(clip(sizes.width - left, 0, sizes.mask)) {}
};

void check_images(const at::Tensor& windows, const AssembleSizes& sizes) {
  const int64_t* entries = windows.const_data_ptr<int64_t>();
  for (int64_t w = 0; w < sizes.windows; ++w) {
    check_index_range("assemble_instances", "the image of windows", w, entries[3 * w], sizes.images, "N");
  }
}

template <typename scalar>
void forward(
    const at::Tensor& maps, const int64_t* windows, const AssembleSizes& sizes, scalar outside, scalar* const out) {
  const int64_t size = sizes.mask, plane = maps.stride(1), row = maps.stride(2), column = maps.stride(3);
  std::vector<int64_t> offsets;
  for (int i = 0; i < sizes.mask; ++i) {
    for (int j = 0; j < sizes.mask; ++j) {
      offsets.push_back((part_of(i, sizes) * sizes.grid + part_of(j, sizes)) * plane + i * row + j * column);
    }
  }
  const scalar* const data = maps.const_data_ptr<scalar>();
  at::parallel_for(0, sizes.windows, kGrain / (size * size) + 1, [&](int64_t begin, int64_t end) {
    scalar* to = out + begin * size * size;
    for (int64_t w = begin; w < end; ++w) {
      const Window window(windows + 3 * w, sizes);
      // The start of the window may lie before the data: only offsets of cells inside are added to it.
      const int64_t start = window.image * maps.stride(0) + window.top * row + window.left * column;
      const int64_t* offset = offsets.data();
      for (int i = 0; i < sizes.mask; ++i, to += size, offset += size) {
        const bool inside = i >= window.first_row && i < window.last_row;
        const int first = inside ? window.first_column : sizes.mask, last = inside ? window.last_column : sizes.mask;
        std::fill(to, to + first, outside);
        for (int j = first; j < last; ++j) {
          to[j] = data[start + offset[j]];
        }
        std::fill(to + last, to + size, outside);
      }
    }
  });
}

// Adds to `sums`, (N, k*k, H, W) of type T and zero at first.
template <typename scalar, typename T>
void backward(const scalar* const grad, const int64_t* windows, const AssembleSizes& sizes, T* const sums) {
  const int64_t size = sizes.mask, width = sizes.width, plane = sizes.height * width;
  const int64_t planes = sizes.grid * sizes.grid;
  std::vector<int> first_cells;
  for (int part = 0; part <= sizes.grid; ++part) {
    first_cells.push_back(first_of(part, sizes));
  }
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = 0; w < sizes.windows; ++w) {
      const Window window(windows + 3 * w, sizes);
      for (int64_t k = begin; k < end; ++k) {
        const int row = k / sizes.grid, column = k % sizes.grid;
        const int first = std::max(first_cells[column], window.first_column);
        const int last = std::min(first_cells[column + 1], window.last_column);
        const int last_row = std::min(first_cells[row + 1], window.last_row);
        for (int i = std::max(first_cells[row], window.first_row); i < last_row; ++i) {
          const scalar* from = grad + (w * size + i) * size;
          T* to = sums + (window.image * planes + k) * plane + (window.top + i) * width;
          for (int j = first; j < last; ++j) {
            to[window.left + j] += static_cast<T>(from[j]);
          }
        }
      }
    }
  });
}

at::Tensor assemble_instances_cpu(
    const at::Tensor& score_maps, const at::Tensor& windows, int64_t mask_size, int64_t grid, double outside) {
  const AssembleSizes sizes = check_assemble_instances(score_maps, windows, mask_size, grid);
  const at::Tensor entries = windows.contiguous();
  check_images(entries, sizes);
  const at::Tensor out = at::empty({sizes.windows, mask_size, mask_size}, score_maps.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, score_maps.scalar_type(), "assemble_instances", [&] {
    forward<scalar_t>(
        score_maps, entries.const_data_ptr<int64_t>(), sizes, static_cast<scalar_t>(outside),
        out.data_ptr<scalar_t>());
  });
  return out;
}

at::Tensor assemble_instances_backward_cpu(
    const at::Tensor& grad, const at::Tensor& windows, int64_t images, int64_t height, int64_t width, int64_t grid) {
  const AssembleSizes sizes = check_assemble_instances_grad(grad, windows, images, height, width, grid);
  const at::Tensor entries = windows.contiguous(), upper = grad.contiguous();
  check_images(entries, sizes);
  const auto options = grad.options().dtype(at::toOpMathType(grad.scalar_type()));
  const at::Tensor sums = at::zeros({images, grid * grid, height, width}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "assemble_instances_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    backward<scalar_t, T>(
        upper.const_data_ptr<scalar_t>(), entries.const_data_ptr<int64_t>(), sizes, sums.data_ptr<T>());
  });
  return sums.to(grad.scalar_type());
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CPU, m) {
  m.impl("assemble_instances", TORCH_FN(assemble_instances_cpu));
  m.impl("_assemble_instances_backward", TORCH_FN(assemble_instances_backward_cpu));
}

} // namespace instseg_d2
