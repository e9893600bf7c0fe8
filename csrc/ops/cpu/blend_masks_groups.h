// The masks of each box, together: they share its crop.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../common/blend_masks_checks.h"

namespace instseg_d2 {

// The boxes that masks refer to, each with its masks: masks[first[g]] up to masks[first[g + 1]] for boxes[g].
struct Groups {
  std::vector<int64_t> boxes, first, masks;
};

inline Groups group_by_box(const BlendSizes& sizes, const std::optional<at::Tensor>& box_index) {
  const at::Tensor index = box_index.has_value() ? box_index->contiguous() : at::Tensor();
  const auto box_of = [&](int64_t p) { return index.defined() ? index.const_data_ptr<int64_t>()[p] : p; };
  std::vector<int64_t> place(sizes.boxes + 1, 0); // counts of the boxes before, then where the next mask goes
  for (int64_t p = 0; p < sizes.masks; ++p) {
    const int64_t m = box_of(p);
    check_index_range("blend_masks", "box_index", p, m, sizes.boxes, "M");
    ++place[m + 1];
  }
  Groups groups;
  for (int64_t m = 0; m < sizes.boxes; ++m) {
    if (place[m + 1] > 0) {
      groups.boxes.push_back(m);
      groups.first.push_back(place[m]);
    }
    place[m + 1] += place[m];
  }
  groups.first.push_back(sizes.masks);
  groups.masks.resize(sizes.masks);
  for (int64_t p = 0; p < sizes.masks; ++p) {
    groups.masks[place[box_of(p)]++] = p;
  }
  return groups;
}

} // namespace instseg_d2
