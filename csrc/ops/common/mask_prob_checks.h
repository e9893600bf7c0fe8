// Argument checks of mask_prob, shared by CPU and CUDA. The kernels check the range of image_index.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "argument_checks.h"
#include "mask_prob_geometry.h"

namespace instseg_d2 {

// N images, M objects, D dimensions, maps of H x W cells.
struct MaskProbSizes {
  int64_t images, objects, dims, height, width;
};

inline MaskProbSizes check_mask_prob(
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index) {
  const auto& pixels = pixel_embeddings;
  const auto companion = [&](const at::Tensor& tensor, const char* name) {
    check_same_device("mask_prob", tensor, name, pixels, "pixel_embeddings");
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == pixels.scalar_type(),
        "mask_prob: ", name, " should have the type of pixel_embeddings, ", pixels.scalar_type(), ", got ",
        tensor.scalar_type());
  };
  TORCH_CHECK_VALUE(
      pixels.dim() == 4 && pixels.size(1) > 0 && pixels.size(2) > 0 && pixels.size(3) > 0 &&
          pixels.is_floating_point(),
      "mask_prob: pixel_embeddings should be floating-point (N, D, H, W) with D, H and W above 0, got ",
      pixels.scalar_type(), " of shape ", pixels.sizes());
  const int64_t dims = pixels.size(1);
  TORCH_CHECK_VALUE(
      dims <= kMostDims, "mask_prob: pixel_embeddings should have at most D = ", kMostDims, " dimensions, got ", dims);
  TORCH_CHECK_VALUE(
      proposal_embeddings.dim() == 2 && proposal_embeddings.size(1) == dims,
      "mask_prob: proposal_embeddings should be (M, D) with the D = ", dims, " of pixel_embeddings, got ",
      proposal_embeddings.sizes());
  const int64_t objects = proposal_embeddings.size(0);
  TORCH_CHECK_VALUE(
      objects * dims <= std::numeric_limits<int>::max(),
      "mask_prob: proposal_embeddings should be below 2**31 values, got ", proposal_embeddings.sizes());
  TORCH_CHECK_VALUE(
      margins.dim() == 2 && margins.size(0) == objects && (margins.size(1) == 1 || margins.size(1) == dims),
      "mask_prob: margins should be (M, 1) or (M, D) = (", objects, ", ", dims, "), got ", margins.sizes());
  companion(proposal_embeddings, "proposal_embeddings");
  companion(margins, "margins");
  if (windows.has_value()) {
    check_same_device("mask_prob", *windows, "windows", pixels, "pixel_embeddings");
    TORCH_CHECK_VALUE(
        windows->dim() == 2 && windows->size(0) == objects && windows->size(1) == 4 &&
            windows->scalar_type() == at::kLong,
        "mask_prob: windows should be int64 of shape (M, 4) = (", objects, ", 4), got ", windows->scalar_type(),
        " of shape ", windows->sizes());
  }
  check_same_device("mask_prob", image_index, "image_index", pixels, "pixel_embeddings");
  check_index("mask_prob", image_index, "image_index", objects, "M");
  // With this, no count of cells exceeds 64 bits.
  TORCH_CHECK_VALUE(
      pixels.size(2) * pixels.size(3) <= std::numeric_limits<int>::max(),
      "mask_prob: pixel_embeddings should have below 2**31 cells per image");
  return {pixels.size(0), objects, dims, pixels.size(2), pixels.size(3)};
}

// Where each object's cells begin in the packed result, and at the end their number; `windows` on the host.
inline std::vector<int64_t> checked_offsets(const int64_t* windows, const MaskProbSizes& sizes) {
  std::vector<int64_t> offsets = {0};
  for (int64_t m = 0; m < sizes.objects; ++m) {
    const Window window = window_of(windows, m, sizes.height, sizes.width);
    TORCH_CHECK_INDEX(
        window.inside(sizes.height, sizes.width),
        "mask_prob: windows[", m, "] is [", window.x1, ", ", window.y1, ", ", window.x2, ", ", window.y2,
        "], it should be x1 <= x2 and y1 <= y2 inside the map of ", sizes.height, " x ", sizes.width, " cells");
    offsets.push_back(offsets.back() + window.area());
  }
  return offsets;
}

// `offsets` as the forward pass gave them: (M + 1,) with windows, else empty; P = `cells`.
inline void check_mask_prob_grad(
    const at::Tensor& grad, const at::Tensor& pixel_embeddings, const at::Tensor& offsets, int64_t length,
    int64_t cells) {
  TORCH_CHECK_VALUE(
      grad.dim() == 1 && grad.scalar_type() == pixel_embeddings.scalar_type(),
      "mask_prob: grad should be (P,) in the type of pixel_embeddings, got ", grad.scalar_type(), " of shape ",
      grad.sizes());
  check_same_device("mask_prob", grad, "grad", pixel_embeddings, "pixel_embeddings");
  TORCH_CHECK_VALUE(
      grad.size(0) == cells, "mask_prob: grad should have a value for each of the P = ", cells, " cells, got ",
      grad.size(0));
  check_same_device("mask_prob", offsets, "offsets", pixel_embeddings, "pixel_embeddings");
  check_index("mask_prob", offsets, "offsets", length, "M + 1");
}

// The offsets as a tensor on the host; none without windows.
inline at::Tensor offsets_tensor(const std::vector<int64_t>& offsets, bool windows) {
  const int64_t length = windows ? static_cast<int64_t>(offsets.size()) : 0;
  const at::Tensor result = at::empty({length}, at::kLong);
  std::copy(offsets.begin(), offsets.begin() + length, result.data_ptr<int64_t>());
  return result;
}

} // namespace instseg_d2
