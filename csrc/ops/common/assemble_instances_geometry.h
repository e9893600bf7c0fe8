// Which cells assemble_instances reads: shared by CPU and CUDA, forward and backward.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace instseg_d2 {

// N images with k x k maps of H x W, M windows of m x m cells.
struct AssembleSizes {
  int64_t images, windows;
  int grid, height, width, mask;
};

// The part of a window, 0 to k - 1 along an axis, that its cell belongs to: floor(cell * k / m).
INSTSEG_HOST_DEVICE int part_of(int cell, const AssembleSizes& sizes) {
  return cell * sizes.grid / sizes.mask;
}

// The first cell of a part, and the end of the part before: ceil(part * m / k).
INSTSEG_HOST_DEVICE int first_of(int part, const AssembleSizes& sizes) {
  return (part * sizes.mask + sizes.grid - 1) / sizes.grid;
}

// The start of a window on an axis of `extent` cells, in 32 bits: starts far outside are moved to just outside.
INSTSEG_HOST_DEVICE int start_of(int64_t start, int extent, const AssembleSizes& sizes) {
  return static_cast<int>(start < -sizes.mask ? -sizes.mask : start > extent ? extent : start);
}

INSTSEG_HOST_DEVICE int clip(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}

} // namespace instseg_d2
