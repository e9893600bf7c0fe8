// Schemas of mask_prob; shapes and units are documented in instseg_d2/ops/mask_prob.py.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(instseg_d2, m) {
  m.def(
      "mask_prob(Tensor pixel_embeddings, Tensor proposal_embeddings, Tensor margins, Tensor? windows, "
      "Tensor image_index) -> Tensor");
  m.def(
      "_mask_prob_backward(Tensor grad, Tensor pixel_embeddings, Tensor proposal_embeddings, Tensor margins, "
      "Tensor? windows, Tensor image_index) -> (Tensor, Tensor, Tensor)");
}
