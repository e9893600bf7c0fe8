// Barriers, votes, shuffles and atomic operations, over emu::wait_for and emu::Access.
#pragma once

#include "cuda_types.h"

namespace emu {

// The value that `lane` brought to the wait that just ended.
template <typename T>
T seen(int lane) {
  T value;
  std::memcpy(&value, &own_seen()[lane], sizeof(T));
  return value;
}

inline int lane_id() {
  return own_index() % warpSize;
}

template <typename T>
void meet(const char* what, int line, unsigned mask, T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  if (mask == 0 || !(mask >> lane_id() & 1)) {
    fail(what, " in line ", line, " by a thread that is not in its mask");
  }
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  wait_for(what, line, mask, bits);
}

inline unsigned vote(const char* what, int line, unsigned mask, bool value) {
  meet(what, line, mask, uint64_t{value});
  unsigned result = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    result |= (mask >> lane & 1) && own_seen()[lane] != 0 ? 1u << lane : 0;
  }
  return result;
}

// The value of lane `from`, or where that lies outside the lane's part of the warp, its own.
template <typename T>
T shuffle(const char* what, int line, unsigned mask, T value, int from, int width) {
  meet(what, line, mask, value);
  const int first = lane_id() / width * width;
  from = from < first || from >= first + width ? lane_id() : from;
  if (!(mask >> from & 1)) {
    fail(what, " in line ", line, " reads lane ", from, ", which is not in its mask");
  }
  return seen<T>(from);
}

template <typename T>
T reduce(const char* what, int line, unsigned mask, T value, T (*how)(T, T)) {
  meet(what, line, mask, value);
  T result{};
  bool first = true;
  for (int lane = 0; lane < warpSize; ++lane) {
    if (mask >> lane & 1) {
      result = first ? seen<T>(lane) : how(result, seen<T>(lane));
      first = false;
    }
  }
  return result;
}

inline uint64_t barrier(const char* what, int line, bool value = false) {
  wait_for(what, line, 0, value);
  return own_seen()[0];
}

template <typename To>
using Value = typename Access<To>::Value;

template <typename To, typename T>
Value<To> change(const To& to, T value, Value<To> (*how)(Value<To>, Value<To>)) {
  return Access<To>::change(to, how, static_cast<Value<To>>(value));
}

} // namespace emu

#define __syncthreads() ((void)::emu::barrier("__syncthreads", __LINE__))
#define __syncthreads_count(p) static_cast<int>(::emu::barrier("__syncthreads_count", __LINE__, (p) != 0))
#define __syncthreads_or(p) static_cast<int>(::emu::barrier("__syncthreads_or", __LINE__, (p) != 0) != 0)
#define __syncthreads_and(p) static_cast<int>(::emu::barrier("__syncthreads_and", __LINE__, (p) == 0) == 0)
#define __syncwarp(...) ::emu::meet("__syncwarp", __LINE__, ::emu::mask_or_all(__VA_ARGS__), uint64_t{0})
#define __ballot_sync(mask, p) ::emu::vote("__ballot_sync", __LINE__, mask, (p) != 0)
#define __any_sync(mask, p) static_cast<int>(::emu::vote("__any_sync", __LINE__, mask, (p) != 0) != 0)
#define __all_sync(mask, p) static_cast<int>(::emu::vote("__all_sync", __LINE__, mask, (p) == 0) == 0)
#define __shfl_sync(...) ::emu::shuffle_index(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) ::emu::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) ::emu::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) ::emu::shuffle_xor(__LINE__, __VA_ARGS__)
#define __reduce_add_sync(...) ::emu::reduce_add(__LINE__, __VA_ARGS__)
#define __reduce_min_sync(...) ::emu::reduce_min(__LINE__, __VA_ARGS__)
#define __reduce_max_sync(...) ::emu::reduce_max(__LINE__, __VA_ARGS__)
#define __reduce_or_sync(...) ::emu::reduce_or(__LINE__, __VA_ARGS__)

namespace emu {

inline unsigned mask_or_all(unsigned mask = 0xffffffffu) {
  return mask;
}

template <typename T>
T shuffle_index(int line, unsigned mask, T value, int from, int width = warpSize) {
  from = lane_id() / width * width + (from & (width - 1));
  return shuffle("__shfl_sync", line, mask, value, from, width);
}
template <typename T>
T shuffle_up(int line, unsigned mask, T value, unsigned by, int width = warpSize) {
  return shuffle("__shfl_up_sync", line, mask, value, lane_id() - static_cast<int>(by), width);
}
template <typename T>
T shuffle_down(int line, unsigned mask, T value, unsigned by, int width = warpSize) {
  return shuffle("__shfl_down_sync", line, mask, value, lane_id() + static_cast<int>(by), width);
}
template <typename T>
T shuffle_xor(int line, unsigned mask, T value, int with, int width = warpSize) {
  return shuffle("__shfl_xor_sync", line, mask, value, lane_id() ^ with, width);
}

#define EMU_REDUCE(name, expression)                                                                       \
  template <typename T>                                                                                    \
  T reduce_##name(int line, unsigned mask, T value) {                                                      \
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);                                                \
    return reduce<T>("__reduce_" #name "_sync", line, mask, value, [](T a, T b) -> T { return expression; }); \
  }
EMU_REDUCE(add, a + b)
EMU_REDUCE(min, b < a ? b : a)
EMU_REDUCE(max, a < b ? b : a)
EMU_REDUCE(or, a | b)
#undef EMU_REDUCE

} // namespace emu

#define EMU_ATOMIC(name, expression)                                                               \
  template <typename To, typename T>                                                               \
  emu::Value<To> name(const To& to, T value) {                                                     \
    using V = emu::Value<To>;                                                                      \
    return emu::change(to, value, +[](V a, V b) -> V { return expression; });                      \
  }
EMU_ATOMIC(atomicAdd, a + b)
EMU_ATOMIC(atomicSub, a - b)
EMU_ATOMIC(atomicMin, b < a ? b : a)
EMU_ATOMIC(atomicMax, a < b ? b : a)
EMU_ATOMIC(atomicOr, a | b)
EMU_ATOMIC(atomicAnd, a & b)
EMU_ATOMIC(atomicXor, a ^ b)
EMU_ATOMIC(atomicExch, (static_cast<void>(a), b))
#undef EMU_ATOMIC

template <typename To, typename T>
emu::Value<To> atomicCAS(const To& to, T expected, T value) {
  static thread_local T wanted;
  wanted = expected;
  return emu::change(to, value, +[](T before, T after) -> T { return before == wanted ? after : before; });
}
