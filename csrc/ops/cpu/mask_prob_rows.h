// The arithmetic of mask_prob on the CPU; D dimensions, planes of W columns.
#pragma once

#include <cstdint>

#include "../common/mask_prob_geometry.h"
#include "rows.h"

namespace instseg_d2 {

// out = -sum_d margins[d] * (pixels[d] - proposal[d])^2 for `size` cells, from place `at` of planes of `plane` cells.
struct NegativeDistance {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT out,
      const T* INSTSEG_RESTRICT pixels,
      int64_t at,
      int64_t plane,
      const T* INSTSEG_RESTRICT proposal,
      const T* INSTSEG_RESTRICT margins,
      int64_t dims,
      int64_t size) {
    constexpr int width = 32;
    int64_t i = 0;
    for (; i + width <= size; i += width) {
      cells<T, width>(out + i, pixels + at + i, plane, proposal, margins, dims);
    }
    if (i < size && plane >= width) { // as many cells, inside the plane, of which these are some
      const int64_t first = at + i < plane - width ? at + i : plane - width;
      T values[width];
      cells<T, width>(values, pixels + first, plane, proposal, margins, dims);
      for (; i < size; ++i) {
        out[i] = values[at + i - first];
      }
    }
    for (; i < size; ++i) {
      cells<T, 1>(out + i, pixels + at + i, plane, proposal, margins, dims);
    }
  }

 private:
  // `width` cells at once, few enough for their sums to stay in registers.
  template <typename T, int width>
  INSTSEG_INLINE static void cells(
      T* INSTSEG_RESTRICT out,
      const T* INSTSEG_RESTRICT pixels,
      int64_t plane,
      const T* INSTSEG_RESTRICT proposal,
      const T* INSTSEG_RESTRICT margins,
      int64_t dims) {
    T sum[width] = {};
    for (int64_t d = 0; d < dims;) {
      T part[width] = {}; // of a few dimensions: shorter sums have smaller errors
      for (const int64_t end = d + kDimsSummed < dims ? d + kDimsSummed : dims; d < end; ++d, pixels += plane) {
        for (int j = 0; j < width; ++j) {
          const T difference = pixels[j] - proposal[d];
          part[j] += margins[d] * difference * difference;
        }
      }
      for (int j = 0; j < width; ++j) {
        sum[j] -= part[j];
      }
    }
    for (int j = 0; j < width; ++j) {
      out[j] = sum[j];
    }
  }
};

// One dimension of one object, over `height` rows of `size` cells: adds its share to the gradient of the pixels,
// and to `sums` what the gradients of proposal and margin are made of: grad * (pixels - proposal), and the same
// with the square.
struct NegativeDistanceBackward {
  template <typename T>
  INSTSEG_INLINE static void run(
      T* INSTSEG_RESTRICT pixels_grad,
      const T* INSTSEG_RESTRICT pixels,
      const T* INSTSEG_RESTRICT grad,
      T proposal,
      T margin,
      double* INSTSEG_RESTRICT sums,
      int64_t columns,
      int64_t height,
      int64_t size) {
    constexpr int width = 64 / sizeof(T);
    const T factor = T(-2) * margin;
    for (int64_t y = 0; y < height; ++y, pixels_grad += columns, pixels += columns, grad += size) {
      T first[width] = {}, second[width] = {}; // of one row, in as many parts
      int64_t i = 0;
      for (; i + width <= size; i += width) {
        for (int j = 0; j < width; ++j) {
          cell(pixels_grad[i + j], pixels[i + j], grad[i + j], proposal, factor, first[j], second[j]);
        }
      }
      for (; i < size; ++i) {
        cell(pixels_grad[i], pixels[i], grad[i], proposal, factor, first[i % width], second[i % width]);
      }
      for (int half = width / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) {
          first[j] += first[j + half];
          second[j] += second[j + half];
        }
      }
      sums[0] += first[0];
      sums[1] += second[0];
    }
  }

 private:
  template <typename T>
  INSTSEG_INLINE static void cell(
      T& INSTSEG_RESTRICT pixels_grad, T pixel, T grad, T proposal, T factor, T& first, T& second) {
    const T difference = pixel - proposal, share = grad * difference;
    pixels_grad += factor * share;
    first += share;
    second += share * difference;
  }
};

} // namespace instseg_d2
