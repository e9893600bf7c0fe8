// Blocks that own a tile of a map and gather from the items (windows, objects, boxes) that meet it. They find these
// together, a thread testing an item, so that a thread does not test every item for itself.
#pragma once

#include <cstdint>

namespace instseg_d2 {
namespace {

constexpr int kThreads = 256; // of a block
constexpr int kWarps = kThreads / 32;
constexpr int kTileRows = kWarps, kTileColumns = 32; // a warp has one row

struct Tile {
  int top, left;

  // Tile `index`, row-major, of a map with so many tiles side by side.
  __device__ Tile(int index, int tiles_x) : top(index / tiles_x * kTileRows), left(index % tiles_x * kTileColumns) {}

  __device__ int y() const {
    return top + threadIdx.x / 32;
  }
  __device__ int x() const {
    return left + threadIdx.x % 32;
  }
  // Whether it holds any of the rows first_y <= y < last_y and of the columns first_x <= x < last_x.
  __device__ bool meets(int first_y, int last_y, int first_x, int last_x) const {
    return first_y < last_y && first_x < last_x && first_y - top < kTileRows && top < last_y &&
        first_x - left < kTileColumns && left < last_x;
  }
};

inline int tiles_of(int64_t extent, int size) {
  return static_cast<int>((extent + size - 1) / size);
}

// Calls visit(start, word, bits) with the bits of the items start + 32 * word + 0..31 that meet the tile, in their
// order. `meets(item)` is asked by one thread each and gives whether, `keep(slot, item)` then stores what visit needs
// of the item in shared memory, in one of kThreads slots (32 * word + bit). All threads of the block call this.
template <typename Words, typename Meets, typename Keep, typename Visit>
__device__ void visit_items(int64_t count, Words& words, const Meets& meets, const Keep& keep, const Visit& visit) {
  for (int64_t start = 0; start < count; start += kThreads) {
    const int64_t mine = start + threadIdx.x;
    const bool met = mine < count && meets(mine);
    if (!__syncthreads_or(met)) { // behind it nobody reads the slots of the items before any more
      continue;
    }
    const unsigned bits = __ballot_sync(0xffffffffu, met);
    if (threadIdx.x % 32 == 0) {
      words[threadIdx.x / 32] = bits;
    }
    if (met) {
      keep(static_cast<int>(threadIdx.x), mine);
    }
    __syncthreads();
    for (int word = 0; word < kWarps; ++word) {
      const unsigned found = words[word];
      if (found != 0) {
        visit(start, word, found);
      }
    }
  }
}

} // namespace
} // namespace instseg_d2
