// Runs the threads of a block one after another. A fiber runs thread after thread; one that has to wait for others
// keeps its fiber, and the rest go on in another one. Threads and blocks come in an order that INSTSEG_EMULATION_SEED
// shuffles (0, the default: as they are numbered). INSTSEG_EMULATION_BLOCKS=ends runs the first two and the last two
// blocks along each axis only, for arguments whose other blocks would take hours.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

#include <numeric>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#include "cuda_types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

constexpr size_t kStack = 256 << 10, kSharedLimit = 48 << 10, kParameterLimit = 4096;

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  char* stack = nullptr;
  size_t size = 0;
  bool started = false;
  void* fake_stack = nullptr; // AddressSanitizer's
};

// What a thread waits for: all threads of its block (mask 0) or the lanes of a mask.
struct Wait {
  const char* what = nullptr;
  int line = 0;
  unsigned mask = 0;
  bool operator==(const Wait& other) const {
    return line == other.line && mask == other.mask && (what == other.what || !std::strcmp(what, other.what));
  }
};

struct Thread {
  enum { fresh, running, waiting, done } state = fresh;
  Wait wait;
  uint64_t value = 0; // it brings
  uint64_t seen[32]; // of the lanes, after a wait of the warp; [0] the number of true values, after one of the block
  uint32_t clock[32]; // the time of each lane that this one has seen by __syncwarp; its own at its own place
  Fiber* fiber = nullptr;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<int> order;
  size_t begun = 0; // of the order
  std::deque<int> ready; // to go on after a wait
  int at = -1; // the running thread
  int at_barrier = 0;
  uint64_t phase = 0, first_phase = 0; // barriers so far, of all blocks; those before this block
  size_t shared_bytes = 0, dynamic_bytes = 0;
  const char* kernel = nullptr;
  std::function<void()> call;
  std::exception_ptr error;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Fiber* fiber = nullptr; // the running one
  ucontext_t home_context;
  jmp_buf home_jump;
  void* home_fake_stack = nullptr;
  const void* home_stack = nullptr;
  size_t home_size = 0;
  std::mt19937 random{0};
  uint64_t seed = 0;
  bool unchecked = false; // a launch without C10_CUDA_KERNEL_LAUNCH_CHECK so far
  std::mutex mutex;

  Thread& thread() {
    return threads[at];
  }
};
inline Block block;
inline int guards = 0; // CUDAGuards alive

inline std::string place() {
  if (block.kernel == nullptr) {
    return "";
  }
  const std::string kernel = text(block.kernel, ", block (", blockIdx.x, ", ", blockIdx.y, ", ", blockIdx.z, ")");
  return block.at < 0 ? kernel + ": " : text(kernel, ", thread ", block.at, ": ");
}

// --- fibers. Jumps are quicker than swapcontext, which asks the kernel for the signal mask each time; only
// AddressSanitizer wants to be told of each switch.
inline void fiber_main();

#if defined(__SANITIZE_ADDRESS__)
inline void enter(Fiber& fiber) {
  block.fiber = &fiber;
  if (!fiber.started) {
    fiber.started = true;
    __asan_unpoison_memory_region(fiber.stack, kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = fiber.size;
    fiber.fake_stack = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  __sanitizer_start_switch_fiber(&block.home_fake_stack, fiber.stack, fiber.size);
  swapcontext(&block.home_context, &fiber.context);
  __sanitizer_finish_switch_fiber(block.home_fake_stack, nullptr, nullptr);
}
inline void leave(Fiber& fiber) {
  __sanitizer_start_switch_fiber(&fiber.fake_stack, block.home_stack, block.home_size);
  swapcontext(&fiber.context, &block.home_context);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &block.home_stack, &block.home_size);
}
inline void entered() {
  __sanitizer_finish_switch_fiber(nullptr, &block.home_stack, &block.home_size);
}
#else
__attribute__((noinline)) inline void enter(Fiber& fiber) {
  block.fiber = &fiber;
  if (_setjmp(block.home_jump) != 0) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.jump, 1);
  }
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.size;
  makecontext(&fiber.context, fiber_main, 0);
  setcontext(&fiber.context);
}
__attribute__((noinline)) inline void leave(Fiber& fiber) {
  if (_setjmp(fiber.jump) == 0) {
    _longjmp(block.home_jump, 1);
  }
}
inline void entered() {}
#endif

inline Fiber* idle_fiber() {
  if (block.idle.empty()) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = static_cast<char*>(
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    mprotect(fiber->stack, 4096, PROT_NONE); // a stack that overflows ends the program
    // Stacks that begin at different offsets do not share the lines of the cache.
    fiber->size = kStack - block.fibers.size() % 64 * 832;
    block.idle.push_back(fiber.get());
    block.fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = block.idle.back();
  block.idle.pop_back();
  return fiber;
}

inline void become(int thread) {
  block.at = thread;
  block.threads[thread].state = Thread::running;
  const unsigned row = thread / blockDim.x;
  threadIdx = {thread % blockDim.x, row % blockDim.y, row / blockDim.y};
}

inline void run_fresh_threads() {
  while (block.begun < block.order.size() && !block.error) {
    become(block.order[block.begun++]);
    std::exception_ptr error;
    try {
      block.call();
    } catch (...) {
      error = std::current_exception();
    }
    if (error) {
      block.error = error;
    }
    block.thread().state = Thread::done;
    block.at = -1;
  }
}

inline void fiber_main() {
  entered();
  for (;;) {
    run_fresh_threads();
    Fiber* self = block.fiber;
    block.idle.push_back(self);
    leave(*self);
  }
}

// --- waiting
inline void make_ready(int thread) {
  block.ready.push_back(thread);
}

inline void complete_block_wait() {
  uint64_t count = 0;
  for (const Thread& thread : block.threads) {
    if (!(thread.wait == block.thread().wait)) {
      return; // found as a deadlock
    }
    count += thread.value != 0;
  }
  ++block.phase;
  block.at_barrier = 0;
  for (size_t t = 0; t < block.threads.size(); ++t) {
    block.threads[t].seen[0] = count;
    make_ready(static_cast<int>(t));
  }
}

inline void complete_warp_wait(Wait wait) {
  const int first = block.at / warpSize * warpSize;
  for (int lane = warpSize - 1; lane >= 0; --lane) { // the last to come, mostly, first
    if (wait.mask >> lane & 1) {
      if (first + lane >= static_cast<int>(block.threads.size())) {
        return;
      }
      const Thread& thread = block.threads[first + lane];
      if (thread.state != Thread::waiting || !(thread.wait == wait)) {
        return;
      }
    }
  }
  const bool orders_memory = !std::strcmp(wait.what, "__syncwarp");
  uint64_t values[32] = {};
  uint32_t clock[32] = {};
  for (int lane = 0; lane < warpSize; ++lane) {
    if (wait.mask >> lane & 1) {
      const Thread& thread = block.threads[first + lane];
      values[lane] = thread.value;
      for (int other = 0; orders_memory && other < warpSize; ++other) {
        clock[other] = std::max(clock[other], thread.clock[other]);
      }
    }
  }
  for (int lane = 0; lane < warpSize; ++lane) {
    if (wait.mask >> lane & 1) {
      Thread& thread = block.threads[first + lane];
      std::memcpy(thread.seen, values, sizeof(values));
      if (orders_memory) {
        std::memcpy(thread.clock, clock, sizeof(clock));
        ++thread.clock[lane];
      }
      thread.wait = {"", 0, 0};
      make_ready(first + lane);
    }
  }
}

inline void wait_for(const char* what, int line, unsigned mask, uint64_t value) {
  const int thread = block.at;
  Thread& self = block.thread();
  self.wait = {what, line, mask};
  self.value = value;
  self.state = Thread::waiting;
  if (mask == 0) {
    if (++block.at_barrier == static_cast<int>(block.threads.size())) {
      complete_block_wait();
    }
  } else {
    complete_warp_wait(self.wait);
  }
  self.fiber = block.fiber;
  leave(*self.fiber);
  become(thread);
}

[[noreturn]] inline void report_deadlock() {
  size_t returned = 0;
  std::string waits;
  for (const Thread& thread : block.threads) {
    returned += thread.state == Thread::done;
    if (thread.state == Thread::waiting) {
      const std::string wait = thread.wait.mask == 0
          ? text(thread.wait.what, " in line ", thread.wait.line)
          : text(thread.wait.what, " in line ", thread.wait.line, " of lanes ", std::hex, thread.wait.mask);
      waits += waits.find(wait) == std::string::npos ? (waits.empty() ? wait : ", " + wait) : "";
    }
  }
  fail("threads wait at different places, for ever: ", waits, "; ", returned, " have returned");
}

inline void run_block() {
  const size_t count = block.threads.size();
  for (size_t t = 0; t < count; ++t) {
    Thread& thread = block.threads[t];
    thread.state = Thread::fresh;
    std::memset(thread.clock, 0, sizeof(thread.clock));
    thread.clock[t % warpSize] = 1;
  }
  block.begun = 0;
  block.at_barrier = 0;
  block.ready.clear();
  block.first_phase = ++block.phase;
  block.shared_bytes = block.dynamic_bytes;
  if (block.seed != 0) {
    std::shuffle(block.order.begin(), block.order.end(), block.random);
  }
  while (!block.error) {
    const bool fresh = block.begun < count;
    if (fresh && (block.ready.empty() || block.seed == 0 || block.random() % 2)) {
      enter(*idle_fiber());
    } else if (!block.ready.empty()) {
      const size_t pick = block.seed == 0 ? 0 : block.random() % block.ready.size();
      std::swap(block.ready[pick], block.ready.front());
      const int thread = block.ready.front();
      block.ready.pop_front();
      enter(*block.threads[thread].fiber);
    } else {
      break;
    }
    block.at = -1;
  }
  const auto waits = [](const Thread& thread) { return thread.state == Thread::waiting; };
  if (!block.error && std::any_of(block.threads.begin(), block.threads.end(), waits)) {
    try {
      report_deadlock();
    } catch (...) {
      block.error = std::current_exception();
    }
  }
  if (block.error) { // fibers that wait are used anew
    block.idle.clear();
    for (const auto& fiber : block.fibers) {
      fiber->started = false;
      block.idle.push_back(fiber.get());
    }
    std::rethrow_exception(std::exchange(block.error, nullptr));
  }
}

// --- launches
inline void check_limits(const dim3& grid, const dim3& threads, size_t shared_bytes) {
  const auto within = [](const dim3& size, uint64_t x, uint64_t y, uint64_t z) {
    return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= x && size.y <= y && size.z <= z;
  };
  if (!within(grid, 0x7fffffff, 65535, 65535)) {
    fail("a grid of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  }
  if (!within(threads, 1024, 1024, 64) || uint64_t{threads.x} * threads.y * threads.z > 1024) {
    fail("a block of ", threads.x, " x ", threads.y, " x ", threads.z, " threads");
  }
  if (shared_bytes > kSharedLimit) {
    fail("a launch with ", shared_bytes, " bytes of shared memory");
  }
  if (guards == 0) {
    fail("a launch without a CUDAGuard");
  }
  if (block.unchecked) {
    fail("a launch after one without C10_CUDA_KERNEL_LAUNCH_CHECK");
  }
}

inline void run_grid(const dim3& grid, const dim3& threads) {
  const char* seed = std::getenv("INSTSEG_EMULATION_SEED");
  block.seed = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
  block.random.seed(static_cast<uint32_t>(block.seed));
  gridDim = grid;
  blockDim = threads;
  block.threads.resize(size_t{threads.x} * threads.y * threads.z);
  block.order.resize(block.threads.size());
  std::iota(block.order.begin(), block.order.end(), 0);
  const char* part = std::getenv("INSTSEG_EMULATION_BLOCKS");
  const bool ends = part != nullptr && !std::strcmp(part, "ends");
  const auto places = [&](unsigned count) { // along an axis; "ends" are the first two and the last two
    std::vector<unsigned> result;
    for (unsigned i = 0; i < count; i = ends && count > 4 && i == 1 ? count - 2 : i + 1) {
      result.push_back(i);
    }
    return result;
  };
  const auto columns = places(grid.x), rows = places(grid.y), layers = places(grid.z);
  std::vector<uint3> blocks;
  for (const unsigned z : layers) {
    for (const unsigned y : rows) {
      for (const unsigned x : columns) {
        blocks.push_back({x, y, z});
      }
    }
  }
  if (block.seed != 0) {
    std::shuffle(blocks.begin(), blocks.end(), block.random);
  }
  for (const uint3& at : blocks) {
    blockIdx = at;
    run_block();
  }
}

// kernel<<<grid, threads, shared_bytes, stream>>>(arguments)
template <typename... Parameters>
void launch(
    const char* name, const dim3& grid, const dim3& threads, size_t shared_bytes, cudaStream_t,
    void (*kernel)(Parameters...), typename Identity<Parameters>::type... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kParameterLimit, "too many bytes of arguments");
  const std::lock_guard<std::mutex> lock(block.mutex);
  struct Name {
    explicit Name(const char* name) {
      block.kernel = name;
    }
    ~Name() {
      block.kernel = nullptr;
    }
  } named(name);
  check_limits(grid, threads, shared_bytes);
  const std::tuple<Parameters...> values(arguments...);
  block.call = [&] { std::apply(kernel, values); };
  block.dynamic_bytes = shared_bytes;
  block.unchecked = true;
  try {
    run_grid(grid, threads);
  } catch (...) {
    block.unchecked = false;
    throw;
  }
}

inline void check_launch() {
  block.unchecked = false;
}

// What the running thread got of its last wait, and its place in the block.
inline const uint64_t* own_seen() {
  return block.thread().seen;
}
inline int own_index() {
  return block.at;
}

// Atomic operations: no other thread runs.
template <typename To>
struct Access;
template <typename T>
struct Access<T*> {
  using Value = T;
  static T change(T* to, T (*how)(T, T), T value) {
    const T before = *to;
    *to = how(before, value);
    return before;
  }
};

inline void check_bounds(unsigned limit, unsigned = 0, unsigned = 0) {
  if (block.threads.size() > limit) {
    fail("a block of ", block.threads.size(), " threads, above its __launch_bounds__ of ", limit);
  }
}

} // namespace emu
