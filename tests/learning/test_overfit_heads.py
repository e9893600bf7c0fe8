"""
Each head inside a small Mask R-CNN overfits eight images of shapes: five to ten minutes each, if INSTSEG_OVERFIT is
set. The short form is test_learning.py.
"""

import os

import pytest

from tests.learning.overfitting import overfit

SETTINGS = [
    "MODEL.BASIS_MODULE.NORM", "BN",
    "MODEL.BASIS_MODULE.CONVS_DIM", 64,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.EMBED_MASK.MASK_NUM_CONVS", 1,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5,
    "SOLVER.OPTIMIZER", "ADAMW",
    "SOLVER.BETAS", (0.9, 0.999),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice",
    "SOLVER.WEIGHT_DECAY", 0.0001,
]  # fmt: skip
WHOLE_IMAGE = ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
# shorter side, iterations, learning rate, overrides
HEADS = {
    "BlendMaskHead": (256, 900, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "BlendMaskHead", *WHOLE_IMAGE,
        "MODEL.BLEND_MASK_HEAD.ATTN_CONVS", 2,
    ]),
    "EmbedMaskHead": (256, 700, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "EmbedMaskHead", *WHOLE_IMAGE,
        "SOLVER.FREEZE_NORMS_ITER", 450,
    ]),
    "AssembleMaskHead": (256, 800, 0.002, [
        "SOLVER.FREEZE_NORMS_ITER", 500,
        "MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead", *WHOLE_IMAGE,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True,
    ]),
    "MaskEmbeddingHead": (256, 800, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "MaskEmbeddingHead",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
        "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT",
    ]),
    "SparseInstHeads": (288, 600, 0.001, [
        "SOLVER.FREEZE_NORMS_ITER", 400,
        "MODEL.ROI_HEADS.NAME", "SparseInstHeads",
        "MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals",
        "MODEL.BACKBONE.NAME", "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
        "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 128,
        "MODEL.SPARSE_INST.DECODER.NAME", "GroupIAMDecoder",
        "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 40,
        "MODEL.SPARSE_INST.DECODER.KERNEL_DIM", 64,
        "MODEL.SPARSE_INST.DECODER.INST.DIM", 128,
        "MODEL.SPARSE_INST.DECODER.INST.CONVS", 2,
        "MODEL.SPARSE_INST.DECODER.MASK.DIM", 128,
        "MODEL.SPARSE_INST.DECODER.MASK.CONVS", 2,
    ]),
    "ISTRHeads": (256, 1500, 0.0005, [
        "SOLVER.FREEZE_NORMS_ITER", 900,
        "MODEL.ROI_HEADS.NAME", "ISTRHeads",
        "MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals",
        "MODEL.ISTR.NUM_PROPOSALS", 40,
        "MODEL.ISTR.HIDDEN_DIM", 64,
        "MODEL.ISTR.DIM_FEEDFORWARD", 256,
        "MODEL.ISTR.DIM_DYNAMIC", 32,
        "MODEL.ISTR.NUM_CLS", 1,
        "MODEL.ISTR.NUM_REG", 2,
        "MODEL.ISTR.NUM_HEADS", 4,
    ]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif("INSTSEG_OVERFIT" not in os.environ, reason="INSTSEG_OVERFIT is not set")
@pytest.mark.parametrize("head", HEADS)
def test_overfitting_eight_images(tmp_path, request, head):
    side, iterations, rate, opts = HEADS[head]
    config_file = request.config.rootpath / "configs/quick/maskrcnn_shapes.yaml"
    assert overfit(tmp_path, config_file, side, iterations, rate, [*SETTINGS, *opts])["segm"]["AP"] >= 70
