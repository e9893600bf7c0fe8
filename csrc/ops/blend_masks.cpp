// Schemas of blend_masks; shapes and units are documented in instseg_d2/ops/blend_masks.py.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(instseg_d2, m) {
  m.def(
      "blend_masks(Tensor bases, Tensor boxes, Tensor batch_index, Tensor attention, Tensor? box_index, "
      "SymInt resolution, float spatial_scale, bool nearest) -> Tensor");
  m.def(
      "_blend_masks_backward(Tensor grad, Tensor bases, Tensor boxes, Tensor batch_index, Tensor attention, "
      "Tensor? box_index, float spatial_scale, bool nearest) -> (Tensor, Tensor)");
}
