// Where blend_masks reads: shared by CPU and CUDA, forward and backward.
//
// RoIAlign with one sample per bin and the resizing of the attention are both separable interpolations with
// at most two source cells per axis, so one `Tap` per output row and one per output column describe each.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace instseg_d2 {

// value = w_low * source[low] + w_high * source[high]. A sample outside has two weights of 0 and reads nothing: its
// value is 0 whatever the source holds. Inside neither weight is 0, as 0 * inf would be NaN: a sample in the centre
// of a cell reads that cell twice, half each.
template <typename T>
struct alignas(16) Tap {
  int low;
  int high;
  T w_low;
  T w_high;

  INSTSEG_HOST_DEVICE bool outside() const {
    return w_low == T(0);
  }
  // What it weighs a cell with.
  INSTSEG_HOST_DEVICE T weight(int cell) const {
    return (cell == low ? w_low : T(0)) + (cell == high ? w_high : T(0));
  }
};

template <typename T>
INSTSEG_HOST_DEVICE Tap<T> tap_between(int low, T fraction) {
  return fraction > T(0) ? Tap<T>{low, low + 1, T(1) - fraction, fraction} : Tap<T>{low, low, T(0.5), T(0.5)};
}

// The samples of a box along one axis, in cells of the map: sample p lies at start + (p + 0.5) * bin.
template <typename T>
struct RoiAxis {
  T start, bin;

  // `first` and `last` are the box edges in input pixels, in RoIAlign's aligned coordinates.
  INSTSEG_HOST_DEVICE RoiAxis(T first, T last, T scale, int resolution)
      : start(first * scale - T(0.5)), bin((last * scale - T(0.5) - start) / static_cast<T>(resolution)) {}

  INSTSEG_HOST_DEVICE T at(int p) const {
    return start + static_cast<T>(p) * bin + T(0.5) * bin;
  }
};

// Sample `p` on an axis of `extent` cells: outside from more than one cell beyond the map. The comparison is also
// false for the NaN that non-finite boxes lead to, which hence read nothing.
template <typename T>
INSTSEG_HOST_DEVICE Tap<T> roi_tap(const RoiAxis<T>& axis, int p, int extent) {
  const T at = axis.at(p);
  if (!(at >= T(-1) && at <= static_cast<T>(extent))) {
    return {0, 0, T(0), T(0)};
  }
  const T inside = at > T(0) ? at : T(0);
  const int low = static_cast<int>(inside);
  return low >= extent - 1 ? tap_between(extent - 1, T(0)) : tap_between(low, inside - static_cast<T>(low));
}

// Output cell `p` of `resolution` when an axis of `size` cells is resized as torch.nn.functional.interpolate
// does it: bilinear with align_corners=False, or nearest (which computes in float32 whatever the type).
template <typename T>
INSTSEG_HOST_DEVICE Tap<T> resize_tap(int size, int resolution, int p, bool nearest) {
  if (size == resolution) {
    return tap_between(p, T(0));
  }
  if (nearest) {
    const float ratio = static_cast<float>(size) / static_cast<float>(resolution);
    const int cell = static_cast<int>(static_cast<float>(p) * ratio);
    return tap_between(cell < size ? cell : size - 1, T(0));
  }
  const T at = static_cast<T>(size) / static_cast<T>(resolution) * (static_cast<T>(p) + T(0.5)) - T(0.5);
  const T inside = at > T(0) ? at : T(0);
  const int cell = static_cast<int>(inside);
  return cell >= size - 1 ? tap_between(size - 1, T(0)) : tap_between(cell, inside - static_cast<T>(cell));
}

} // namespace instseg_d2
