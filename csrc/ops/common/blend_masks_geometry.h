// Where blend_masks reads: shared by CPU and CUDA, forward and backward.
//
// RoIAlign with one sample per bin and the resizing of the attention are both separable interpolations with
// at most two source cells per axis, so one `Tap` per output row and one per output column describe each.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace instseg_d2 {

// value = w_low * source[low] + w_high * source[high]; both weights are 0 where the sample lies outside.
template <typename T>
struct Tap {
  int low;
  int high;
  T w_low;
  T w_high;
};

// Sample `p` of `resolution` between the box edges `first` and `last` (input pixels) on an axis of `extent`
// cells: RoIAlign's aligned coordinates, zero beyond one cell outside the map. The comparison is also false
// for the NaN that non-finite boxes lead to, which hence read nothing.
template <typename T>
INSTSEG_HOST_DEVICE Tap<T> roi_tap(T first, T last, T scale, int resolution, int p, int extent) {
  const T start = first * scale - T(0.5);
  const T bin = (last * scale - T(0.5) - start) / static_cast<T>(resolution);
  const T at = start + static_cast<T>(p) * bin + T(0.5) * bin;
  if (!(at >= T(-1) && at <= static_cast<T>(extent))) {
    return {0, 0, T(0), T(0)};
  }
  const T inside = at > T(0) ? at : T(0);
  const int low = static_cast<int>(inside);
  if (low >= extent - 1) {
    return {extent - 1, extent - 1, T(1), T(0)};
  }
  const T fraction = inside - static_cast<T>(low);
  return {low, low + 1, T(1) - fraction, fraction};
}

// Output cell `p` of `resolution` when an axis of `size` cells is resized as torch.nn.functional.interpolate
// does it: bilinear with align_corners=False, or nearest (which computes in float32 whatever the type).
template <typename T>
INSTSEG_HOST_DEVICE Tap<T> resize_tap(int size, int resolution, int p, bool nearest) {
  if (size == resolution) {
    return {p, p, T(1), T(0)};
  }
  if (nearest) {
    const float ratio = static_cast<float>(size) / static_cast<float>(resolution);
    const int cell = static_cast<int>(static_cast<float>(p) * ratio);
    const int last = cell < size ? cell : size - 1;
    return {last, last, T(1), T(0)};
  }
  const T at = static_cast<T>(size) / static_cast<T>(resolution) * (static_cast<T>(p) + T(0.5)) - T(0.5);
  const T inside = at > T(0) ? at : T(0);
  const int cell = static_cast<int>(inside);
  const int low = cell < size ? cell : size - 1;
  const T fraction = inside - static_cast<T>(low);
  return {low, low < size - 1 ? low + 1 : low, T(1) - fraction, fraction};
}

} // namespace instseg_d2
