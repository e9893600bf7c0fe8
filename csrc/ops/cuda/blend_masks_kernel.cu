// blend_masks on CUDA: the forward pass, and the host's side of both. Forward, a thread has a few pixels of a column,
// and nothing lies in global memory but the arguments and the result.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "blend_masks_backward.h"
#include "blend_masks_pixels.h"

namespace instseg_d2 {
namespace {

// The gradient's scratch memory, in values: masks are processed in parts where all of them would need more.
constexpr int64_t kMostScratch = int64_t{1} << 25;

// The tensor itself, or a copy where 32 bits do not hold the offsets within one of its items.
at::Tensor fitting(const at::Tensor& tensor) {
  int64_t last = 0;
  for (int64_t dim = 1; dim < 4; ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return last <= std::numeric_limits<int>::max() ? tensor : tensor.contiguous();
}

template <typename T>
Stack<T> stack_of(const at::Tensor& tensor, T* data) {
  const auto stride = [&](int64_t dim) { return static_cast<int>(tensor.stride(dim)); };
  return {data, tensor.stride(0), stride(1), stride(2), stride(3)};
}

template <typename scalar, typename T, bool whole>
__global__ void __launch_bounds__(kThreads, 3) forward_kernel(const Arguments<scalar, T> a, scalar* out) {
  __shared__ Tap<T> taps[4 * kSide];
  const int64_t size = a.sizes.resolution;
  visit_pixels<whole>(a, 0, a.sizes.masks, taps, [&](const auto& pixels, int line, int y, int x) {
    Blend<T> blends[kRows];
    pixels.read(taps, line, [&](int r, int k, int planes, const auto& logits, const auto& crop) {
      blends[r].add(logits, crop, planes, k == 0);
    });
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < pixels.rows) {
        out[(pixels.mask * size + y + r) * size + x] = static_cast<scalar>(blends[r].value / blends[r].sum);
      }
    }
  });
}

int blocks_of(int64_t items) {
  return static_cast<int>(std::min<int64_t>(items, 65535));
}

// Blocks of kSide x kSide pixels, of `masks` masks.
dim3 grid_of(int resolution, int64_t masks) {
  const int tiles = tiles_of(resolution, kSide);
  return dim3(tiles * tiles, blocks_of(masks));
}

// The tensors that `Arguments` points into, in the layout and type that it expects.
struct Inputs {
  at::Tensor bases, attention, boxes, batch_index, box_index;

  Inputs(
      const at::Tensor& planes, const at::Tensor& logits, const at::Tensor& corners, const at::Tensor& images,
      const std::optional<at::Tensor>& index)
      : bases(fitting(planes)),
        attention(fitting(logits)),
        boxes(corners.to(at::toOpMathType(planes.scalar_type())).contiguous()),
        batch_index(images.contiguous()),
        box_index(index.has_value() ? index->contiguous() : at::Tensor()) {}

  template <typename scalar, typename T>
  Arguments<scalar, T> arguments(double scale, bool nearest, const BlendSizes& sizes) const {
    return {
        stack_of(bases, bases.const_data_ptr<scalar>()),
        stack_of(attention, attention.const_data_ptr<scalar>()),
        boxes.const_data_ptr<T>(),
        batch_index.const_data_ptr<int64_t>(),
        box_index.defined() ? box_index.const_data_ptr<int64_t>() : nullptr,
        static_cast<T>(scale),
        nearest,
        sizes};
  }
};

at::Tensor blend_masks_cuda(
    const at::Tensor& bases,
    const at::Tensor& boxes,
    const at::Tensor& batch_index,
    const at::Tensor& attention,
    const std::optional<at::Tensor>& box_index,
    int64_t resolution,
    double scale,
    bool nearest) {
  const BlendSizes sizes = check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution);
  const c10::cuda::CUDAGuard guard(bases.device());
  const at::Tensor out = at::empty({sizes.masks, resolution, resolution}, bases.options());
  if (out.numel() == 0) {
    return out;
  }
  const Inputs inputs(bases, attention, boxes, batch_index, box_index);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto arguments = inputs.arguments<scalar_t, T>(scale, nearest, sizes);
    const dim3 blocks = grid_of(resolution, sizes.masks);
    if (sizes.bases % kBases == 0) {
      forward_kernel<scalar_t, T, true><<<blocks, kThreads, 0, stream>>>(arguments, out.data_ptr<scalar_t>());
    } else {
      forward_kernel<scalar_t, T, false><<<blocks, kThreads, 0, stream>>>(arguments, out.data_ptr<scalar_t>());
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

// The gradients of at least one mask; that of the bases is fully written, in the type of computation.
template <typename scalar, typename T>
void backward(
    const Arguments<scalar, T>& a, const at::Tensor& grad, const at::Tensor& bases_grad,
    const at::Tensor& attention_grad) {
  const BlendSizes& sizes = a.sizes;
  const int64_t size = sizes.resolution, values = 2 * sizes.bases * size * (size + 1);
  const int64_t part = std::clamp(kMostScratch / values, int64_t{1}, sizes.masks);
  const auto options = bases_grad.options();
  const at::Tensor scratch = at::empty({part * values}, options);
  const auto bytes = options.dtype(at::kByte);
  const at::Tensor boxes = at::empty({sizes.boxes * static_cast<int64_t>(sizeof(Box<T>))}, bytes);
  const at::Tensor taps = at::empty({(2 * sizes.boxes + 1) * size * static_cast<int64_t>(sizeof(Tap<T>))}, bytes);
  const Plan<T> plan = {
      static_cast<Box<T>*>(boxes.data_ptr()), static_cast<Tap<T>*>(taps.data_ptr()), sizes.boxes, sizes.resolution};
  const auto stream = c10::cuda::getCurrentCUDAStream();
  plan_kernel<scalar, T><<<blocks_of((2 * sizes.boxes + 1) * size / kThreads + 1), kThreads, 0, stream>>>(a, plan);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const int tiles_x = tiles_of(sizes.width, kTileColumns);
  const dim3 tiles(tiles_x * tiles_of(sizes.height, kTileRows), blocks_of(sizes.images * tiles_of(sizes.bases, kBases)));
  T* const crops = scratch.data_ptr<T>();
  for (int64_t begin = 0; begin < sizes.masks; begin += part) {
    const int64_t end = std::min(begin + part, sizes.masks), count = end - begin;
    const Scratch<T> shares = {crops, crops + part * values / 2, begin, end};
    const dim3 blocks = grid_of(sizes.resolution, count);
    if (sizes.bases % kBases == 0) {
      shares_kernel<scalar, T, true><<<blocks, kThreads, 0, stream>>>(a, grad.const_data_ptr<scalar>(), shares);
    } else {
      shares_kernel<scalar, T, false><<<blocks, kThreads, 0, stream>>>(a, grad.const_data_ptr<scalar>(), shares);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    dense_kernel<scalar, T><<<dim3(blocks_of(count), sizes.bases > 1 ? 2 : 1), kThreads, 0, stream>>>(a, plan, shares);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (sizes.bases > 1) {
      const int64_t cells = count * sizes.bases * sizes.attention * sizes.attention;
      attention_kernel<scalar, T><<<blocks_of(cells / kThreads + 1), kThreads, 0, stream>>>(
          a, plan, shares, stack_of(attention_grad, attention_grad.data_ptr<scalar>()));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    bases_kernel<scalar, T><<<tiles, kThreads, 0, stream>>>(
        a, plan, shares, tiles_x, stack_of(bases_grad, bases_grad.data_ptr<T>()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

std::tuple<at::Tensor, at::Tensor> blend_masks_backward_cuda(
    const at::Tensor& grad,
    const at::Tensor& bases,
    const at::Tensor& boxes,
    const at::Tensor& batch_index,
    const at::Tensor& attention,
    const std::optional<at::Tensor>& box_index,
    double scale,
    bool nearest) {
  check_blend_masks_grad(grad, bases, attention);
  const BlendSizes sizes = check_blend_masks(bases, boxes, batch_index, attention, box_index, grad.size(1));
  const c10::cuda::CUDAGuard guard(bases.device());
  if (grad.numel() == 0) {
    return {at::zeros_like(bases), at::zeros_like(attention)};
  }
  const auto type = at::toOpMathType(bases.scalar_type());
  const at::Tensor bases_grad = at::empty_like(bases, type);
  // Without a choice among bases the attention has no gradient.
  const at::Tensor attention_grad = sizes.bases > 1 ? at::empty_like(attention) : at::zeros_like(attention);
  const at::Tensor upper = grad.contiguous();
  const Inputs inputs(bases, attention, boxes, batch_index, box_index);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    backward(
        inputs.arguments<scalar_t, T>(scale, nearest, sizes), upper, bases_grad, attention_grad);
  });
  return {bases_grad.to(bases.scalar_type()), attention_grad};
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CUDA, m) {
  m.impl("blend_masks", TORCH_FN(blend_masks_cuda));
  m.impl("_blend_masks_backward", TORCH_FN(blend_masks_backward_cuda));
}

} // namespace instseg_d2
