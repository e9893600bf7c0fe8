"""What every method takes as ground truth."""

import pytest
import torch

from instseg_d2.errors import ConfigError
from tests import tiny
from tests.modeling.embedmask.test_embedmask import tiny_embedmask
from tests.modeling.sparseinst.test_sparseinst import tiny_model as tiny_sparseinst

METHODS = {"BlendMask": tiny.tiny_model, "EmbedMask": tiny_embedmask, "SparseInst": tiny_sparseinst}


@pytest.mark.parametrize("method", METHODS)
def test_images_without_objects_need_no_masks(method):
    """Detectron2's mapper gives gt_masks to images with objects alone."""
    losses = []
    for strip in (False, True):
        model, batch = METHODS[method](), tiny.random_batch([0, 2])
        if strip:
            batch[0]["instances"].remove("gt_masks")
        losses.append(model(batch))
        assert batch[0]["instances"].has("gt_masks") != strip
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("method", METHODS)
def test_objects_without_masks_are_told_of(method):
    batch = tiny.random_batch([0, 2])
    batch[1]["instances"].remove("gt_masks")
    with pytest.raises(ConfigError, match=rf"{method} trains on masks: set MODEL\.MASK_ON"):
        METHODS[method]()(batch)
