// What the backward pass of blend_masks asks again and again, made once: the taps of all axes, and where each box reads.
#pragma once

#include "blend_masks_pixels.h"

namespace instseg_d2 {
namespace {

constexpr int kMostExact = 1 << 12; // cells of an axis: up to here positions are exact enough to be inverted

// Sample p lies at start + (p + 0.5) / inverse.
template <typename T>
struct Samples {
  T start, inverse;

  // Where those lie that read `cell`, first <= p <= last: between the cells beside it, or on one of these up to a
  // rounding, hence the 0.75 in place of 0.5.
  __device__ void range_of(int cell, int extent, int resolution, int& first, int& last) const {
    first = 0;
    last = resolution - 1;
    if (::fabs(inverse) < T(64) && extent <= kMostExact) { // else all of them may lie in one cell
      const T one = (static_cast<T>(cell - 1) - start) * inverse, other = (static_cast<T>(cell + 1) - start) * inverse;
      const T low = ::min(one, other) - T(0.75), high = ::max(one, other) - T(0.25);
      first = static_cast<int>(::ceil(::min(::max(low, T(0)), static_cast<T>(resolution))));
      last = static_cast<int>(::floor(::max(::min(high, static_cast<T>(last)), T(-1))));
    }
  }
};

template <typename T>
struct Box {
  int64_t image;
  int first_y, last_y, first_x, last_x; // the cells of the bases that it may read; none where it is not finite
  Samples<T> rows, columns;
  // A small box is sampled so densely that its crop's gradient is first summed for each row of the bases, from this
  // one on: at most R / 2 + 2 rows, which replace those of the samples. -1: it is not.
  int dense;
};

// What is the same for all masks: the boxes, and the taps of all axes.
template <typename T>
struct Plan {
  Box<T>* boxes;
  Tap<T>* taps; // of the columns and the rows of each box, and of the attention at last
  int64_t count;
  int resolution;

  __device__ const Tap<T>* of(int64_t box, int axis) const {
    return taps + (2 * box + axis) * resolution;
  }
  __device__ const Tap<T>* of_attention() const {
    return of(count, 0);
  }
};

// The cells first <= y < last that the samples may read; nothing is written if there are none.
template <typename T>
__device__ void cells_of(const RoiAxis<T>& axis, int resolution, int extent, int& first, int& last) {
  const T one = axis.at(0), other = axis.at(resolution - 1);
  if (::max(one, other) >= T(-1) && ::min(one, other) <= static_cast<T>(extent)) { // false for NaN
    first = static_cast<int>(::max(::min(one, other), T(1))) - 1;
    last = static_cast<int>(::min(::max(one, other), static_cast<T>(extent - 2))) + 2;
  }
}

// A thread has a sample of an axis.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) plan_kernel(const Arguments<scalar, T> a, const Plan<T> plan) {
  const int size = a.sizes.resolution;
  const int64_t axes = 2 * a.sizes.boxes + 1, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < axes * size; at += step) {
    const int64_t box = at / size / 2;
    const int axis = static_cast<int>(at / size % 2), p = static_cast<int>(at % size);
    if (box == a.sizes.boxes) {
      plan.taps[at] = resize_tap<T>(a.sizes.attention, size, p, a.nearest);
      continue;
    }
    const RoiAxis<T> columns = a.axis_of(box, 0), rows = a.axis_of(box, 1);
    const Tap<T> tap = axis ? roi_tap(rows, p, a.sizes.height) : roi_tap(columns, p, a.sizes.width);
    plan.taps[at] = tap;
    if (axis && p == 0) {
      Box<T> made = {a.image_of(box), 0, 0, 0, 0, {rows.start, T(1) / rows.bin}, {columns.start, T(1) / columns.bin}, -1};
      cells_of(rows, size, a.sizes.height, made.first_y, made.last_y);
      cells_of(columns, size, a.sizes.width, made.first_x, made.last_x);
      if (rows.bin >= T(0) && rows.bin < T(0.5) && a.sizes.height <= kMostExact) {
        made.dense = tap.low;
      }
      plan.boxes[box] = made;
    }
  }
}

} // namespace
} // namespace instseg_d2
