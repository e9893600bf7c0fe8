// The gradients of blend_masks without atomic additions, so that every sum has a fixed order. Each pixel writes its
// share of the gradients of its crop and of its attention's cell; each cell of the attentions and the bases then
// gathers from the pixels that read it.
#pragma once

#include "blend_masks_pixels.h"
#include "blend_masks_plan.h"

namespace instseg_d2 {
namespace {

// Gradients of the crops and of the attention's cells, (G, K, R + 1, R) each, of the masks begin <= p < end.
template <typename T>
struct Scratch {
  T *crops, *cells;
  int64_t begin, end;
};

// Whether the attention's cells are summed for each of its rows first, as the crops of small boxes are.
__device__ bool is_dense(const BlendSizes& sizes) {
  return 2 * sizes.attention < sizes.resolution;
}

template <typename scalar, typename T, bool whole>
__global__ void __launch_bounds__(kThreads, 2)
    shares_kernel(const Arguments<scalar, T> a, const scalar* grad, const Scratch<T> scratch) {
  __shared__ Tap<T> taps[4 * kSide];
  const int64_t size = a.sizes.resolution;
  visit_pixels<whole>(a, scratch.begin, scratch.end, taps, [&](const auto& pixels, int line, int y, int x) {
    Blend<T> blends[kRows];
    T upper[kRows];
    const auto finish = [&](int r) {
      upper[r] = static_cast<T>(grad[(pixels.mask * size + y + r) * size + x]) / blends[r].sum;
      blends[r].value /= blends[r].sum;
    };
    const int64_t item = (pixels.mask - scratch.begin) * a.sizes.bases;
    const auto write = [&](int r, int k, int planes, const auto& logits, const auto& crop) {
      for (int i = 0; i < kBases; ++i) {
        if (i < planes) {
          const T share = upper[r] * blends[r].weight(logits[i]);
          const int64_t at = ((item + k + i) * (size + 1) + y + r) * size + x;
          scratch.crops[at] = share;
          scratch.cells[at] = share * (crop[i] - blends[r].value);
        }
      }
    };
    const bool once = a.sizes.bases <= kBases; // else the bases are read again when the softmax is known
    pixels.read(taps, line, [&](int r, int k, int planes, const auto& logits, const auto& crop) {
      blends[r].add(logits, crop, planes, k == 0);
      if (once) {
        finish(r);
        write(r, k, planes, logits, crop);
      }
    });
    if (!once) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < pixels.rows) {
          finish(r);
        }
      }
      pixels.read(taps, line, write);
    }
  });
}

// Sums a column of R values, `size` apart, for each row that their taps read, from `first` on. The R + 1 sums replace
// the values: a row is written only after it was read.
template <typename T>
__device__ void sum_rows(T* column, const Tap<T>* taps, int first, int size) {
  T sum = T(0), next = T(0); // of `row` and of the one behind
  int row = first, to = 0;
  const auto write_until = [&](int end) {
#pragma unroll 1
    for (; row < end; ++row, to += size) {
      column[to] = sum;
      sum = next;
      next = T(0);
    }
  };
  for (int p = 0; p < size; ++p) {
    const Tap<T> tap = taps[p];
    const T value = column[p * size];
    if (!tap.outside()) {
      write_until(tap.low);
      const bool one = tap.low == tap.high;
      sum += one ? value : tap.w_low * value;
      next += one ? T(0) : tap.w_high * value;
    }
  }
  write_until(first + size + 1);
}

// Block (mask, crops or attention); a thread has columns of some bases.
template <typename scalar, typename T>
__global__ void __launch_bounds__(kThreads)
    dense_kernel(const Arguments<scalar, T> a, const Plan<T> plan, const Scratch<T> scratch) {
  const int size = a.sizes.resolution;
  for (int64_t mask = scratch.begin + blockIdx.x; mask < scratch.end; mask += gridDim.x) {
    const int64_t box = a.box_of(mask), plane = (mask - scratch.begin) * a.sizes.bases;
    const bool crops = blockIdx.y == 0;
    const int first = crops ? plan.boxes[box].dense : is_dense(a.sizes) ? 0 : -1;
    for (int i = threadIdx.x; first >= 0 && i < a.sizes.bases * size; i += kThreads) {
      T* column = (crops ? scratch.crops : scratch.cells) + (plane + i / size) * (size + 1) * size + i % size;
      sum_rows(column, crops ? plan.of(box, 1) : plan.of_attention(), first, size);
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
  const bool dense = is_dense(a.sizes);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < cells; at += step) {
    const int64_t plane = at / side / side;
    const int y = static_cast<int>(at / side % side), x = static_cast<int>(at % side);
    int first_y, last_y, first_x, last_x;
    samples.range_of(y, side, size, first_y, last_y);
    samples.range_of(x, side, size, first_x, last_x);
    if (dense) {
      first_y = last_y = y;
    }
    T sum = T(0);
    for (int p = first_y; p <= last_y; ++p) {
      const T w_row = dense ? T(1) : taps[p].weight(y);
      const T* values = scratch.cells + (plane * (size + 1) + p) * size;
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
