// The arithmetic of one output row of blend_masks on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "rows.h"

namespace instseg_d2 {

// exp(x) of x <= 0 to about 1e-7 relative: x = n ln 2 + r, a polynomial for exp(r), n into the exponent's bits.
// Below -87 it stays near the smallest normal number; a NaN stays NaN.
INSTSEG_INLINE float exp_of_nonpositive(float x) {
  constexpr float round = 12582912.f; // 1.5 * 2**23: adding it leaves the nearest integer in the low bits
  x = x < -87.f ? -87.f : x;
  const float shifted = x * 1.44269504088896f + round;
  const float n = shifted - round;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.f / 5040.f;
  y = y * r + 1.f / 720.f;
  y = y * r + 1.f / 120.f;
  y = y * r + 1.f / 24.f;
  y = y * r + 1.f / 6.f;
  y = y * r + 0.5f;
  y = y * r + 1.f;
  y = y * r + 1.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

INSTSEG_INLINE double exp_of_nonpositive(double x) {
  return std::exp(x);
}

// out = w_low * low + w_high * high
struct Mix {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT out, const T* low, const T* high, T w_low, T w_high, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      out[i] = w_low * low[i] + w_high * high[i];
    }
  }
};

// sum += w * row
struct Add {
  template <typename T>
  INSTSEG_INLINE static void run(T* INSTSEG_RESTRICT sum, const T* INSTSEG_RESTRICT row, T w, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      sum[i] += w * row[i];
    }
  }
};

// Softmax over the `bases` rows of `logits`, left unnormalised in place; `inverse` is one over its sum and
// `value` the blended row: the softmax times `crop`, summed over the bases.
struct Blend {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT logits,
      T* INSTSEG_RESTRICT inverse,
      T* INSTSEG_RESTRICT value,
      const T* INSTSEG_RESTRICT crop,
      int bases,
      int64_t size) {
    constexpr int block = 32 / sizeof(T);
    int64_t i = 0;
    for (; i + block <= size; i += block) {
      columns<T, block>(logits + i, inverse + i, value + i, crop + i, bases, size);
    }
    for (; i < size; ++i) {
      columns<T, 1>(logits + i, inverse + i, value + i, crop + i, bases, size);
    }
  }

 private:
  // `width` columns at once, few enough for their maxima and sums to stay in registers.
  template <typename T, int width>
  INSTSEG_INLINE static void columns(
      T* INSTSEG_RESTRICT logits,
      T* INSTSEG_RESTRICT inverse,
      T* INSTSEG_RESTRICT value,
      const T* INSTSEG_RESTRICT crop,
      int bases,
      int64_t size) {
    T top[width], sum[width], dot[width];
    for (int j = 0; j < width; ++j) {
      top[j] = logits[j];
      sum[j] = dot[j] = T(0);
    }
    for (int k = 1; k < bases; ++k) {
      for (int j = 0; j < width; ++j) {
        top[j] = logits[k * size + j] > top[j] ? logits[k * size + j] : top[j];
      }
    }
    for (int k = 0; k < bases; ++k) {
      for (int j = 0; j < width; ++j) {
        const T weight = exp_of_nonpositive(logits[k * size + j] - top[j]);
        logits[k * size + j] = weight;
        sum[j] += weight;
        dot[j] += weight * crop[k * size + j];
      }
    }
    for (int j = 0; j < width; ++j) {
      inverse[j] = T(1) / sum[j];
      value[j] = dot[j] * inverse[j];
    }
  }
};

// From what Blend left: crop_grad += softmax * grad, and `weights` becomes the gradient of the logits.
struct BlendBackward {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT weights,
      T* INSTSEG_RESTRICT crop_grad,
      const T* INSTSEG_RESTRICT inverse,
      const T* INSTSEG_RESTRICT value,
      const T* INSTSEG_RESTRICT crop,
      const T* INSTSEG_RESTRICT grad,
      int bases,
      int64_t size) {
    for (int k = 0; k < bases; ++k) {
      for (int64_t i = 0; i < size; ++i) {
        const int64_t at = k * size + i;
        const T share = weights[at] * inverse[i] * grad[i];
        crop_grad[at] += share;
        weights[at] = share * (crop[at] - value[i]);
      }
    }
  }
};

} // namespace instseg_d2
