// dynamic_attention on the CPU: a thread takes a query through both products, norms and activations, while its
// matrices are in the cache. Sums in float32.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "bfloat16_rows.h"
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

int64_t padded(int64_t columns, int panel) {
  return (columns + panel - 1) / panel * panel;
}

// The product of two matrices, in float32; with the memory for its panels.
template <typename T>
struct Product {
  static constexpr int kPadding = kPanel;

  void operator()(float* out, const T* left, const T* right, int count, int inner, int columns) {
    panels.resize(padded(columns, kPanel) * (inner + 1));
    rows<Pack>(panels.data(), right, inner, columns);
    rows<Multiply>(
        out, as_float(left, int64_t(count) * inner), static_cast<const float*>(panels.data()), count, inner,
        static_cast<int>(padded(columns, kPanel) / kPanel));
  }

  template <typename... Arguments>
  static void norm(Arguments... arguments) {
    rows<NormElu>(arguments...);
  }

  std::vector<float> panels, widened;

 private:
  const float* as_float(const float* from, int64_t) {
    return from;
  }

  const float* as_float(const uint16_t* from, int64_t size) {
    widened.resize(size);
    rows<Widen>(widened.data(), from, size);
    return widened.data();
  }
};

// The same of bfloat16 with the processor's instructions for it; `inner` is even.
struct PairProduct {
  static constexpr int kPadding = kPairPanel;

  void operator()(float* out, const uint16_t* left, const uint16_t* right, int count, int inner, int columns) {
    panels.resize(padded(columns, kPairPanel) * (inner + 2));
    pack_pairs(panels.data(), right, inner, columns);
    multiply_bfloat16(
        out, left, panels.data(), count, inner, static_cast<int>(padded(columns, kPairPanel) / kPairPanel));
  }

  template <typename... Arguments>
  static void norm(Arguments... arguments) {
    widest_rows<NormElu>(arguments...);
  }

  std::vector<uint16_t> panels;
};

template <typename Multiplier, typename T>
void attend(
    T* out, const T* rois, const T* matrices, const std::vector<at::Tensor>& norms, const Sizes& s, float epsilon) {
  const int64_t roi_size = int64_t(s.cells) * s.channels, matrix_size = int64_t(s.channels) * s.dim;
  const auto inner_width = static_cast<int>(padded(s.dim, Multiplier::kPadding));
  const auto outer_width = static_cast<int>(padded(s.channels, Multiplier::kPadding));
  at::parallel_for(0, s.queries, 1, [&](int64_t begin, int64_t end) {
    Multiplier multiply;
    std::vector<float> product(int64_t(s.cells) * std::max(inner_width, outer_width));
    std::vector<T> hidden(int64_t(s.cells) * s.dim);
    for (int64_t query = begin; query < end; ++query) {
      const T* const matrix = matrices + query * 2 * matrix_size;
      multiply(product.data(), rois + query * roi_size, matrix, s.cells, s.channels, s.dim);
      multiply.norm(
          hidden.data(), static_cast<const float*>(product.data()), norms[0].const_data_ptr<float>(),
          norms[1].const_data_ptr<float>(), s.cells, s.dim, inner_width, epsilon);
      multiply(product.data(), hidden.data(), matrix + matrix_size, s.cells, s.dim, s.channels);
      multiply.norm(
          out + query * roi_size, static_cast<const float*>(product.data()), norms[2].const_data_ptr<float>(),
          norms[3].const_data_ptr<float>(), s.cells, s.channels, outer_width, epsilon);
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
    attend<Product<float>>(
        out.data_ptr<float>(), x.const_data_ptr<float>(), y.const_data_ptr<float>(), norms, sizes, e);
    return out;
  }
  auto* const to = static_cast<uint16_t*>(out.data_ptr());
  const auto* const from = static_cast<const uint16_t*>(x.const_data_ptr());
  const auto* const matrix = static_cast<const uint16_t*>(y.const_data_ptr());
  if (multiplies_bfloat16() && sizes.channels % 2 == 0 && sizes.dim % 2 == 0) {
    attend<PairProduct>(to, from, matrix, norms, sizes, e);
  } else {
    attend<Product<uint16_t>>(to, from, matrix, norms, sizes, e);
  }
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CPU, m) {
  m.impl("dynamic_attention", dynamic_attention);
}

} // namespace instseg_d2
