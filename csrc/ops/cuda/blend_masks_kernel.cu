// blend_masks on CUDA: one thread per output pixel, and
// no intermediate in global memory. The backward pass computes the pixel again and spreads its gradients over
// the cells it read with atomic additions, in float32 for the half types; their order is not fixed.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../common/blend_masks_checks.h"
#include "../common/blend_masks_geometry.h"

namespace instseg_d2 {
namespace {

constexpr int kThreads = 256;

// Planes in any memory layout; strides in values, offsets in 64 bits.
template <typename T>
struct Stack {
  T* data;
  int64_t item, plane, row, column;

  __device__ Stack at(int64_t index) const {
    return {data + index * item, item, plane, row, column};
  }
  __device__ T* cell(int k, int y, int x) const {
    return data + k * plane + y * row + x * column;
  }
};

template <typename T>
Stack<T> stack_of(const at::Tensor& tensor, T* data) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The inputs of a pixel; values are read as `scalar`, and computations use `T`.
template <typename scalar, typename T>
struct Arguments {
  Stack<const scalar> bases, attention;
  const T* boxes;
  const int64_t* batch_index;
  const int64_t* box_index; // null: mask p belongs to box p
  T scale;
  bool nearest;
  BlendSizes sizes;
};

// A row tap and a column tap: four cells of a plane.
template <typename T>
struct Quad {
  Tap<T> row, column;

  template <typename scalar>
  __device__ T read(const Stack<const scalar>& source, int k) const {
    if (row.outside() || column.outside()) {
      return T(0);
    }
    const T low = column.w_low * static_cast<T>(*source.cell(k, row.low, column.low)) +
        column.w_high * static_cast<T>(*source.cell(k, row.low, column.high));
    const T high = column.w_low * static_cast<T>(*source.cell(k, row.high, column.low)) +
        column.w_high * static_cast<T>(*source.cell(k, row.high, column.high));
    return row.w_low * low + row.w_high * high;
  }

  __device__ void spread(const Stack<T>& target, int k, T value) const {
    add(target.cell(k, row.low, column.low), row.w_low * column.w_low, value);
    add(target.cell(k, row.low, column.high), row.w_low * column.w_high, value);
    add(target.cell(k, row.high, column.low), row.w_high * column.w_low, value);
    add(target.cell(k, row.high, column.high), row.w_high * column.w_high, value);
  }

 private:
  __device__ static void add(T* to, T weight, T value) {
    if (weight != T(0)) {
      atomicAdd(to, weight * value);
    }
  }
};

// One output pixel: where it reads, and the softmax over its bases (the largest logit, the sum of the
// exponentials below it, and the blended value).
template <typename scalar, typename T>
struct Pixel {
  int64_t image;
  Quad<T> crop, cell;
  Stack<const scalar> bases, attention;
  T top, sum, value;

  __device__ Pixel(const Arguments<scalar, T>& a, int64_t mask, int y, int x) {
    const int64_t box = a.box_index == nullptr ? mask : a.box_index[mask];
    CUDA_KERNEL_ASSERT(box >= 0 && box < a.sizes.boxes && "blend_masks: box_index should be in [0, M)");
    image = a.batch_index[box];
    CUDA_KERNEL_ASSERT(image >= 0 && image < a.sizes.images && "blend_masks: batch_index should be in [0, N)");
    const T* corners = a.boxes + 4 * box;
    const int size = a.sizes.resolution;
    crop.row = roi_tap(RoiAxis<T>(corners[1], corners[3], a.scale, size), y, a.sizes.height);
    crop.column = roi_tap(RoiAxis<T>(corners[0], corners[2], a.scale, size), x, a.sizes.width);
    cell.row = resize_tap<T>(a.sizes.attention, size, y, a.nearest);
    cell.column = resize_tap<T>(a.sizes.attention, size, x, a.nearest);
    bases = a.bases.at(image);
    attention = a.attention.at(mask);
    if (a.sizes.bases == 1) {
      top = T(0), sum = T(1), value = crop.read(bases, 0);
      return;
    }
    // The largest first: where an attention is -inf, the difference of two running maxima could be NaN.
    top = cell.read(attention, 0);
    for (int k = 1; k < a.sizes.bases; ++k) {
      const T logit = cell.read(attention, k);
      top = logit > top ? logit : top;
    }
    sum = value = T(0);
    for (int k = 0; k < a.sizes.bases; ++k) {
      const T weight = ::exp(cell.read(attention, k) - top);
      sum += weight;
      value += weight * crop.read(bases, k);
    }
    value /= sum;
  }
};

template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Arguments<scalar, T> a, scalar* out) {
  const int size = a.sizes.resolution;
  const int at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= size * size) {
    return;
  }
  for (int64_t mask = blockIdx.y; mask < a.sizes.masks; mask += gridDim.y) {
    const Pixel<scalar, T> pixel(a, mask, at / size, at % size);
    out[mask * size * size + at] = static_cast<scalar>(pixel.value);
  }
}

template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const Arguments<scalar, T> a, const scalar* grad, const Stack<T> bases_grad, const Stack<T> attention_grad) {
  const int size = a.sizes.resolution;
  const int at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= size * size) {
    return;
  }
  for (int64_t mask = blockIdx.y; mask < a.sizes.masks; mask += gridDim.y) {
    const Pixel<scalar, T> pixel(a, mask, at / size, at % size);
    const T upper = static_cast<T>(grad[mask * size * size + at]);
    const Stack<T> to_bases = bases_grad.at(pixel.image), to_attention = attention_grad.at(mask);
    for (int k = 0; k < a.sizes.bases; ++k) {
      const T logit = a.sizes.bases > 1 ? pixel.cell.read(pixel.attention, k) : pixel.top;
      const T share = upper * ::exp(logit - pixel.top) / pixel.sum;
      pixel.crop.spread(to_bases, k, share);
      if (a.sizes.bases > 1) {
        pixel.cell.spread(to_attention, k, share * (pixel.crop.read(pixel.bases, k) - pixel.value));
      }
    }
  }
}

dim3 grid_of(const BlendSizes& sizes) {
  return dim3((sizes.resolution * sizes.resolution + kThreads - 1) / kThreads, std::min<int64_t>(sizes.masks, 65535));
}

// The tensors that `Arguments` points into, in the layout and type that it expects.
struct Inputs {
  at::Tensor boxes, batch_index, box_index;

  Inputs(
      const at::Tensor& corners, const at::Tensor& images, const std::optional<at::Tensor>& index, at::ScalarType type)
      : boxes(corners.to(type).contiguous()),
        batch_index(images.contiguous()),
        box_index(index.has_value() ? index->contiguous() : at::Tensor()) {}

  template <typename scalar, typename T>
  Arguments<scalar, T> arguments(
      const at::Tensor& bases, const at::Tensor& attention, double scale, bool nearest, const BlendSizes& sizes) const {
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
  const Inputs inputs(boxes, batch_index, box_index, at::toOpMathType(bases.scalar_type()));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks", [&] {
    using T = at::opmath_type<scalar_t>;
    forward_kernel<scalar_t, T><<<grid_of(sizes), kThreads, 0, stream>>>(
        inputs.arguments<scalar_t, T>(bases, attention, scale, nearest, sizes), out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
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
  const auto type = at::toOpMathType(bases.scalar_type());
  const at::Tensor bases_grad = at::zeros_like(bases, type), attention_grad = at::zeros_like(attention, type);
  if (grad.numel() > 0) {
    const at::Tensor upper = grad.contiguous();
    const Inputs inputs(boxes, batch_index, box_index, type);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks_backward", [&] {
      using T = at::opmath_type<scalar_t>;
      backward_kernel<scalar_t, T><<<grid_of(sizes), kThreads, 0, stream>>>(
          inputs.arguments<scalar_t, T>(bases, attention, scale, nearest, sizes),
          upper.const_data_ptr<scalar_t>(), stack_of(bases_grad, bases_grad.data_ptr<T>()),
          stack_of(attention_grad, attention_grad.data_ptr<T>()));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {bases_grad.to(bases.scalar_type()), attention_grad.to(attention.scalar_type())};
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CUDA, m) {
  m.impl("blend_masks", TORCH_FN(blend_masks_cuda));
  m.impl("_blend_masks_backward", TORCH_FN(blend_masks_backward_cuda));
}

} // namespace instseg_d2
