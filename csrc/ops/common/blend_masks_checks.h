// Argument checks of blend_masks, shared by CPU and CUDA. The kernels check the range of the indices.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>
#include <optional>

#include "argument_checks.h"

namespace instseg_d2 {

// N images, M boxes, P masks, K bases of H x W, attention A x A, output R x R.
struct BlendSizes {
  int64_t images, boxes, masks;
  int bases, height, width, attention, resolution;
};

inline BlendSizes check_blend_masks(
    const at::Tensor& bases,
    const at::Tensor& boxes,
    const at::Tensor& batch_index,
    const at::Tensor& attention,
    const std::optional<at::Tensor>& box_index,
    int64_t resolution) {
  const auto same_device = [&](const at::Tensor& tensor, const char* name) {
    check_same_device("blend_masks", tensor, name, bases, "bases");
  };
  same_device(boxes, "boxes");
  same_device(batch_index, "batch_index");
  same_device(attention, "attention");
  TORCH_CHECK_VALUE(
      bases.dim() == 4 && bases.size(1) > 0 && bases.size(2) > 0 && bases.size(3) > 0,
      "blend_masks: bases should be (N, K, H, W) with K, H and W above 0, got ", bases.sizes());
  TORCH_CHECK_VALUE(
      boxes.dim() == 2 && boxes.size(1) == 4 && boxes.is_floating_point(),
      "blend_masks: boxes should be (M, 4) floating-point pixels x1, y1, x2, y2, got ",
      boxes.scalar_type(), " of shape ", boxes.sizes());
  check_index("blend_masks", batch_index, "batch_index", boxes.size(0), "M");
  TORCH_CHECK_VALUE(
      attention.dim() == 4 && attention.size(1) == bases.size(1) && attention.size(2) > 0 &&
          attention.size(2) == attention.size(3),
      "blend_masks: attention should be (P, K, A, A) with the K = ", bases.size(1), " of bases, got ",
      attention.sizes());
  TORCH_CHECK_VALUE(
      attention.scalar_type() == bases.scalar_type(),
      "blend_masks: attention should have the type of bases, ", bases.scalar_type(), ", got ",
      attention.scalar_type());
  if (box_index.has_value()) {
    same_device(*box_index, "box_index");
    check_index("blend_masks", *box_index, "box_index", attention.size(0), "P");
  } else {
    TORCH_CHECK_VALUE(
        attention.size(0) == boxes.size(0),
        "blend_masks: without box_index, attention should have one entry per box (", boxes.size(0), "), got ",
        attention.size(0));
  }
  // The kernels number rows, columns and planes in 32 bits.
  constexpr int64_t limit = std::numeric_limits<int>::max();
  TORCH_CHECK_VALUE(
      bases.size(1) * bases.size(2) * bases.size(3) <= limit,
      "blend_masks: bases of one image should be below 2**31 values");
  TORCH_CHECK_VALUE(
      resolution > 0 && resolution <= 4096, "blend_masks: resolution should be from 1 to 4096, got ", resolution);
  TORCH_CHECK_VALUE(
      attention.size(2) <= 4096 && attention.size(1) * attention.size(2) * attention.size(2) <= limit,
      "blend_masks: attention should be at most 4096 x 4096 and one mask below 2**31 values, got ", attention.sizes());
  return {
      bases.size(0),
      boxes.size(0),
      attention.size(0),
      static_cast<int>(bases.size(1)),
      static_cast<int>(bases.size(2)),
      static_cast<int>(bases.size(3)),
      static_cast<int>(attention.size(2)),
      static_cast<int>(resolution)};
}

inline void check_blend_masks_grad(const at::Tensor& grad, const at::Tensor& bases, const at::Tensor& attention) {
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && grad.size(0) == attention.size(0) && grad.size(1) > 0 && grad.size(1) == grad.size(2),
      "blend_masks: grad should be (P, R, R) with P = ", attention.size(0), ", got ", grad.sizes());
  TORCH_CHECK_VALUE(
      grad.scalar_type() == bases.scalar_type() && grad.device() == bases.device(),
      "blend_masks: grad should have the type and device of bases");
}

} // namespace instseg_d2
