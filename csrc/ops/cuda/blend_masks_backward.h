// The gradients of blend_masks without atomic additions, so that every sum has a fixed order. Each pixel writes its
// share of the gradients of its crop and of its attention's cell; each cell of the attentions and the bases then
// gathers from the pixels that read it.
#pragma once

#include "blend_masks_pixels.h"

namespace instseg_d2 {
namespace {

constexpr int kMostExact = 1 << 14; // cells of an axis: up to here positions are exact enough to be inverted

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

// Gradients of the crops, (G, K, R + 1, R), and of the attention's cells, (G, K, R, R), of the masks begin <= p < end.
template <typename T>
struct Scratch {
  T *crops, *cells;
  int64_t begin, end;
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

template <typename scalar, typename T, bool whole>
__global__ void __launch_bounds__(kThreads, 3)
    shares_kernel(const Arguments<scalar, T> a, const scalar* grad, const Scratch<T> scratch) {
  __shared__ Tap<T> taps[4 * kSide];
  const int64_t size = a.sizes.resolution;
  visit_pixels<whole>(a, scratch.begin, scratch.end, taps, [&](const auto& pixels, int line, int y, int x) {
    Blend<T> blends[kRows];
    T upper[kRows];
    pixels.read(taps, line, [&](int r, int k, int planes, const auto& logits, const auto& crop) {
      blends[r].add(logits, crop, planes, k == 0);
    });
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      upper[r] = r < pixels.rows ? static_cast<T>(grad[(pixels.mask * size + y + r) * size + x]) / blends[r].sum : T(0);
      blends[r].value /= blends[r].sum;
    }
    const int64_t item = (pixels.mask - scratch.begin) * a.sizes.bases;
    pixels.read(taps, line, [&](int r, int k, int planes, const auto& logits, const auto& crop) {
      for (int i = 0; i < kBases; ++i) {
        if (i < planes) {
          const T share = upper[r] * blends[r].weight(logits[i]);
          scratch.crops[((item + k + i) * (size + 1) + y + r) * size + x] = share;
          scratch.cells[((item + k + i) * size + y + r) * size + x] = share * (crop[i] - blends[r].value);
        }
      }
    });
  });
}

// A thread has a column of a crop's gradient, R + 1 rows. It writes a row only after it has read it.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads)
    dense_kernel(const Arguments<scalar, T> a, const Plan<T> plan, const Scratch<T> scratch) {
  const int size = a.sizes.resolution;
  for (int64_t mask = scratch.begin + blockIdx.x; mask < scratch.end; mask += gridDim.x) {
    const int64_t box = a.box_of(mask);
    const int dense = plan.boxes[box].dense;
    const Tap<T>* taps = plan.of(box, 1);
    for (int i = threadIdx.x; dense >= 0 && i < a.sizes.bases * size; i += kThreads) {
      T* column = scratch.crops + ((mask - scratch.begin) * a.sizes.bases + i / size) * (size + 1) * size + i % size;
      T sum = T(0), next = T(0); // of the row of the bases that `row` stands for, and of the one behind
      int row = 0;
      const auto write = [&] {
        column[static_cast<int64_t>(row) * size] = sum;
        sum = next;
        next = T(0);
        ++row;
      };
      for (int p = 0; p < size; ++p) {
        const Tap<T> tap = taps[p];
        const T value = column[static_cast<int64_t>(p) * size];
        if (!tap.outside()) {
          while (dense + row < tap.low) {
            write();
          }
          sum += tap.weight(tap.low) * value;
          next += tap.low < tap.high ? tap.w_high * value : T(0);
        }
      }
      while (row <= size) {
        write();
      }
    }
  }
}

// A thread has a cell of an attention.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) attention_kernel(
    const Arguments<scalar, T> a, const Plan<T> plan, const Scratch<T> scratch, const Stack<scalar> attention_grad) {
  const int size = a.sizes.resolution, side = a.sizes.attention;
  const int64_t cells = (scratch.end - scratch.begin) * a.sizes.bases * side * side;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const Samples<T> samples = {T(-0.5), static_cast<T>(size) / static_cast<T>(side)};
  const Tap<T>* taps = plan.of_attention();
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < cells; at += step) {
    const int64_t plane = at / side / side;
    const int y = static_cast<int>(at / side % side), x = static_cast<int>(at % side);
    int first_y, last_y, first_x, last_x;
    samples.range_of(y, side, size, first_y, last_y);
    samples.range_of(x, side, size, first_x, last_x);
    T sum = T(0);
    for (int p = first_y; p <= last_y; ++p) {
      const T w_row = taps[p].weight(y);
      const T* values = scratch.cells + (plane * size + p) * size;
      for (int q = first_x; w_row != T(0) && q <= last_x; ++q) {
        const Tap<T> tap = taps[q];
        const T weight = w_row * tap.weight(x);
        sum += weight != T(0) ? weight * values[q] : T(0);
      }
    }
    scalar* to = attention_grad.at(scratch.begin + plane / a.sizes.bases, static_cast<int>(plane % a.sizes.bases));
    to[y * attention_grad.row + x * attention_grad.column] = static_cast<scalar>(sum);
  }
}

// Block (tile of the bases, kBases bases of an image). Adds to the gradient after the first masks.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads) bases_kernel(
    const Arguments<scalar, T> a, const Plan<T> plan, const Scratch<T> scratch, int tiles_x, const Stack<T> bases_grad) {
  __shared__ unsigned words[kWarps];
  __shared__ int64_t boxes[kThreads];
  const Tile tile(blockIdx.x, tiles_x);
  const int y = tile.y(), x = tile.x(), size = a.sizes.resolution;
  const int64_t chunks = (a.sizes.bases + kBases - 1) / kBases, plane = static_cast<int64_t>(size + 1) * size;
  for (int64_t item = blockIdx.y; item < a.sizes.images * chunks; item += gridDim.y) {
    const int64_t image = item / chunks;
    const int k = static_cast<int>(item % chunks) * kBases, planes = ::min(a.sizes.bases - k, kBases);
    T sums[kBases] = {};
    visit_items(
        scratch.end - scratch.begin, words,
        [&](int64_t mask) {
          const Box<T>& box = plan.boxes[a.box_of(scratch.begin + mask)];
          return box.image == image && tile.meets(box.first_y, box.last_y, box.first_x, box.last_x);
        },
        [&](int slot, int64_t mask) { boxes[slot] = a.box_of(scratch.begin + mask); },
        [&](int64_t start, int word, unsigned bits) {
          for (; bits != 0; bits &= bits - 1) {
            const int slot = 32 * word + __ffs(static_cast<int>(bits)) - 1;
            const int64_t index = boxes[slot];
            const Box<T> box = plan.boxes[index];
            const Tap<T> *rows = plan.of(index, 1), *columns = plan.of(index, 0);
            int first_y = y - box.dense, last_y = y - box.dense <= size ? y - box.dense : -1, first_x, last_x;
            if (box.dense < 0) {
              box.rows.range_of(y, a.sizes.height, size, first_y, last_y);
            }
            box.columns.range_of(x, a.sizes.width, size, first_x, last_x);
            for (int p = ::max(first_y, 0); p <= last_y; ++p) {
              const T w_row = box.dense < 0 ? rows[p].weight(y) : T(1);
              const T* values = scratch.crops + ((start + slot) * a.sizes.bases + k) * plane + p * size;
              for (int q = first_x; w_row != T(0) && q <= last_x; ++q) {
                const Tap<T> tap = columns[q];
                const T weight = w_row * tap.weight(x);
                for (int i = 0; i < kBases; ++i) {
                  if (i < planes && weight != T(0)) { // of 0 times a NaN the sum would be NaN
                    sums[i] += weight * values[i * plane + q];
                  }
                }
              }
            }
          }
        });
    for (int i = 0; i < kBases; ++i) {
      if (i < planes && y < a.sizes.height && x < a.sizes.width) {
        T* to = bases_grad.at(image, k + i) + y * bases_grad.row + x * bases_grad.column;
        *to = scratch.begin > 0 ? *to + sums[i] : sums[i];
      }
    }
  }
}

} // namespace
} // namespace instseg_d2
