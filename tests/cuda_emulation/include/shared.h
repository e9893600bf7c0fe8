// Shared memory that knows who wrote and read each element: races, values that nobody wrote and indices outside are
// faults. Threads are in order after a barrier, lanes of a warp also after __syncwarp; ballots order nothing.
#pragma once

#include "scheduler.h"

namespace emu {

// The last accesses to an element; phases are those of the block's barriers, times those of Thread::clock.
struct Cell {
  uint64_t written_in, read_in;
  uint32_t write_time, read_time;
  uint32_t readers; // lanes of the warp `reading`
  int16_t writer, reading;
  bool several; // warps read it
  bool atomic; // the last write was
};

struct Memory {
  const char* name;
  Cell* cells; // one for each `grain` bytes
  unsigned char* data;
  size_t size, grain;
  uint64_t block; // that counted its bytes

  void enter(const char* its_name, bool dynamic) {
    if (block != emu::block.first_phase) {
      name = its_name;
      block = emu::block.first_phase;
      emu::block.shared_bytes += dynamic ? 0 : size;
      if (emu::block.shared_bytes > kSharedLimit) {
        fail(emu::block.shared_bytes, " bytes of shared memory with ", name);
      }
    }
  }

  Cell& cell(const void* at) const {
    return cells[(static_cast<const unsigned char*>(at) - data) / grain];
  }

  [[noreturn]] void fail_at(const void* at, const std::string& what) const {
    fail(name, " at ", static_cast<const unsigned char*>(at) - data, " of ", size, " bytes: ", what);
  }

  static bool follows(int other, uint32_t time) {
    return other == emu::block.at ||
        (other / warpSize == emu::block.at / warpSize && emu::block.thread().clock[other % warpSize] >= time);
  }

  // A read, a write, or for an atomic operation both.
  void read(const void* at, bool atomic = false) const {
    Cell& c = cell(at);
    if (c.written_in < emu::block.first_phase) {
      fail_at(at, "nobody wrote what is read");
    }
    if (c.written_in == emu::block.phase && !(atomic && c.atomic) && !follows(c.writer, c.write_time)) {
      fail_at(at, text("a race, read while thread ", c.writer, " writes"));
    }
    if (atomic) {
      return; // the write that comes with it is noted
    }
    const int warp = emu::block.at / warpSize, lane = emu::block.at % warpSize;
    if (c.read_in != emu::block.phase) {
      c.read_in = emu::block.phase;
      c.reading = static_cast<int16_t>(warp);
      c.readers = 0;
      c.read_time = 0;
      c.several = false;
    }
    c.several |= c.reading != warp;
    c.readers |= c.reading == warp ? 1u << lane : 0;
    c.read_time = std::max(c.read_time, emu::block.thread().clock[lane]);
  }

  void write(const void* at, bool atomic = false) const {
    Cell& c = cell(at);
    const int self = emu::block.at, lane = self % warpSize;
    if (c.written_in == emu::block.phase && !(atomic && c.atomic) && !follows(c.writer, c.write_time)) {
      fail_at(at, text("a race, written while thread ", c.writer, " writes"));
    }
    if (c.read_in == emu::block.phase) {
      bool behind = !c.several && (c.reading == self / warpSize || c.readers == 0);
      for (int other = 0; behind && other < warpSize; ++other) {
        behind = !(c.readers >> other & 1) || follows(c.reading * warpSize + other, c.read_time);
      }
      if (!behind) {
        fail_at(at, "a race, written while others read");
      }
    }
    c.written_in = emu::block.phase;
    c.writer = static_cast<int16_t>(self);
    c.write_time = emu::block.thread().clock[lane];
    c.atomic = atomic;
  }
};

template <typename T>
struct Ref;

// What T* is elsewhere; the elements from `low` to `high` may be used through it.
template <typename T>
struct Pointer {
  Memory* memory;
  T *at, *low, *high;

  Ref<T> operator[](int64_t i) const {
    return {*this + i};
  }
  Ref<T> operator*() const {
    return {*this};
  }
  Pointer operator+(int64_t i) const {
    return {memory, at + i, low, high};
  }
  Pointer operator-(int64_t i) const {
    return *this + -i;
  }
  Pointer& operator+=(int64_t i) {
    return *this = *this + i;
  }
  Pointer& operator++() {
    return *this += 1;
  }
  template <typename U>
  Pointer<U> cast() const {
    return {memory, reinterpret_cast<U*>(at), reinterpret_cast<U*>(low), reinterpret_cast<U*>(high)};
  }
  T* checked() const {
    if (at < low || at >= high) {
      memory->fail_at(at, "an index outside the array");
    }
    return at;
  }
};

// What T& is elsewhere.
template <typename T>
struct Ref {
  Pointer<T> to;

  T get(bool atomic = false) const {
    to.memory->read(to.checked(), atomic);
    return *to.at;
  }
  void set(const T& value, bool atomic = false) const {
    to.memory->write(to.checked(), atomic);
    *to.at = value;
  }
  operator T() const {
    return get();
  }
  template <typename U, typename = std::enable_if_t<std::is_class_v<T> && std::is_arithmetic_v<U>>>
  explicit operator U() const {
    return static_cast<U>(get());
  }
  const Ref& operator=(const T& value) const {
    set(value);
    return *this;
  }
  const Ref& operator=(const Ref& other) const {
    set(other.get());
    return *this;
  }
  Ref(const Pointer<T>& pointer) : to(pointer) {}
  Ref(const Ref&) = default;
  Pointer<T> operator&() const {
    return to;
  }
#define EMU_ASSIGN(op)                                     \
  template <typename U>                                    \
  const Ref& operator op##=(const U& value) const {        \
    set(static_cast<T>(get() op value));                   \
    return *this;                                          \
  }
  EMU_ASSIGN(+)
  EMU_ASSIGN(-)
  EMU_ASSIGN(*)
  EMU_ASSIGN(/)
  EMU_ASSIGN(|)
  EMU_ASSIGN(&)
  EMU_ASSIGN(^)
#undef EMU_ASSIGN
  T operator++() const {
    set(get() + 1);
    return *to.at;
  }
  T operator++(int) const {
    const T before = get();
    set(before + 1);
    return before;
  }
};

// An array of any number of dimensions, or a row of one.
template <typename Array>
struct View {
  using Part = std::remove_extent_t<Array>;
  using T = std::remove_all_extents_t<Array>;
  Memory* memory;
  T* first;

  auto operator[](int64_t i) const {
    constexpr int64_t count = std::extent_v<Array>;
    T* const at = first + i * static_cast<int64_t>(sizeof(Part) / sizeof(T));
    if constexpr (std::is_array_v<Part>) {
      if (i < 0 || i >= count) {
        memory->fail_at(at, "an index outside the array");
      }
      return View<Part>{memory, at};
    } else {
      return Ref<T>(Pointer<T>{memory, at, first, first + count});
    }
  }
  operator Pointer<T>() const {
    return {memory, first, first, first + sizeof(Array) / sizeof(T)};
  }
  Pointer<T> operator+(int64_t i) const {
    return static_cast<Pointer<T>>(*this) + i;
  }
};

// __shared__ T name[n][m] as Shared<T[n][m]>, of static storage: blocks come one after another.
template <typename Array>
struct Shared {
  using T = std::remove_all_extents_t<Array>;
  static_assert(std::is_trivially_default_constructible_v<T>, "shared memory has no constructors");
  alignas(16) unsigned char data[sizeof(Array)];
  Cell cells[sizeof(Array) / sizeof(T)];
  Memory memory;

  View<Array> enter(const char* name) {
    memory.cells = cells;
    memory.data = data;
    memory.size = sizeof(Array);
    memory.grain = sizeof(T);
    memory.enter(name, false);
    return {&memory, reinterpret_cast<T*>(data)};
  }
};

// extern __shared__ T name[]: as many bytes as the launch says.
template <typename T>
Pointer<T> dynamic_shared(const char* name) {
  alignas(16) static unsigned char data[kSharedLimit];
  static Cell cells[kSharedLimit];
  static Memory memory;
  memory.cells = cells;
  memory.data = data;
  memory.size = block.dynamic_bytes;
  memory.grain = 1;
  memory.enter(name, true);
  T* const first = reinterpret_cast<T*>(data);
  return {&memory, first, first, reinterpret_cast<T*>(data + block.dynamic_bytes / sizeof(T) * sizeof(T))};
}

template <typename T>
struct Access<Pointer<T>> {
  using Value = T;
  static T change(const Pointer<T>& to, T (*how)(T, T), T value) {
    const Ref<T> ref = *to;
    const T before = ref.get(true);
    ref.set(how(before, value), true);
    return before;
  }
};

} // namespace emu
