// mask_prob on CUDA: the host's side of mask_prob_kernels.h.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../common/mask_prob_checks.h"
#include "mask_prob_kernels.h"

namespace instseg_d2 {
namespace {

// The tensors that `Arguments` points into, checked and in the layout that it expects.
struct Inputs {
  MaskProbSizes sizes;
  at::Tensor pixels, proposals, margins, windows, image_index;

  Inputs(
      const at::Tensor& pixel_embeddings,
      const at::Tensor& proposal_embeddings,
      const at::Tensor& all_margins,
      const std::optional<at::Tensor>& boxes,
      const at::Tensor& images)
      : sizes(check_mask_prob(pixel_embeddings, proposal_embeddings, all_margins, boxes, images)),
        pixels(pixel_embeddings.contiguous()),
        proposals(proposal_embeddings.contiguous()),
        margins(all_margins.contiguous()),
        windows(boxes.has_value() ? boxes->contiguous() : at::Tensor()),
        image_index(images.contiguous()) {}

  template <typename scalar, typename T>
  Arguments<scalar, T> arguments(const at::Tensor& offsets) const {
    return {
        pixels.const_data_ptr<scalar>(),
        proposals.const_data_ptr<scalar>(),
        margins.const_data_ptr<scalar>(),
        margins.size(1) < sizes.dims,
        windows.defined() ? windows.const_data_ptr<int64_t>() : nullptr,
        image_index.const_data_ptr<int64_t>(),
        windows.defined() ? offsets.const_data_ptr<int64_t>() : nullptr,
        sizes};
  }
};

int blocks_of(int64_t items) {
  return static_cast<int>(std::min<int64_t>(items, 65535));
}

// The windows are copied to the host, where they are checked and their cells counted: the one time that this waits.
std::tuple<at::Tensor, at::Tensor> mask_prob_cuda(
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index) {
  const c10::cuda::CUDAGuard guard(pixel_embeddings.device());
  const Inputs inputs(pixel_embeddings, proposal_embeddings, margins, windows, image_index);
  const at::Tensor on_host = windows.has_value() ? inputs.windows.cpu() : at::Tensor();
  const auto offsets = checked_offsets(on_host.defined() ? on_host.const_data_ptr<int64_t>() : nullptr, inputs.sizes);
  const at::Tensor starts = offsets_tensor(offsets, windows.has_value()).to(pixel_embeddings.device());
  const at::Tensor out = at::empty({offsets.back()}, pixel_embeddings.options());
  if (inputs.sizes.objects == 0) {
    return {out, starts};
  }
  int64_t largest = 0;
  for (size_t m = 1; m < offsets.size(); ++m) {
    largest = std::max(largest, offsets[m] - offsets[m - 1]);
  }
  // At least a block for each object, which checks its image.
  const dim3 blocks(blocks_of(largest / (kThreads * kCells) + 1), blocks_of(inputs.sizes.objects));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "mask_prob", [&] {
    using T = at::opmath_type<scalar_t>;
    forward_kernel<scalar_t, T><<<blocks, kThreads, 0, stream>>>(
        inputs.arguments<scalar_t, T>(starts), out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {out, starts};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mask_prob_backward_cuda(
    const at::Tensor& grad,
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index,
    const at::Tensor& offsets,
    int64_t cells) {
  check_mask_prob_grad(grad, pixel_embeddings, offsets, windows.has_value() ? image_index.size(0) + 1 : 0, cells);
  const c10::cuda::CUDAGuard guard(pixel_embeddings.device());
  const Inputs inputs(pixel_embeddings, proposal_embeddings, margins, windows, image_index);
  const MaskProbSizes& sizes = inputs.sizes;
  const auto type = pixel_embeddings.scalar_type();
  const auto options = pixel_embeddings.options().dtype(at::toOpMathType(type));
  const at::Tensor upper = grad.contiguous(), starts = offsets.contiguous();
  // The kernels write every value.
  const at::Tensor pixels_grad = at::empty(pixel_embeddings.sizes(), options);
  const at::Tensor proposals_grad = at::empty({sizes.objects, sizes.dims}, options);
  const at::Tensor margins_grad = at::empty({sizes.objects, sizes.dims}, options);
  const int tiles_x = tiles_of(sizes.width, kTileColumns);
  const dim3 tiles(tiles_x * tiles_of(sizes.height, kTileRows), blocks_of(sizes.images), tiles_of(sizes.dims, kDims));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "mask_prob_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto arguments = inputs.arguments<scalar_t, T>(starts);
    const scalar_t* values = upper.const_data_ptr<scalar_t>();
    if (sizes.objects > 0) {
      objects_kernel<scalar_t, T><<<sizes.objects * sizes.dims, kThreads, 0, stream>>>(
          arguments, cells, values, proposals_grad.data_ptr<T>(), margins_grad.data_ptr<T>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (sizes.images > 0) {
      pixels_kernel<scalar_t, T><<<tiles, kThreads, 0, stream>>>(
          arguments, tiles_x, values, pixels_grad.data_ptr<T>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  const bool shared = margins.size(1) < sizes.dims;
  return {
      pixels_grad.to(type), proposals_grad.to(type),
      (shared ? margins_grad.sum(1, /*keepdim=*/true) : margins_grad).to(type)};
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CUDA, m) {
  m.impl("mask_prob", TORCH_FN(mask_prob_cuda));
  m.impl("_mask_prob_backward", TORCH_FN(mask_prob_backward_cuda));
}

} // namespace instseg_d2
