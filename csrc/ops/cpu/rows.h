// Arithmetic on rows: plain loops over contiguous values that compilers turn into vector code. On x86-64 each is
// compiled twice, for any such machine and for those with AVX2 and FMA, and `rows<Operation>(...)` takes what the
// machine at hand has: one build serves both.
#pragma once

#if defined(_MSC_VER)
#define INSTSEG_INLINE __forceinline
#define INSTSEG_RESTRICT __restrict
#else
#define INSTSEG_INLINE inline __attribute__((always_inline))
#define INSTSEG_RESTRICT __restrict__
#endif

namespace instseg_d2 {

#if defined(__GNUC__) && defined(__x86_64__)
template <typename Operation, typename... Arguments>
__attribute__((target("avx2,fma"))) void wide_rows(Arguments... arguments) {
  Operation::run(arguments...);
}

template <typename Operation, typename... Arguments>
void rows(Arguments... arguments) {
  static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (wide) {
    wide_rows<Operation>(arguments...);
  } else {
    Operation::run(arguments...);
  }
}
#else
template <typename Operation, typename... Arguments>
void rows(Arguments... arguments) {
  Operation::run(arguments...);
}
#endif

} // namespace instseg_d2
