// Products of bfloat16 matrices with the instructions of AVX-512 for them: sums in float32, pairs of products at once.
#pragma once

#include <cstdint>
#include <cstring>

#include "rows.h"

#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define INSTSEG_WITH_BFLOAT16
#include <immintrin.h>
#endif

namespace instseg_d2 {

constexpr int kPairPanel = 32; // columns of a panel: two registers

#ifdef INSTSEG_WITH_BFLOAT16

#if defined(__clang__)
#define INSTSEG_BFLOAT16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#else
#define INSTSEG_BFLOAT16_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,prefer-vector-width=512")))
#endif

inline bool multiplies_bfloat16() {
  static const bool found = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl");
  return found;
}

// `rows` for machines with these instructions.
template <typename Operation, typename... Arguments>
INSTSEG_BFLOAT16_TARGET void widest_rows(Arguments... arguments) {
  Operation::run(arguments...);
}

// Copies (inner, columns), both even, into panels (columns / kPairPanel, inner / 2 + 1, kPairPanel, 2), so that two
// numbers that are summed lie side by side. The last panel is filled with 0.
INSTSEG_BFLOAT16_TARGET inline void pack_pairs(uint16_t* to, const uint16_t* from, int inner, int columns) {
  const int64_t panel_size = static_cast<int64_t>(inner / 2 + 1) * 2 * kPairPanel;
  for (int k = 0; k < inner; k += 2, from += 2 * columns, to += 2 * kPairPanel) {
    uint16_t* panel = to;
    int first = 0;
    for (; first + kPairPanel <= columns; first += kPairPanel, panel += panel_size) {
      for (int j = 0; j < kPairPanel; ++j) {
        panel[2 * j] = from[first + j];
        panel[2 * j + 1] = from[columns + first + j];
      }
    }
    for (int j = 0; first < columns && j < kPairPanel; ++j) {
      const bool inside = first + j < columns;
      panel[2 * j] = inside ? from[first + j] : 0;
      panel[2 * j + 1] = inside ? from[columns + first + j] : 0;
    }
  }
}

template <int rows>
INSTSEG_BFLOAT16_TARGET inline void multiply_pairs(
    float* out, const uint16_t* left, const uint16_t* right, int inner, int stride) {
  __m512 sums[rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  }
  for (int k = 0; k < inner; k += 2, right += 2 * kPairPanel) {
    const __m512bh low = reinterpret_cast<__m512bh>(_mm512_loadu_si512(right));
    const __m512bh high = reinterpret_cast<__m512bh>(_mm512_loadu_si512(right + kPairPanel));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      int32_t pair;
      std::memcpy(&pair, left + static_cast<int64_t>(r) * inner + k, sizeof pair);
      const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, low);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, high);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    _mm512_storeu_ps(out + static_cast<int64_t>(r) * stride, sums[r][0]);
    _mm512_storeu_ps(out + static_cast<int64_t>(r) * stride + 16, sums[r][1]);
  }
}

// out (rows, panels * kPairPanel) = left (rows, inner) times the panels of pack_pairs.
inline void multiply_bfloat16(
    float* out, const uint16_t* left, const uint16_t* panels, int rows, int inner, int count) {
  using Block = void (*)(float*, const uint16_t*, const uint16_t*, int, int);
  constexpr Block blocks[] = {multiply_pairs<1>, multiply_pairs<2>, multiply_pairs<3>, multiply_pairs<4>,
                              multiply_pairs<5>, multiply_pairs<6>, multiply_pairs<7>, multiply_pairs<8>};
  const int number = (rows + 7) / 8, stride = count * kPairPanel;
  for (int panel = 0; panel < count; ++panel) {
    const uint16_t* right = panels + static_cast<int64_t>(panel) * (inner / 2 + 1) * 2 * kPairPanel;
    for (int block = 0, first = 0; block < number; ++block) {
      const int last = rows * (block + 1) / number; // blocks of nearly equal size
      blocks[last - first - 1](
          out + static_cast<int64_t>(first) * stride + panel * kPairPanel, left + static_cast<int64_t>(first) * inner,
          right, inner, stride);
      first = last;
    }
  }
}

#else

inline bool multiplies_bfloat16() {
  return false;
}

template <typename Operation, typename... Arguments>
void widest_rows(Arguments...) {}

inline void pack_pairs(uint16_t*, const uint16_t*, int, int) {}

inline void multiply_bfloat16(float*, const uint16_t*, const uint16_t*, int, int, int) {}

#endif

} // namespace instseg_d2
