// Argument checks shared by the operators; the message begins with `op`, `name` is the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace instseg_d2 {

inline void check_same_device(
    const char* op, const at::Tensor& tensor, const char* name, const at::Tensor& first, const char* first_name) {
  TORCH_CHECK_VALUE(
      tensor.device() == first.device(),
      op, ": ", name, " is on ", tensor.device(), ", it should be on the device of ", first_name, ", ",
      first.device());
}

// An int64 vector of `length` values; `letter` is what the documentation calls that length.
inline void check_index(
    const char* op, const at::Tensor& tensor, const char* name, int64_t length, const char* letter) {
  TORCH_CHECK_VALUE(
      tensor.dim() == 1 && tensor.size(0) == length && tensor.scalar_type() == at::kLong,
      op, ": ", name, " should be int64 of shape (", letter, ",) = (", length, ",), got ", tensor.scalar_type(),
      " of shape ", tensor.sizes());
}

inline void check_index_range(
    const char* op, const char* name, int64_t at, int64_t value, int64_t limit, const char* letter) {
  TORCH_CHECK_INDEX(
      value >= 0 && value < limit,
      op, ": ", name, "[", at, "] is ", value, ", it should be at least 0 and below ", letter, " = ", limit);
}

} // namespace instseg_d2
