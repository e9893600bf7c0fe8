// What the kernels use of PyTorch, compiled once: assertions are index errors, and new memory holds NaN.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/macros/Macros.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "emulation.h"

#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(...) TORCH_CHECK_INDEX(bool(__VA_ARGS__), ::emu::message_of(#__VA_ARGS__))
// Of CUDA_KERNEL_ASSERT(value >= 0 && value < limit && "<name> should be <rest>"), as rewrite.py gives it.
#define EMU_ASSERT_RANGE(value, limit, name, rest) \
  TORCH_CHECK_INDEX((value) >= 0 && (value) < (limit), name " is ", value, ", it should be" rest)

namespace emu {

// The text within an assertion.
inline std::string message_of(const std::string& condition) {
  const size_t first = condition.find('"'), last = condition.rfind('"');
  return first == std::string::npos ? condition : condition.substr(first + 1, last - first - 1);
}

// `Fill() << at::empty(...)`: what is not written shows.
struct Fill {
  const at::Tensor& operator<<(const at::Tensor& tensor) const {
    if (tensor.numel() < (int64_t{1} << 28)) { // more would only take memory
      tensor.is_floating_point() ? tensor.fill_(std::nan("")) : tensor.fill_(111);
    }
    return tensor;
  }
};

} // namespace emu
