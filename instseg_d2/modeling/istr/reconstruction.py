"""How well codes describe masks. n masks of s x s pixels, c numbers of components."""

from collections.abc import Iterable, Sequence

import torch

from .embedding import MaskEmbedding


@torch.no_grad()
def reconstruction_ious(embedding: MaskEmbedding, mask_batches: Iterable, components: Sequence[int] = ()):
    """
    IoU of each mask with its decoded code, cut at 0.5, in eval mode.

    Args:
        mask_batches: arrays or tensors (b, s, s) of 0 and 1, no mask empty.
        components: instead of the whole code, keep its first c numbers and set the rest to 0, for each of these c.

    Returns:
        (n,) or, with components, (n, len(components)), on the CPU.
    """
    device = next(iter((*embedding.buffers(), *embedding.parameters())), torch.zeros(0)).device
    was_training = embedding.training
    embedding.eval()
    rows = []
    for batch in mask_batches:
        masks = torch.as_tensor(batch, device=device)
        codes = embedding.encode(masks)
        inside = masks > 0
        columns = []
        for count in components or (embedding.dim,):
            kept = codes.clone()
            kept[:, count:] = 0
            decoded = embedding.decode(kept) >= 0.5
            union = (decoded | inside).flatten(1).sum(1)
            columns.append((decoded & inside).flatten(1).sum(1) / union.clamp(min=1))
        rows.append(torch.stack(columns, 1).cpu())
    embedding.train(was_training)
    ious = torch.cat(rows) if rows else torch.zeros(0, max(len(components), 1))
    return ious if components else ious[:, 0]
