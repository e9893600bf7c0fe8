// Every CUDA thread is a thread, and some blocks run at once: for ThreadSanitizer, which sees races in global memory.
// Shared memory is plain here; what scheduler.h and shared.h report is not looked for.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "cuda_types.h"

inline thread_local uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

constexpr int kBlocksAtOnce = 4;
inline int guards = 0;
inline void check_launch() {}
inline void check_bounds(unsigned, unsigned = 0, unsigned = 0) {}

inline std::string place() {
  return "";
}

// The threads that wait for each other: of a block, or the lanes of a mask.
struct Meeting {
  int arrived = 0;
  uint64_t generation = 0;
  uint64_t values[32] = {}, result[32] = {};
};

struct Block {
  std::mutex mutex;
  std::condition_variable condition;
  std::map<std::pair<int, unsigned>, Meeting> meetings; // by warp and mask
  std::map<const void*, std::unique_ptr<uint64_t[]>> memory; // shared, by what declares it
  size_t dynamic_bytes = 0;
  std::exception_ptr error;
};

inline thread_local Block* block;
inline thread_local int thread_index;
inline thread_local uint64_t thread_seen[32];

inline const uint64_t* own_seen() {
  return thread_seen;
}
inline int own_index() {
  return thread_index;
}

inline void wait_for(const char*, int, unsigned mask, uint64_t value) {
  std::unique_lock<std::mutex> lock(block->mutex);
  const int warp = mask == 0 ? -1 : thread_index / warpSize, lane = mask == 0 ? 0 : thread_index % warpSize;
  const int expected = mask == 0 ? static_cast<int>(blockDim.x * blockDim.y * blockDim.z) : __popc(mask);
  Meeting& meeting = block->meetings[{warp, mask}];
  meeting.values[lane] = mask == 0 ? meeting.values[0] + (value != 0) : value;
  if (++meeting.arrived == expected) {
    std::copy(meeting.values, meeting.values + 32, meeting.result);
    std::fill(meeting.values, meeting.values + 32, 0);
    meeting.arrived = 0;
    ++meeting.generation;
    block->condition.notify_all();
  } else {
    const uint64_t before = meeting.generation;
    block->condition.wait(lock, [&] { return meeting.generation != before || block->error; });
    if (meeting.generation == before) {
      throw Fault("CUDA emulation: another thread failed");
    }
  }
  std::copy(meeting.result, meeting.result + 32, thread_seen);
}

inline void* shared_memory(const void* declared, size_t bytes) {
  const std::lock_guard<std::mutex> lock(block->mutex);
  auto& memory = block->memory[declared];
  if (!memory) {
    memory = std::make_unique<uint64_t[]>((bytes + 7) / 8);
  }
  return memory.get();
}

template <typename Array>
struct Shared {
  Array& enter(const char*) {
    return *static_cast<Array*>(shared_memory(this, sizeof(Array)));
  }
};

template <typename T>
struct Pointer {
  T* at;
  operator T*() const {
    return at;
  }
  Pointer operator+(int64_t i) const {
    return {at + i};
  }
  template <typename U>
  Pointer<U> cast() const {
    return {reinterpret_cast<U*>(at)};
  }
};

template <typename T>
Pointer<T> dynamic_shared(const char*) {
  static const char declared = 0;
  return {static_cast<T*>(shared_memory(&declared, block->dynamic_bytes))};
}

template <typename To>
struct Access;
template <typename T>
struct Access<T*> {
  using Value = T;
  static T change(T* to, T (*how)(T, T), T value) {
    T before, after;
    __atomic_load(to, &before, __ATOMIC_RELAXED);
    do {
      after = how(before, value);
    } while (!__atomic_compare_exchange(to, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
  }
};

template <typename... Parameters>
void launch(
    const char*, const dim3& grid, const dim3& threads, size_t shared_bytes, cudaStream_t,
    void (*kernel)(Parameters...), typename Identity<Parameters>::type... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  gridDim = grid;
  blockDim = threads;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const int count = static_cast<int>(threads.x * threads.y * threads.z);
  for (uint64_t first = 0; first < blocks; first += kBlocksAtOnce) {
    const uint64_t last = std::min<uint64_t>(first + kBlocksAtOnce, blocks);
    std::vector<std::unique_ptr<Block>> running;
    std::vector<std::thread> all;
    for (uint64_t b = first; b < last; ++b) {
      running.push_back(std::make_unique<Block>());
      Block* const own = running.back().get();
      own->dynamic_bytes = shared_bytes;
      for (int t = 0; t < count; ++t) {
        all.emplace_back([&, own, b, t] {
          block = own;
          thread_index = t;
          const unsigned row = t / threads.x;
          threadIdx = {t % threads.x, row % threads.y, row / threads.y};
          const uint64_t line = b / grid.x;
          blockIdx = {
              static_cast<unsigned>(b % grid.x), static_cast<unsigned>(line % grid.y),
              static_cast<unsigned>(line / grid.y)};
          try {
            std::apply(kernel, values);
          } catch (...) {
            const std::lock_guard<std::mutex> lock(own->mutex);
            own->error = own->error ? own->error : std::current_exception();
            own->condition.notify_all();
          }
        });
      }
    }
    for (std::thread& thread : all) {
      thread.join();
    }
    for (const auto& own : running) {
      if (own->error) {
        std::rethrow_exception(own->error);
      }
    }
  }
}

} // namespace emu
