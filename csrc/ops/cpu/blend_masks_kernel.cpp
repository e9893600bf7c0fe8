// blend_masks on the CPU. Every axis is a list of taps, so a crop row is two column-interpolated base rows
// mixed, and an attention row likewise; each source row is interpolated once. The masks of one box share its
// crop. The backward pass first collects the gradient of each box's crop, then adds the crops to the bases,
// box after box: its sums do not depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/blend_masks_checks.h"
#include "blend_masks_groups.h"
#include "blend_masks_planes.h"

namespace instseg_d2 {
namespace {

// One call: values are read as `scalar` and computed with as `T`. A row is K x R values, a crop R rows.
template <typename scalar, typename T>
class BlendMasks {
 public:
  BlendMasks(
      const at::Tensor& bases,
      const at::Tensor& boxes,
      const at::Tensor& batch_index,
      const at::Tensor& attention,
      const std::optional<at::Tensor>& box_index,
      double spatial_scale,
      bool nearest,
      const BlendSizes& sizes)
      : bases_(bases),
        attention_(attention),
        corners_(boxes.to(c10::CppTypeToScalarType<T>::value).contiguous()),
        images_(batch_index.contiguous()),
        scale_(static_cast<T>(spatial_scale)),
        sizes_(sizes),
        groups_(group_by_box(sizes, box_index)),
        size_(sizes.resolution),
        row_(sizes.bases * size_) {
    for (int64_t m = 0; m < sizes.boxes; ++m) {
      check_index_range("blend_masks", "batch_index", m, image(m), sizes.images, "N");
    }
    for (int p = 0; p < sizes.resolution; ++p) {
      taps_.push_back(resize_tap<T>(sizes.attention, sizes.resolution, p, nearest));
    }
  }

  void forward(scalar* out) const {
    at::parallel_for(0, sizes_.masks, 1, [&](int64_t begin, int64_t end) {
      const auto crop = scratch<T>(row_ * size_), logits = scratch<T>(row_);
      const auto inverse = scratch<T>(size_), value = scratch<T>(size_);
      SourceRows<scalar, T> source(taps_, sizes_.bases);
      auto group = std::upper_bound(groups_.first.begin(), groups_.first.end(), begin) - groups_.first.begin() - 1;
      for (int64_t i = begin; i < end; ++i) {
        group += i == groups_.first[group + 1];
        if (i == begin || i == groups_.first[group]) {
          read_crop(groups_.boxes[group], crop.get());
        }
        const int64_t p = groups_.masks[i];
        source.start(planes_of(attention_, attention_.const_data_ptr<scalar>(), p));
        for (int64_t y = 0; y < size_; ++y) {
          const T* blended = crop.get() + y * row_;
          if (sizes_.bases > 1) {
            source.read(taps_[y], logits.get());
            rows<Blend>(logits.get(), inverse.get(), value.get(), blended, sizes_.bases, size_);
            blended = value.get();
          }
          std::copy(blended, blended + size_, out + (p * size_ + y) * size_);
        }
      }
    });
  }

  // Adds to the gradients, both of type T and zero at first.
  void backward(const scalar* grad, const at::Tensor& bases_grad, const at::Tensor& attention_grad) const {
    // Every thread processes some crops at a time, in at most twice the memory of the masks.
    const int64_t count = groups_.boxes.size(), threads = at::get_num_threads();
    const int64_t fitting = std::max(2 * sizes_.masks / sizes_.bases, threads);
    const int64_t chunk = std::min({count, fitting, 32 * threads});
    const auto crops = scratch<T>(chunk * row_ * size_);
    for (int64_t begin = 0; begin < count; begin += chunk) {
      const int64_t end = std::min(begin + chunk, count);
      backward_of_masks(grad, begin, end, crops.get(), attention_grad);
      backward_of_crops(crops.get(), begin, end, bases_grad);
    }
  }

 private:
  int64_t image(int64_t box) const {
    return images_.const_data_ptr<int64_t>()[box];
  }

  Taps<T> axis_of(int64_t box, int axis, int extent) const {
    const T* corners = corners_.const_data_ptr<T>() + 4 * box;
    const RoiAxis<T> samples(corners[axis], corners[axis + 2], scale_, sizes_.resolution);
    Taps<T> taps;
    for (int p = 0; p < sizes_.resolution; ++p) {
      taps.push_back(roi_tap(samples, p, extent));
    }
    return taps;
  }

  void read_crop(int64_t box, T* crop) const {
    const Taps<T> columns = axis_of(box, 0, sizes_.width);
    SourceRows<scalar, T> source(columns, sizes_.bases);
    source.start(planes_of(bases_, bases_.const_data_ptr<scalar>(), image(box)));
    for (const Tap<T>& tap : axis_of(box, 1, sizes_.height)) {
      source.read(tap, crop);
      crop += row_;
    }
  }

  // Gradients of the crops of the groups begin..end into `crops`, and of their masks' attentions.
  void backward_of_masks(
      const scalar* grad, int64_t begin_group, int64_t end_group, T* crops, const at::Tensor& attention_grad) const {
    const auto first = groups_.first.begin();
    // The thread whose share of the masks holds the first one of a box does the whole box.
    at::parallel_for(first[begin_group], first[end_group], 1, [&](int64_t begin, int64_t end) {
      const auto crop = scratch<T>(row_ * size_), weights = scratch<T>(row_);
      const auto inverse = scratch<T>(size_), value = scratch<T>(size_), upper = scratch<T>(size_);
      SourceRows<scalar, T> source(taps_, sizes_.bases);
      SumRows<T> sums(taps_, sizes_.bases);
      auto group = std::lower_bound(first + begin_group, first + end_group, begin) - first;
      for (; group < end_group && first[group] < end; ++group) {
        T* crop_grad = crops + (group - begin_group) * row_ * size_;
        std::fill(crop_grad, crop_grad + row_ * size_, T(0));
        read_crop(groups_.boxes[group], crop.get());
        for (int64_t i = first[group]; i < first[group + 1]; ++i) {
          const int64_t p = groups_.masks[i];
          source.start(planes_of(attention_, attention_.const_data_ptr<scalar>(), p));
          sums.start(planes_of(attention_grad, attention_grad.data_ptr<T>(), p));
          for (int64_t y = 0; y < size_; ++y) {
            const scalar* from = grad + (p * size_ + y) * size_;
            const T* blended = crop.get() + y * row_;
            std::copy(from, from + size_, upper.get());
            if (sizes_.bases == 1) {
              rows<Add>(crop_grad + y * row_, upper.get(), T(1), size_);
              continue;
            }
            source.read(taps_[y], weights.get());
            rows<Blend>(weights.get(), inverse.get(), value.get(), blended, sizes_.bases, size_);
            rows<BlendBackward>(
                weights.get(), crop_grad + y * row_, inverse.get(), value.get(), blended, upper.get(),
                sizes_.bases, size_);
            sums.add(taps_[y], weights.get(), 0, sizes_.attention);
          }
          sums.finish();
        }
      }
    });
  }

  // Adds the crops' gradients to that of the bases: a thread owns a band of rows of some bases in every image.
  void backward_of_crops(const T* crops, int64_t begin_group, int64_t end_group, const at::Tensor& bases_grad) const {
    const int64_t bands = (at::get_num_threads() + sizes_.bases - 1) / sizes_.bases;
    at::parallel_for(0, sizes_.bases * bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin_group; group < end_group; ++group) {
        const int64_t box = groups_.boxes[group];
        const Taps<T> columns = axis_of(box, 0, sizes_.width), lines = axis_of(box, 1, sizes_.height);
        Planes<T> target = planes_of(bases_grad, bases_grad.data_ptr<T>(), image(box));
        SumRows<T> sums(columns, 1);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t k = task / bands, band = task % bands;
          sums.start({target.data + k * target.plane, target.plane, target.row, target.column});
          const T* values = crops + (group - begin_group) * row_ * size_ + k * size_;
          for (const Tap<T>& tap : lines) {
            sums.add(tap, values, band * sizes_.height / bands, (band + 1) * sizes_.height / bands);
            values += row_;
          }
          sums.finish();
        }
      }
    });
  }

  const at::Tensor &bases_, &attention_;
  const at::Tensor corners_, images_;
  const T scale_;
  const BlendSizes sizes_;
  const Groups groups_;
  const int64_t size_, row_;
  Taps<T> taps_;
};

at::Tensor blend_masks_cpu(
    const at::Tensor& bases,
    const at::Tensor& boxes,
    const at::Tensor& batch_index,
    const at::Tensor& attention,
    const std::optional<at::Tensor>& box_index,
    int64_t resolution,
    double scale,
    bool nearest) {
  const BlendSizes sizes = check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution);
  const at::Tensor out = at::empty({sizes.masks, resolution, resolution}, bases.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks", [&] {
    BlendMasks<scalar_t, at::opmath_type<scalar_t>>(
        bases, boxes, batch_index, attention, box_index, scale, nearest, sizes)
        .forward(out.data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> blend_masks_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& bases,
    const at::Tensor& boxes,
    const at::Tensor& batch_index,
    const at::Tensor& attention,
    const std::optional<at::Tensor>& box_index,
    double scale,
    bool nearest) {
  check_blend_masks_grad(grad, bases, attention);
  const BlendSizes sizes = check_blend_masks(bases, boxes, batch_index, attention, box_index, grad.size(1));
  const auto type = at::toOpMathType(bases.scalar_type());
  const at::Tensor bases_grad = at::zeros_like(bases, type), attention_grad = at::zeros_like(attention, type);
  const at::Tensor masks_grad = grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bases.scalar_type(), "blend_masks_backward", [&] {
    BlendMasks<scalar_t, at::opmath_type<scalar_t>>(
        bases, boxes, batch_index, attention, box_index, scale, nearest, sizes)
        .backward(masks_grad.const_data_ptr<scalar_t>(), bases_grad, attention_grad);
  });
  return {bases_grad.to(bases.scalar_type()), attention_grad.to(attention.scalar_type())};
}

} // namespace

TORCH_LIBRARY_IMPL(instseg_d2, CPU, m) {
  m.impl("blend_masks", TORCH_FN(blend_masks_cpu));
  m.impl("_blend_masks_backward", TORCH_FN(blend_masks_backward_cpu));
}

} // namespace instseg_d2
