// mask_prob on the CPU. Forward, a row of a window at a time, the dimensions summed in registers. Backward, a
// thread owns some dimensions and goes through the objects in their order: the sums do not depend on the number
// of threads. Both compute on contiguous planes in float32 or float64.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/mask_prob_checks.h"
#include "../common/mask_prob_geometry.h"
#include "mask_prob_rows.h"

namespace instseg_d2 {
namespace {

constexpr int64_t kCellsPerThread = 2048; // fewer are not worth another thread

// One call: its checked arguments, contiguous and in the type of computation; margins for every dimension.
class MaskProb {
 public:
  MaskProb(
      const at::Tensor& pixels,
      const at::Tensor& proposals,
      const at::Tensor& margins,
      const std::optional<at::Tensor>& windows,
      const at::Tensor& image_index)
      : sizes_(check_mask_prob(pixels, proposals, margins, windows, image_index)),
        type_(at::toOpMathType(pixels.scalar_type())),
        pixels_(pixels.to(type_).contiguous()),
        proposals_(proposals.to(type_).contiguous()),
        margins_(margins.to(type_).expand({sizes_.objects, sizes_.dims}).contiguous()),
        windows_(windows.has_value() ? windows->contiguous() : at::Tensor()),
        images_(image_index.contiguous()),
        offsets_(checked_offsets(windows_.defined() ? windows_.const_data_ptr<int64_t>() : nullptr, sizes_)) {
    for (int64_t m = 0; m < sizes_.objects; ++m) {
      check_index_range("mask_prob", "image_index", m, image(m), sizes_.images, "N");
    }
  }

  // The values, and where those of each window begin.
  std::tuple<at::Tensor, at::Tensor> forward() const {
    const at::Tensor out = at::empty({offsets_.back()}, pixels_.options());
    AT_DISPATCH_FLOATING_TYPES(type_, "mask_prob", [&] { write<scalar_t>(out.data_ptr<scalar_t>()); });
    return {out, offsets_tensor(offsets_, windows_.defined())};
  }

  // The gradients of pixels, proposals and margins.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, int64_t margin_dims) const {
    TORCH_CHECK_VALUE(
        grad.size(0) == offsets_.back(), "mask_prob: grad should have a value for each of the P = ", offsets_.back(),
        " cells, got ", grad.size(0));
    const at::Tensor upper = grad.to(type_).contiguous(), pixels_grad = at::zeros(pixels_.sizes(), pixels_.options());
    const at::Tensor proposals_grad = at::empty(proposals_.sizes(), proposals_.options());
    const at::Tensor margins_grad = at::empty(margins_.sizes(), margins_.options());
    AT_DISPATCH_FLOATING_TYPES(type_, "mask_prob_backward", [&] {
      write_gradients(
          upper.const_data_ptr<scalar_t>(), pixels_grad.data_ptr<scalar_t>(), proposals_grad.data_ptr<scalar_t>(),
          margins_grad.data_ptr<scalar_t>());
    });
    return {pixels_grad, proposals_grad, margin_dims == sizes_.dims ? margins_grad : margins_grad.sum(1, true)};
  }

 private:
  int64_t image(int64_t m) const {
    return images_.const_data_ptr<int64_t>()[m];
  }

  Window window(int64_t m) const {
    return window_of(
        windows_.defined() ? windows_.const_data_ptr<int64_t>() : nullptr, m, sizes_.height, sizes_.width);
  }

  // Where the window of object `m` begins in dimension `d` of its image.
  int64_t corner(int64_t m, int64_t d) const {
    const Window box = window(m);
    return ((image(m) * sizes_.dims + d) * sizes_.height + box.y1) * sizes_.width + box.x1;
  }

  template <typename T>
  void write(T* out) const {
    at::parallel_for(0, offsets_.back(), kCellsPerThread, [&](int64_t begin, int64_t end) {
      const int64_t plane = sizes_.height * sizes_.width;
      // The thread whose share of the cells holds the first one of a row does the whole row.
      int64_t m = std::upper_bound(offsets_.begin(), offsets_.end(), begin) - offsets_.begin() - 1;
      for (; m < sizes_.objects && offsets_[m] < end; ++m) {
        const int64_t width = window(m).width();
        const T* proposal = proposals_.const_data_ptr<T>() + m * sizes_.dims;
        const T* margins = margins_.const_data_ptr<T>() + m * sizes_.dims;
        const T* planes = pixels_.const_data_ptr<T>() + image(m) * sizes_.dims * plane;
        const int64_t first = window(m).y1 * sizes_.width + window(m).x1;
        int64_t y = offsets_[m] < begin ? (begin - offsets_[m] + width - 1) / width : 0;
        for (int64_t at = offsets_[m] + y * width; at < std::min(end, offsets_[m + 1]); at += width, ++y) {
          rows<NegativeDistance>(
              out + at, planes, first + y * sizes_.width, plane, proposal, margins, sizes_.dims, width);
        }
      }
    });
  }

  template <typename T>
  void write_gradients(const T* grad, T* pixels_grad, T* proposals_grad, T* margins_grad) const {
    const T* pixels = pixels_.const_data_ptr<T>();
    at::parallel_for(0, sizes_.dims, 1, [&](int64_t begin, int64_t end) {
      for (int64_t d = begin; d < end; ++d) {
        for (int64_t m = 0; m < sizes_.objects; ++m) {
          const int64_t at = m * sizes_.dims + d, cell = corner(m, d);
          const T margin = margins_.const_data_ptr<T>()[at];
          double sums[2] = {0, 0};
          rows<NegativeDistanceBackward>(
              pixels_grad + cell, pixels + cell, grad + offsets_[m], proposals_.const_data_ptr<T>()[at], margin, sums,
              sizes_.width, window(m).y2 - window(m).y1, window(m).width());
          // Without cells the margin is not read: it may be NaN.
          proposals_grad[at] = window(m).area() > 0 ? static_cast<T>(2 * margin * sums[0]) : T(0);
          margins_grad[at] = static_cast<T>(-sums[1]);
        }
      }
    });
  }

  const MaskProbSizes sizes_;
  const at::ScalarType type_;
  const at::Tensor pixels_, proposals_, margins_, windows_, images_;
  const std::vector<int64_t> offsets_;
};

std::tuple<at::Tensor, at::Tensor> mask_prob_cpu(
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index) {
  const auto [values, offsets] =
      MaskProb(pixel_embeddings, proposal_embeddings, margins, windows, image_index).forward();
  return {values.to(pixel_embeddings.scalar_type()), offsets};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mask_prob_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index,
    const at::Tensor& offsets,
    int64_t cells) {
  check_mask_prob_grad(grad, pixel_embeddings, offsets, windows.has_value() ? image_index.size(0) + 1 : 0, cells);
  const auto type = pixel_embeddings.scalar_type();
  const auto [pixels_grad, proposals_grad, margins_grad] =
      MaskProb(pixel_embeddings, proposal_embeddings, margins, windows, image_index).backward(grad, margins.size(1));
  return {pixels_grad.to(type), proposals_grad.to(type), margins_grad.to(type)};
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CPU, m) {
  m.impl("mask_prob", TORCH_FN(mask_prob_cpu));
  m.impl("_mask_prob_backward", TORCH_FN(mask_prob_backward_cpu));
}

} // namespace instseg_d2
