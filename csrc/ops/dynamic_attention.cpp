// Schema of dynamic_attention; shapes are documented in instseg_d2/ops/dynamic_attention.py. Inference only.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(instseg_d2, m) {
  m.def(
      "dynamic_attention(Tensor rois, Tensor matrices, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, "
      "float epsilon) -> Tensor");
}
