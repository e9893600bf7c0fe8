// The arithmetic of dynamic_attention on the CPU, for one query: float32 matrices, row by row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "row_math.h"

namespace instseg_d2 {

#if defined(__clang__)
#define INSTSEG_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define INSTSEG_UNROLL _Pragma("GCC unroll 8")
#else
#define INSTSEG_UNROLL
#endif

constexpr int kPanel = 16; // columns of a panel, the most that stay in registers for six rows

// Eight numbers: a type, not an array, stays in registers.
#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(32)));
#else
struct Lanes {
  float values[8];
};

inline Lanes operator*(Lanes x, const Lanes& y) {
  for (int i = 0; i < 8; ++i) {
    x.values[i] *= y.values[i];
  }
  return x;
}

inline Lanes operator*(float x, Lanes y) {
  for (float& value : y.values) {
    value *= x;
  }
  return y;
}

inline Lanes operator-(Lanes x, float y) {
  for (float& value : x.values) {
    value -= y;
  }
  return x;
}

inline Lanes& operator+=(Lanes& x, const Lanes& y) {
  for (int i = 0; i < 8; ++i) {
    x.values[i] += y.values[i];
  }
  return x;
}
#endif

INSTSEG_INLINE void load(Lanes& to, const float* from) {
  std::memcpy(&to, from, sizeof to);
}

INSTSEG_INLINE float widened(float x) {
  return x;
}

// bfloat16 is the upper half of a float32.
INSTSEG_INLINE float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INSTSEG_INLINE void narrow(float x, float& to) {
  to = x;
}

INSTSEG_INLINE void narrow(float x, uint16_t& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; // to nearest, ties to even
  to = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

// Copies (inner, columns) into panels (columns / kPanel, inner + 1, kPanel); the last is filled with 0. Reads in order
// of memory, because the matrices come from outside the cache. The row between panels keeps them from sharing the same
// few lines of the cache.
struct Pack {
  template <typename T>
  INSTSEG_INLINE static void run(float* INSTSEG_RESTRICT to, const T* INSTSEG_RESTRICT from, int inner, int columns) {
    for (int k = 0; k < inner; ++k, from += columns, to += kPanel) {
      float* panel = to;
      int first = 0;
      for (; first + kPanel <= columns; first += kPanel, panel += static_cast<int64_t>(inner + 1) * kPanel) {
        for (int j = 0; j < kPanel; ++j) {
          panel[j] = widened(from[first + j]);
        }
      }
      for (int j = 0; first < columns && j < kPanel; ++j) {
        panel[j] = first + j < columns ? widened(from[first + j]) : 0.f;
      }
    }
  }
};

struct Widen {
  INSTSEG_INLINE static void run(float* INSTSEG_RESTRICT to, const uint16_t* INSTSEG_RESTRICT from, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      to[i] = widened(from[i]);
    }
  }
};

// out (rows, panels * kPanel) = left (rows, inner) times the panels of Pack.
struct Multiply {
  INSTSEG_INLINE static void run(
      float* INSTSEG_RESTRICT out, const float* left, const float* panels, int rows, int inner, int count) {
    const int blocks = (rows + 5) / 6;
    for (int panel = 0; panel < count; ++panel) {
      const float* right = panels + static_cast<int64_t>(panel) * (inner + 1) * kPanel;
      for (int block = 0, first = 0; block < blocks; ++block) {
        const int last = rows * (block + 1) / blocks; // blocks of nearly equal size
        float* to = out + static_cast<int64_t>(first) * count * kPanel + panel * kPanel;
        const float* from = left + static_cast<int64_t>(first) * inner;
        switch (last - first) {
          case 6: multiply<6>(to, from, right, inner, count * kPanel); break;
          case 5: multiply<5>(to, from, right, inner, count * kPanel); break;
          case 4: multiply<4>(to, from, right, inner, count * kPanel); break;
          case 3: multiply<3>(to, from, right, inner, count * kPanel); break;
          case 2: multiply<2>(to, from, right, inner, count * kPanel); break;
          default: multiply<1>(to, from, right, inner, count * kPanel);
        }
        first = last;
      }
    }
  }

 private:
  template <int rows>
  INSTSEG_INLINE static void multiply(
      float* INSTSEG_RESTRICT out, const float* left, const float* right, int inner, int stride) {
    Lanes sums[rows][2] = {};
    for (int k = 0; k < inner; ++k) {
      Lanes low, high;
      load(low, right + k * kPanel);
      load(high, right + k * kPanel + 8);
      INSTSEG_UNROLL
      for (int r = 0; r < rows; ++r) {
        const float x = left[static_cast<int64_t>(r) * inner + k];
        sums[r][0] += x * low;
        sums[r][1] += x * high;
      }
    }
    INSTSEG_UNROLL
    for (int r = 0; r < rows; ++r) {
      std::memcpy(out + static_cast<int64_t>(r) * stride, sums[r], sizeof sums[r]);
    }
  }
};

// LayerNorm and ELU of each row of `from`, whose rows are `stride` apart.
struct NormElu {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT to,
      const float* INSTSEG_RESTRICT from,
      const float* INSTSEG_RESTRICT weight,
      const float* INSTSEG_RESTRICT bias,
      int rows,
      int size,
      int stride,
      float epsilon) {
    for (int row = 0; row < rows; ++row, from += stride, to += size) {
      const float mean = sum<false>(from, size, 0.f) / size;
      const float scale = 1.f / std::sqrt(sum<true>(from, size, mean) / size + epsilon);
      for (int i = 0; i < size; ++i) {
        const float x = (from[i] - mean) * scale * weight[i] + bias[i];
        const float negative = exp_of_nonpositive(x > 0.f ? 0.f : x) - 1.f;
        narrow(x > 0.f ? x : negative, to[i]);
      }
    }
  }

 private:
  // The sum of x, or of (x - mean)^2.
  template <bool squares>
  INSTSEG_INLINE static float sum(const float* INSTSEG_RESTRICT from, int size, float mean) {
    Lanes sums[4] = {};
    int i = 0;
    for (; i + 32 <= size; i += 32) {
      INSTSEG_UNROLL
      for (int j = 0; j < 4; ++j) {
        Lanes x;
        load(x, from + i + 8 * j);
        x = x - mean;
        sums[j] += squares ? x * x : x;
      }
    }
    float total = 0.f;
    for (; i < size; ++i) {
      const float x = from[i] - mean;
      total += squares ? x * x : x;
    }
    sums[0] += sums[1];
    sums[2] += sums[3];
    sums[0] += sums[2];
    float p[8];
    std::memcpy(p, sums, sizeof p);
    return total + (((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7])));
  }
};

} // namespace instseg_d2
