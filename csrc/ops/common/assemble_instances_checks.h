// Argument checks of assemble_instances, shared by CPU and CUDA. The kernels check the range of the image indices.
#pragma once

#include "assemble_instances_geometry.h"
#include "argument_checks.h"

namespace instseg_d2 {

inline void check_grid(int64_t grid) {
  TORCH_CHECK_VALUE(grid > 0 && grid <= 1024, "assemble_instances: grid should be from 1 to 1024, got ", grid);
}

inline AssembleSizes check_windows(
    const at::Tensor& windows, int64_t images, int64_t height, int64_t width, int64_t mask, int64_t grid) {
  TORCH_CHECK_VALUE(
      windows.dim() == 2 && windows.size(1) == 3 && windows.scalar_type() == at::kLong,
      "assemble_instances: windows should be int64 of shape (M, 3), got ", windows.scalar_type(), " of shape ",
      windows.sizes());
  TORCH_CHECK_VALUE(
      mask > 0 && mask <= 4096, "assemble_instances: mask_size should be from 1 to 4096, got ", mask);
  TORCH_CHECK_VALUE(
      images >= 0 && height > 0 && width > 0,
      "assemble_instances: score_maps should be (N, k*k, H, W) with H and W above 0");
  // The kernels number the cells of one image in 32 bits.
  TORCH_CHECK_VALUE(
      grid * grid * height * width < (int64_t{1} << 30),
      "assemble_instances: score_maps of one image should be below 2**30 values");
  return {
      images,
      windows.size(0),
      static_cast<int>(grid),
      static_cast<int>(height),
      static_cast<int>(width),
      static_cast<int>(mask)};
}

inline AssembleSizes check_assemble_instances(
    const at::Tensor& score_maps, const at::Tensor& windows, int64_t mask, int64_t grid) {
  check_same_device("assemble_instances", windows, "windows", score_maps, "score_maps");
  check_grid(grid);
  TORCH_CHECK_VALUE(
      score_maps.dim() == 4 && score_maps.size(1) == grid * grid && score_maps.size(2) > 0 && score_maps.size(3) > 0,
      "assemble_instances: score_maps should be (N, k*k, H, W) with k = grid = ", grid, " and H and W above 0, got ",
      score_maps.sizes());
  return check_windows(windows, score_maps.size(0), score_maps.size(2), score_maps.size(3), mask, grid);
}

inline AssembleSizes check_assemble_instances_grad(
    const at::Tensor& grad, const at::Tensor& windows, int64_t images, int64_t height, int64_t width, int64_t grid) {
  check_same_device("assemble_instances", windows, "windows", grad, "grad");
  check_grid(grid);
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && grad.size(0) == windows.size(0) && grad.size(1) == grad.size(2),
      "assemble_instances: grad should be (M, m, m) with M = ", windows.size(0), ", got ", grad.sizes());
  return check_windows(windows, images, height, width, grad.size(1), grid);
}

} // namespace instseg_d2
