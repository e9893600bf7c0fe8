// Schemas of assemble_instances; shapes and units are documented in instseg_d2/ops/assemble_instances.py.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(instseg_d2, m) {
  m.def(
      "assemble_instances(Tensor score_maps, Tensor windows, SymInt mask_size, SymInt grid, float outside) -> Tensor");
  m.def(
      "_assemble_instances_backward(Tensor grad, Tensor windows, SymInt images, SymInt height, SymInt width, "
      "SymInt grid) -> Tensor");
}
