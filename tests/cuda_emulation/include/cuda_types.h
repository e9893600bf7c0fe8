// CUDA's words and types for a host compiler; scheduler.h (or threads.h) runs threads, shared.h has shared memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict

namespace emu {

// A fault of the kernel or of its launch; never an error that a user may cause.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string place(); // the kernel, block and thread that run

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Fault(text("CUDA emulation: ", place(), parts...));
}

template <typename T>
unsigned in_32_bits(T value) {
  static_assert(std::is_integral_v<T>);
  if (value < 0 || static_cast<uint64_t>(value) > 0xffffffffu) {
    fail("a grid or block of ", value, " in one direction");
  }
  return static_cast<unsigned>(value);
}

// A parameter that takes no part in finding out types.
template <typename T>
struct Identity {
  using type = T;
};

} // namespace emu

struct uint3 {
  unsigned x, y, z;
};

struct dim3 : uint3 {
  dim3() : uint3{1, 1, 1} {}
  template <typename X, typename Y = unsigned, typename Z = unsigned>
  dim3(X x, Y y = 1, Z z = 1) : uint3{emu::in_32_bits(x), emu::in_32_bits(y), emu::in_32_bits(z)} {}
};

#define EMU_VECTOR(T, name)                                              \
  struct alignas(2 * sizeof(T)) name##2 {                                \
    T x, y;                                                              \
  };                                                                     \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 {           \
    T x, y, z, w;                                                        \
  };                                                                     \
  inline name##2 make_##name##2(T x, T y) {                              \
    return {x, y};                                                       \
  }                                                                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) {                    \
    return {x, y, z, w};                                                 \
  }
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)

#define EMU_MIN_MAX(T)          \
  inline T min(T a, T b) {      \
    return b < a ? b : a;       \
  }                             \
  inline T max(T a, T b) {      \
    return a < b ? b : a;       \
  }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
// Those of floats return the number where one of the two is NaN.
inline float min(float a, float b) {
  return ::fminf(a, b);
}
inline float max(float a, float b) {
  return ::fmaxf(a, b);
}
inline double min(double a, double b) {
  return ::fmin(a, b);
}
inline double max(double a, double b) {
  return ::fmax(a, b);
}

inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __ffsll(long long bits) {
  return __builtin_ffsll(bits);
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __popcll(unsigned long long bits) {
  return __builtin_popcountll(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline float __expf(float x) {
  return ::expf(x);
}
inline float __logf(float x) {
  return ::logf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float x) {
  return 1 / x;
}
inline float __fmaf_rn(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
inline float rsqrtf(float x) {
  return 1 / ::sqrtf(x);
}
inline float __saturatef(float x) {
  return x > 0 ? ::fminf(x, 1) : 0;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

using cudaStream_t = struct CUstream_st*;
