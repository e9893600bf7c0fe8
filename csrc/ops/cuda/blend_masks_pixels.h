// The pixels of blend_masks: what they read, their softmax over the bases, and what both directions need of them.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>
#include <limits>

#include "../common/blend_masks_checks.h"
#include "../common/blend_masks_geometry.h"
#include "tile.h"

namespace instseg_d2 {
namespace {

constexpr int kBases = 4; // that a thread has at once
constexpr int kRows = 4; // pixels of a column that a thread has, one below another
constexpr int kSide = kWarps * kRows; // a block has so many rows and columns of a mask
static_assert(kSide == 32, "a warp has the columns, and another one makes the taps of the rows");

// Planes in any memory layout; strides in values. Within an item 32 bits are enough.
template <typename T>
struct Stack {
  T* data;
  int64_t item;
  int plane, row, column;

  __device__ T* at(int64_t index, int k) const {
    return data + index * item + static_cast<int64_t>(k) * plane;
  }
};

// Values are read as `scalar`, and computations use `T`.
template <typename scalar, typename T>
struct Arguments {
  Stack<const scalar> bases, attention;
  const T* boxes;
  const int64_t* batch_index;
  const int64_t* box_index; // null: mask p belongs to box p
  T scale;
  bool nearest;
  BlendSizes sizes;

  __device__ int64_t box_of(int64_t mask) const {
    const int64_t box = box_index == nullptr ? mask : box_index[mask];
    CUDA_KERNEL_ASSERT(box >= 0 && box < sizes.boxes && "blend_masks: box_index should be in [0, M)");
    return box;
  }
  __device__ int64_t image_of(int64_t box) const {
    const int64_t image = batch_index[box];
    CUDA_KERNEL_ASSERT(image >= 0 && image < sizes.images && "blend_masks: batch_index should be in [0, N)");
    return image;
  }
  // 0: the columns of a box, 1: its rows.
  __device__ RoiAxis<T> axis_of(int64_t box, int axis) const {
    return RoiAxis<T>(boxes[4 * box + axis], boxes[4 * box + axis + 2], scale, sizes.resolution);
  }
};

// A column of a few planes, interpolated between two cells of each row. The two rows of the last pixel stay in
// registers: where masks are larger than what they read, the next pixel often needs the same ones.
template <typename scalar, typename T>
struct Column {
  const scalar* data; // of the first row and plane
  int low, high, plane, row; // offset of the cells, strides
  T w_low, w_high;
  int held_low = -1, held_high = -1;
  T lows[kBases] = {}, highs[kBases] = {};

  __device__ Column(const scalar* plane_data, const Stack<const scalar>& stack, const Tap<T>& tap)
      : data(plane_data),
        low(tap.low * stack.column),
        high(tap.high * stack.column),
        plane(stack.plane),
        row(stack.row),
        w_low(tap.w_low),
        w_high(tap.w_high) {}

  // The values of `planes` planes in a row; all threads of a warp have the same row. What is outside stays unread.
  __device__ void read(const Tap<T>& tap, int planes, T (&values)[kBases]) {
    if (tap.outside()) {
      for (int k = 0; k < kBases; ++k) {
        values[k] = T(0);
      }
      return;
    }
    if ((tap.low != held_low || tap.high != held_high) && w_low != T(0)) {
      load(tap.low * row, planes, lows);
      load(tap.high * row, planes, highs);
      held_low = tap.low;
      held_high = tap.high;
    }
    for (int k = 0; k < kBases; ++k) {
      values[k] = tap.w_low * lows[k] + tap.w_high * highs[k];
    }
  }

 private:
  __device__ void load(int offset, int planes, T (&values)[kBases]) const {
    for (int k = 0; k < kBases; ++k, offset += plane) {
      if (k < planes) {
        values[k] = w_low * static_cast<T>(data[low + offset]) + w_high * static_cast<T>(data[high + offset]);
      }
    }
  }
};

// A softmax that grows by a few bases at a time, and the sum of what it weighs. Where every logit is -inf, 0 / 0 is
// NaN, as in any softmax.
template <typename T>
struct Blend {
  T top = -std::numeric_limits<T>::infinity(), sum = T(0), value = T(0);

  __device__ void add(const T (&logits)[kBases], const T (&crop)[kBases], int planes, bool first) {
    T larger = top;
    for (int k = 0; k < kBases; ++k) {
      larger = k < planes && logits[k] > larger ? logits[k] : larger;
    }
    if (!first && sum != T(0)) { // of bases before
      const T kept = ::exp(top - larger);
      sum *= kept;
      value *= kept;
    }
    top = larger;
    for (int k = 0; k < kBases; ++k) {
      if (k < planes) {
        const T part = weight(logits[k]);
        sum += part;
        value += part * crop[k];
      }
    }
  }
  // Before it is divided by the sum. -inf - -inf would be NaN.
  __device__ T weight(T logit) const {
    return ::exp(logit - (top == -std::numeric_limits<T>::infinity() ? T(0) : top));
  }
};

// The pixels of a thread: a column, and kRows rows, of which `rows` lie in the mask. `whole`: kBases divides K.
template <typename scalar, typename T, bool whole>
struct Pixels {
  const Arguments<scalar, T>& a;
  int64_t mask, image;
  Tap<T> crop_column, cell_column;
  int rows;

  // Calls visit(r, k, planes, logits, crop) for row r and the bases from k on.
  template <typename Taps, typename Visit>
  __device__ void read(const Taps& taps, int line, const Visit& visit) const {
    for (int k = 0; k < a.sizes.bases; k += kBases) {
      const int planes = whole ? kBases : ::min(a.sizes.bases - k, kBases);
      Column<scalar, T> bases(a.bases.at(image, k), a.bases, crop_column);
      Column<scalar, T> attention(a.attention.at(mask, k), a.attention, cell_column);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < rows) {
          const Tap<T> crop_row = taps[line + r], cell_row = taps[kSide + line + r];
          T crop[kBases], logits[kBases] = {};
          bases.read(crop_row, planes, crop);
          if (whole || a.sizes.bases > 1) { // a base alone has all the weight
            attention.read(cell_row, planes, logits);
          }
          visit(r, k, planes, logits, crop);
        }
      }
    }
  }
};

// Calls visit(pixels, line, y, x) for the pixels of every thread, the first of which is (y, x). `taps` are in shared
// memory: kSide each of the block's rows, in the bases and in the attention, and of its columns; `line` is where those
// of the first pixel's row are. Block (kSide x kSide pixels, mask).
template <bool whole, typename scalar, typename T, typename Taps, typename Visit>
__device__ void visit_pixels(
    const Arguments<scalar, T>& a, int64_t begin, int64_t end, Taps& taps, const Visit& visit) {
  const int size = a.sizes.resolution, tiles_x = (size + kSide - 1) / kSide;
  const int top = static_cast<int>(blockIdx.x) / tiles_x * kSide, left = static_cast<int>(blockIdx.x) % tiles_x * kSide;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int line = warp * kRows, y = top + line, x = left + lane;
  for (int64_t mask = begin + blockIdx.y; mask < end; mask += gridDim.y) {
    const int64_t box = a.box_of(mask), image = a.image_of(box);
    __syncthreads();
    if (warp < 4) {
      const bool rows = warp < 2;
      const int p = (rows ? top : left) + lane;
      taps[threadIdx.x] = warp % 2 ? resize_tap<T>(a.sizes.attention, size, p, a.nearest)
                                   : roi_tap(a.axis_of(box, rows), p, rows ? a.sizes.height : a.sizes.width);
    }
    __syncthreads();
    if (x < size && y < size) {
      const Tap<T> crop_column = taps[2 * kSide + lane], cell_column = taps[3 * kSide + lane];
      visit(Pixels<scalar, T, whole>{a, mask, image, crop_column, cell_column, ::min(size - y, kRows)}, line, y, x);
    }
  }
}

} // namespace
} // namespace instseg_d2
