// The cells that mask_prob computes: shared by CPU and CUDA, forward and backward.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace instseg_d2 {

constexpr int64_t kMostDims = 65536;
constexpr int kDimsSummed = 4; // dimensions that are summed before they are added to the other ones

// Cells x1 <= x < x2 and y1 <= y < y2 of a map, row-major.
struct Window {
  int64_t x1, y1, x2, y2;

  INSTSEG_HOST_DEVICE int64_t width() const {
    return x2 - x1;
  }
  INSTSEG_HOST_DEVICE int64_t area() const {
    return (x2 - x1) * (y2 - y1);
  }
  INSTSEG_HOST_DEVICE bool inside(int64_t height, int64_t width) const {
    return 0 <= x1 && x1 <= x2 && x2 <= width && 0 <= y1 && y1 <= y2 && y2 <= height;
  }
  INSTSEG_HOST_DEVICE bool holds(int64_t y, int64_t x) const {
    return x1 <= x && x < x2 && y1 <= y && y < y2;
  }
};

// The window of object `m`: of the (M, 4) values x1, y1, x2, y2, or without any the whole map.
INSTSEG_HOST_DEVICE Window window_of(const int64_t* windows, int64_t m, int64_t height, int64_t width) {
  if (windows == nullptr) {
    return {0, 0, width, height};
  }
  return {windows[4 * m], windows[4 * m + 1], windows[4 * m + 2], windows[4 * m + 3]};
}

} // namespace instseg_d2
