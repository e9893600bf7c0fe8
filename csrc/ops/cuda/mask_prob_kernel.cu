// mask_prob on CUDA: the host's side of mask_prob_kernels.h.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
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

// The tensors that `Arguments` points into, in the layout and type that it expects.
struct Inputs {
  MaskProbSizes sizes;
  at::ScalarType type; // of computation
  at::Tensor pixels, proposals, margins, windows, image_index, offsets;

  Inputs(
      const at::Tensor& pixel_embeddings,
      const at::Tensor& proposal_embeddings,
      const at::Tensor& all_margins,
      const std::optional<at::Tensor>& boxes,
      const at::Tensor& images)
      : sizes(check_mask_prob(pixel_embeddings, proposal_embeddings, all_margins, boxes, images)),
        type(at::toOpMathType(pixel_embeddings.scalar_type())),
        pixels(pixel_embeddings.contiguous()),
        proposals(proposal_embeddings.to(type).contiguous()),
        margins(all_margins.to(type).expand({sizes.objects, sizes.dims}).contiguous()),
        windows(boxes.has_value() ? boxes->contiguous() : at::Tensor()),
        image_index(images.contiguous()),
        offsets(at::zeros({sizes.objects + 1}, image_index.options())) {
    const at::Tensor ends = offsets.slice(0, 1);
    if (windows.defined()) {
      const at::Tensor extents = windows.slice(1, 2).sub(windows.slice(1, 0, 2)); // no host read, unlike cells()
      ends.copy_(extents.prod(1).cumsum(0));
    } else {
      ends.fill_(sizes.height * sizes.width).cumsum_(0);
    }
  }

  // The number of cells: one copy of the windows to the host, which checks them.
  int64_t cells() const {
    const at::Tensor on_host = windows.defined() ? windows.cpu() : at::Tensor();
    return checked_offsets(on_host.defined() ? on_host.const_data_ptr<int64_t>() : nullptr, sizes).back();
  }

  template <typename scalar, typename T>
  Arguments<scalar, T> arguments() const {
    return {
        pixels.const_data_ptr<scalar>(),
        proposals.const_data_ptr<T>(),
        margins.const_data_ptr<T>(),
        windows.defined() ? windows.const_data_ptr<int64_t>() : nullptr,
        image_index.const_data_ptr<int64_t>(),
        offsets.const_data_ptr<int64_t>(),
        sizes};
  }
};

at::Tensor mask_prob_cuda(
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index) {
  const c10::cuda::CUDAGuard guard(pixel_embeddings.device());
  const Inputs inputs(pixel_embeddings, proposal_embeddings, margins, windows, image_index);
  const int64_t cells = inputs.cells();
  const at::Tensor out = at::empty({cells}, pixel_embeddings.options());
  if (cells == 0) {
    return out;
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "mask_prob", [&] {
    using T = at::opmath_type<scalar_t>;
    forward_kernel<scalar_t, T><<<(cells + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
        inputs.arguments<scalar_t, T>(), cells, out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mask_prob_backward_cuda(
    const at::Tensor& grad,
    const at::Tensor& pixel_embeddings,
    const at::Tensor& proposal_embeddings,
    const at::Tensor& margins,
    const std::optional<at::Tensor>& windows,
    const at::Tensor& image_index) {
  check_mask_prob_grad(grad, pixel_embeddings);
  const c10::cuda::CUDAGuard guard(pixel_embeddings.device());
  const Inputs inputs(pixel_embeddings, proposal_embeddings, margins, windows, image_index);
  const MaskProbSizes& sizes = inputs.sizes;
  if (!windows.has_value()) {
    check_mask_prob_cells(grad, inputs.cells());
  }
  const auto options = pixel_embeddings.options().dtype(inputs.type);
  const at::Tensor pixels_grad = at::zeros(pixel_embeddings.sizes(), options);
  const at::Tensor proposals_grad = at::zeros({sizes.objects, sizes.dims}, options);
  const at::Tensor margins_grad = at::zeros({sizes.objects, sizes.dims}, options);
  if (grad.numel() > 0) {
    const at::Tensor upper = grad.contiguous();
    const int64_t tiles_x = (sizes.width + 31) / 32, rows = kThreads / 32;
    const dim3 tiles(
        tiles_x * ((sizes.height + rows - 1) / rows), std::min<int64_t>(sizes.images, 65535),
        (sizes.dims + kDims - 1) / kDims);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "mask_prob_backward", [&] {
      using T = at::opmath_type<scalar_t>;
      const auto arguments = inputs.arguments<scalar_t, T>();
      const scalar_t* values = upper.const_data_ptr<scalar_t>();
      objects_kernel<scalar_t, T><<<sizes.objects * sizes.dims, kThreads, 0, stream>>>(
          arguments, grad.numel(), values, proposals_grad.data_ptr<T>(), margins_grad.data_ptr<T>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      pixels_kernel<scalar_t, T><<<tiles, kThreads, 0, stream>>>(
          arguments, static_cast<int>(tiles_x), values, pixels_grad.data_ptr<T>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  const auto type = pixel_embeddings.scalar_type();
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
