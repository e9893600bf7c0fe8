// Schemas of mask_prob; shapes and units are documented in instseg_d2/ops/mask_prob.py. Beside the P values comes what
// the backward pass would otherwise have to compute again: with windows, the (M + 1,) places where they begin.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(instseg_d2, m) {
  m.def(
      "mask_prob(Tensor pixel_embeddings, Tensor proposal_embeddings, Tensor margins, Tensor? windows, "
      "Tensor image_index) -> (Tensor, Tensor)");
  m.def(
      "_mask_prob_backward(Tensor grad, Tensor pixel_embeddings, Tensor proposal_embeddings, Tensor margins, "
      "Tensor? windows, Tensor image_index, Tensor offsets, SymInt cells) -> (Tensor, Tensor, Tensor)");
}
