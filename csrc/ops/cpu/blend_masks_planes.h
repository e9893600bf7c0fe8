// Reading and summing separably interpolated planes row by row, in any memory layout and floating-point type.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../common/blend_masks_geometry.h"
#include "row_math.h"

namespace instseg_d2 {

// A stack of planes: the bases of an image or the attentions of a mask.
template <typename T>
struct Planes {
  T* data;
  int64_t plane, row, column; // strides
};

template <typename T>
Planes<T> planes_of(const at::Tensor& tensor, T* data, int64_t index) {
  return {data + index * tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

template <typename T>
using Taps = std::vector<Tap<T>>;

// Uninitialised memory for one thread.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// Two slots of rows, each planes x columns, by the source row that they belong to.
template <typename T>
class RowPair {
 public:
  explicit RowPair(int64_t size) : size_(size), rows_(scratch<T>(2 * size)) {}

  T* row(int slot) {
    return rows_.get() + slot * size_;
  }
  int held(int slot) const {
    return held_[slot];
  }
  void hold(int slot, int index) {
    held_[slot] = index;
  }
  // The slot that has the row `index`, or -1.
  int find(int index) const {
    return held_[0] == index ? 0 : held_[1] == index ? 1 : -1;
  }
  // A slot to fill while the row `other` stays.
  int free(int other) const {
    return held_[0] == other ? 1 : 0;
  }

 private:
  int64_t size_;
  std::unique_ptr<T[]> rows_;
  int held_[2] = {-1, -1};
};

// Output rows of all planes; the two source rows that one needs are kept, their columns interpolated.
template <typename scalar, typename T>
class SourceRows {
 public:
  SourceRows(const Taps<T>& columns, int planes)
      : columns_(columns), planes_(planes), size_(planes * static_cast<int64_t>(columns.size())), pair_(size_) {}

  void start(Planes<const scalar> source) {
    source_ = source;
    pair_.hold(0, -1);
    pair_.hold(1, -1);
  }

  void read(const Tap<T>& tap, T* out) {
    if (tap.outside()) {
      std::fill(out, out + size_, T(0));
      return;
    }
    const T* low = row(tap.low, tap.high);
    rows<Mix>(out, low, row(tap.high, tap.low), tap.w_low, tap.w_high, size_);
  }

 private:
  const T* row(int index, int other) {
    int slot = pair_.find(index);
    if (slot >= 0) {
      return pair_.row(slot);
    }
    slot = pair_.free(other);
    pair_.hold(slot, index);
    T* out = pair_.row(slot);
    for (int k = 0; k < planes_; ++k) {
      const scalar* from = source_.data + k * source_.plane + index * source_.row;
      for (const Tap<T>& tap : columns_) {
        *out++ = tap.outside() ? T(0)
                               : tap.w_low * static_cast<T>(from[tap.low * source_.column]) +
                tap.w_high * static_cast<T>(from[tap.high * source_.column]);
      }
    }
    return pair_.row(slot);
  }

  const Taps<T>& columns_;
  const int planes_;
  const int64_t size_;
  Planes<const scalar> source_{};
  RowPair<T> pair_;
};

// The reverse: sums output rows per source row, and spreads a sum over its columns once it is complete.
template <typename T>
class SumRows {
 public:
  SumRows(const Taps<T>& columns, int planes)
      : columns_(columns), planes_(planes), size_(planes * static_cast<int64_t>(columns.size())), pair_(size_) {}

  void start(Planes<T> target) {
    target_ = target;
  }

  // Adds an output row of every plane to the source rows of this tap that lie in [begin, end).
  void add(const Tap<T>& tap, const T* values, int64_t begin, int64_t end) {
    if (tap.outside()) {
      return;
    }
    const bool same = tap.low == tap.high;
    if (tap.low >= begin && tap.low < end) {
      rows<Add>(row(tap.low, tap.high), values, same ? T(1) : tap.w_low, size_);
    }
    if (!same && tap.high >= begin && tap.high < end) {
      rows<Add>(row(tap.high, tap.low), values, tap.w_high, size_);
    }
  }

  void finish() {
    flush(0);
    flush(1);
  }

 private:
  T* row(int index, int other) {
    int slot = pair_.find(index);
    if (slot < 0) {
      slot = pair_.free(other);
      flush(slot);
      pair_.hold(slot, index);
      std::fill(pair_.row(slot), pair_.row(slot) + size_, T(0));
    }
    return pair_.row(slot);
  }

  void flush(int slot) {
    if (pair_.held(slot) < 0) {
      return;
    }
    const T* values = pair_.row(slot);
    for (int k = 0; k < planes_; ++k) {
      T* to = target_.data + k * target_.plane + pair_.held(slot) * target_.row;
      for (const Tap<T>& tap : columns_) {
        const T value = *values++;
        if (!tap.outside()) { // a gradient of NaN stays with its sample
          to[tap.low * target_.column] += tap.w_low * value;
          to[tap.high * target_.column] += tap.w_high * value;
        }
      }
    }
    pair_.hold(slot, -1);
  }

  const Taps<T>& columns_;
  const int planes_;
  const int64_t size_;
  Planes<T> target_{};
  RowPair<T> pair_;
};

} // namespace instseg_d2
