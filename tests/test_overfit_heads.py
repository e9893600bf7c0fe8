"""
Each head inside a small Mask R-CNN overfits eight images of shapes: five to ten minutes each, where INSTSEG_OVERFIT is
set. The goal of 70 is not shown yet: BlendMaskHead alone was trained, with other settings, and came to 45.7.
"""

import os

import pytest
import torch

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes import make_shapes
from instseg_d2.engine import Trainer

SETTINGS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BASIS_MODULE.NORM", "BN",
    "MODEL.BASIS_MODULE.CONVS_DIM", 64,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.EMBED_MASK.MASK_NUM_CONVS", 1,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "SOLVER.WARMUP_ITERS", 20,
    "SOLVER.WEIGHT_DECAY", 0.0001,
    "INPUT.MIN_SIZE_TRAIN", (224,),
    "INPUT.MAX_SIZE_TRAIN", 336,
    "INPUT.MIN_SIZE_TEST", 224,
    "INPUT.MAX_SIZE_TEST", 336,
    "INPUT.RANDOM_FLIP", "none",
    "DATALOADER.NUM_WORKERS", 0,
]  # fmt: skip
WHOLE_IMAGE = ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
# iterations, learning rate, overrides
HEADS = {
    "BlendMaskHead": (600, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "BlendMaskHead", *WHOLE_IMAGE,
        "MODEL.BLEND_MASK_HEAD.ATTN_CONVS", 2,
    ]),
    "EmbedMaskHead": (600, 0.002, ["MODEL.ROI_MASK_HEAD.NAME", "EmbedMaskHead", *WHOLE_IMAGE]),
    "AssembleMaskHead": (600, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead", *WHOLE_IMAGE,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True,
    ]),
    "MaskEmbeddingHead": (600, 0.002, [
        "MODEL.ROI_MASK_HEAD.NAME", "MaskEmbeddingHead",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
        "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT",
    ]),
    "SparseInstHeads": (600, 0.001, [
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
    "ISTRHeads": (600, 0.0005, [
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


def overfit(folder, root, iterations, rate, opts):
    """Mask AP of the small Mask R-CNN with overrides, on the eight images that it was trained on."""
    json_file = make_shapes(folder / "shapes", "train", 8, seed=1)
    name = f"eight_shapes_{folder.name}"
    register_coco(name, json_file, folder / "shapes" / "images")
    cfg = load_config(
        str(root / "configs/quick/maskrcnn_shapes.yaml"),
        [
            *SETTINGS,
            "DATASETS.TRAIN", (name,),
            "DATASETS.TEST", (name,),
            "OUTPUT_DIR", str(folder / "output"),
            "SOLVER.MAX_ITER", iterations,
            "SOLVER.BASE_LR", rate,
            *opts,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names(name)))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.results["segm"]["AP"]


@pytest.mark.slow
@pytest.mark.skipif("INSTSEG_OVERFIT" not in os.environ, reason="INSTSEG_OVERFIT is not set")
@pytest.mark.parametrize("head", HEADS)
def test_overfitting_eight_images(tmp_path, request, head):
    assert overfit(tmp_path, request.config.rootpath, *HEADS[head]) >= 70
