// dynamic_attention on the CPU: a thread takes a query through both products, norms and activations, while its
// matrices are in the cache. Computes in float32.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "dynamic_attention_rows.h"

namespace instseg_d2 {
namespace {

struct Sizes {
  int64_t queries;
  int cells, channels, dim;
};

Sizes check(const at::Tensor& rois, const at::Tensor& matrices, at::TensorList norms) {
  TORCH_CHECK_VALUE(rois.dim() == 3, "dynamic_attention: rois should be (Q, P, C), got ", rois.sizes());
  TORCH_CHECK_VALUE(
      rois.scalar_type() == at::kFloat || rois.scalar_type() == at::kBFloat16,
      "dynamic_attention: rois should be float32 or bfloat16, got ", rois.scalar_type());
  const int64_t queries = rois.size(0), channels = rois.size(2), dim = norms[0].numel();
  TORCH_CHECK_VALUE(
      matrices.dim() == 2 && matrices.size(0) == queries && matrices.size(1) == 2 * channels * dim &&
          matrices.scalar_type() == rois.scalar_type(),
      "dynamic_attention: matrices should be (Q, 2 C d) = (", queries, ", ", 2 * channels * dim,
      ") in the type of rois, got ", matrices.scalar_type(), " of shape ", matrices.sizes());
  for (const auto i : c10::irange(norms.size())) {
    TORCH_CHECK_VALUE(
        norms[i].dim() == 1 && norms[i].size(0) == (i < 2 ? dim : channels) && norms[i].scalar_type() == at::kFloat,
        "dynamic_attention: the norms' weights and biases should be float32 of shapes (d,), (d,), (C,), (C,), got ",
        norms[i].scalar_type(), " of shape ", norms[i].sizes());
  }
  TORCH_CHECK_VALUE(
      rois.size(1) * channels < (int64_t(1) << 31) && 2 * channels * dim < (int64_t(1) << 31),
      "dynamic_attention: a query's values should be below 2**31");
  return {queries, static_cast<int>(rois.size(1)), static_cast<int>(channels), static_cast<int>(dim)};
}

int panels(int columns) {
  return (columns + kPanel - 1) / kPanel;
}

const float* float_rows(const float* from, float*, int64_t) {
  return from;
}

// Converts bfloat16.
const float* float_rows(const uint16_t* from, float* to, int64_t size) {
  rows<Widen>(to, from, size);
  return to;
}

template <typename T>
void attend(
    T* out, const T* rois, const T* matrices, const std::vector<at::Tensor>& norms, const Sizes& s, float epsilon) {
  const int64_t roi_size = int64_t(s.cells) * s.channels, matrix_size = int64_t(s.channels) * s.dim;
  const int narrow = panels(s.dim), wide = panels(s.channels); // panels of the two products
  at::parallel_for(0, s.queries, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> left(roi_size), right(int64_t(std::max(narrow * (s.channels + 1), wide * (s.dim + 1))) * kPanel);
    std::vector<float> product(int64_t(s.cells) * std::max(narrow, wide) * kPanel);
    for (int64_t query = begin; query < end; ++query) {
      const T* const matrix = matrices + query * 2 * matrix_size;
      const float* const roi = float_rows(rois + query * roi_size, left.data(), roi_size);
      rows<Pack>(right.data(), matrix, s.channels, s.dim);
      rows<Multiply>(
          product.data(), roi, static_cast<const float*>(right.data()), s.cells, static_cast<int>(s.channels), narrow);
      rows<NormElu>(
          left.data(), static_cast<const float*>(product.data()), norms[0].const_data_ptr<float>(),
          norms[1].const_data_ptr<float>(), s.cells, s.dim, narrow * kPanel, epsilon);
      rows<Pack>(right.data(), matrix + matrix_size, s.dim, s.channels);
      rows<Multiply>(
          product.data(), static_cast<const float*>(left.data()), static_cast<const float*>(right.data()), s.cells,
          s.dim, wide);
      rows<NormElu>(
          out + query * roi_size, static_cast<const float*>(product.data()), norms[2].const_data_ptr<float>(),
          norms[3].const_data_ptr<float>(), s.cells, s.channels, wide * kPanel, epsilon);
    }
  });
}

at::Tensor dynamic_attention(
    const at::Tensor& rois,
    const at::Tensor& matrices,
    const at::Tensor& weight1,
    const at::Tensor& bias1,
    const at::Tensor& weight2,
    const at::Tensor& bias2,
    double epsilon) {
  const std::vector<at::Tensor> norms{
      weight1.contiguous(), bias1.contiguous(), weight2.contiguous(), bias2.contiguous()};
  const Sizes sizes = check(rois, matrices, norms);
  const at::Tensor x = rois.contiguous(), y = matrices.contiguous(), out = at::empty(x.sizes(), x.options());
  const auto e = static_cast<float>(epsilon);
  if (x.scalar_type() == at::kFloat) {
    attend(out.data_ptr<float>(), x.const_data_ptr<float>(), y.const_data_ptr<float>(), norms, sizes, e);
  } else {
    attend(
        static_cast<uint16_t*>(out.data_ptr()), static_cast<const uint16_t*>(x.const_data_ptr()),
        static_cast<const uint16_t*>(y.const_data_ptr()), norms, sizes, e);
  }
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CPU, m) {
  m.impl("dynamic_attention", dynamic_attention);
}

} // namespace instseg_d2
