"""
Each method and each head learns two images of two large objects within a hundred steps of the Trainer.

A full box instead of a mask has an IoU of 0.5 here, so an AP of at most 10. Results: projects/benchmarks.md.
"""

import importlib.util

import pytest

from instseg_d2.apps.inputs import find_inputs
from instseg_d2.engine import Predictor
from instseg_d2.export import ExportedPredictor, compare_on_images, export_verified
from tests.learning.overfitting import SIDE, overfit_large_shapes

# A ResNet-50 of a quarter of the width, cheaper than a ResNet-18.
THIN = [
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 16,
    "MODEL.RESNETS.NORM", "BN",
]  # fmt: skip
SPARSE_INST = [
    "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 64,
    "MODEL.SPARSE_INST.DECODER.NAME", "GroupIAMDecoder",
    "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 8,
    "MODEL.SPARSE_INST.DECODER.KERNEL_DIM", 64,
    "MODEL.SPARSE_INST.DECODER.INST.DIM", 64,
    "MODEL.SPARSE_INST.DECODER.INST.CONVS", 2,
    "MODEL.SPARSE_INST.DECODER.MASK.DIM", 64,
    "MODEL.SPARSE_INST.DECODER.MASK.CONVS", 2,
]  # fmt: skip
DCT = ["MODEL.ISTR.MASK_ENCODING_METHOD", "DCT", "MODEL.ISTR.MASK_FEAT_DIM", 60, "MODEL.ISTR.MASK_SIZE", 28]
ISTR = [
    *DCT,
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.ISTR.NUM_PROPOSALS", 8,
    "MODEL.ISTR.HIDDEN_DIM", 32,
    "MODEL.ISTR.NHEADS", 4,
    "MODEL.ISTR.DIM_FEEDFORWARD", 128,
    "MODEL.ISTR.DIM_DYNAMIC", 8,
    "MODEL.ISTR.NUM_CLS", 1,
    "MODEL.ISTR.NUM_REG", 1,
    "MODEL.ISTR.NUM_HEADS", 1,
]  # fmt: skip
RCNN = [
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.BASIS_MODULE.NORM", "BN",
    "MODEL.BASIS_MODULE.CONVS_DIM", 32,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.EMBED_MASK.MASK_NUM_CONVS", 1,
]  # fmt: skip
WHOLE_IMAGE = [*RCNN, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
WITHOUT_PROPOSALS = [*RCNN, "MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals"]
# quick recipe, iterations, learning rate, overrides, result and what it must reach
CASES = {
    "FCOSDetector": ("blendmask", 60, 0.006, ["MODEL.META_ARCHITECTURE", "FCOSDetector"], "bbox/AP", 50),
    "BlendMask": ("blendmask", 60, 0.006, [], "segm/AP", 50),
    "EmbedMask": ("embedmask", 60, 0.006, [], "segm/AP", 50),
    "InstanceFCN": ("instancefcn", 80, 0.006, ["MODEL.INSTANCE_FCN.SCALES_TEST", (SIDE,)], "proposals/AR@10", 60),
    "SparseInst": ("sparseinst", 60, 0.01, SPARSE_INST, "segm/AP", 50),
    "ISTR": ("istr", 50, 0.006, ISTR, "segm/AP", 50),
    "BlendMaskHead": ("maskrcnn", 80, 0.006, [
        *WHOLE_IMAGE,
        "MODEL.ROI_MASK_HEAD.NAME", "BlendMaskHead",
        "MODEL.BLEND_MASK_HEAD.ATTN_CONVS", 2,
    ], "segm/AP", 50),
    "EmbedMaskHead": ("maskrcnn", 80, 0.006, [
        *WHOLE_IMAGE,
        "MODEL.ROI_MASK_HEAD.NAME", "EmbedMaskHead",
    ], "segm/AP", 50),
    "AssembleMaskHead": ("maskrcnn", 100, 0.01, [
        *WHOLE_IMAGE,
        "MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV", 2,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True,
        "MODEL.ASSEMBLE_MASK_HEAD.IN_FEATURE", "p2",
    ], "segm/AP", 50),
    "MaskEmbeddingHead": ("maskrcnn", 80, 0.006, [
        *RCNN,
        *DCT,
        "MODEL.ROI_MASK_HEAD.NAME", "MaskEmbeddingHead",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
    ], "segm/AP", 50),
    "SparseInstHeads": ("maskrcnn", 80, 0.002, [
        *WITHOUT_PROPOSALS,
        *SPARSE_INST,
        "MODEL.ROI_HEADS.NAME", "SparseInstHeads",
        "MODEL.BACKBONE.NAME", "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
    ], "segm/AP", 50),
    "ISTRHeads": ("maskrcnn", 100, 0.006, [
        *WITHOUT_PROPOSALS,
        *ISTR,
        "MODEL.ROI_HEADS.NAME", "ISTRHeads",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0,
    ], "segm/AP", 50),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_learning_large_shapes(tmp_path, request, name):
    method, iterations, rate, opts, result, goal = CASES[name]
    config_file = request.config.rootpath / f"configs/quick/{method}_shapes.yaml"
    task, metric = result.split("/")
    assert overfit_large_shapes(tmp_path, config_file, iterations, rate, [*THIN, *opts])[task][metric] >= goal
    if name == "BlendMask" and all(importlib.util.find_spec(x) for x in ("onnx", "onnxscript", "onnxruntime")):
        check_eight_bits(tmp_path)


def check_eight_bits(folder):
    """A trained model passes both gates in 8 bits, by its AP and by its detections, and is smaller."""
    predictor = Predictor.from_checkpoint(str(folder / "output" / "model_final.pth"), "", ["MODEL.DEVICE", "cpu"])
    path, data = folder / "eight_bits.onnx", f"shapes_{folder.name}"
    files = find_inputs([data])
    options = {"size": (SIDE, SIDE), "masks": "crops", "calibration": files * 5, "data": data}
    by_ap = export_verified(predictor, str(path), "onnx", files, **options)
    assert by_ap.metric == "segm AP"
    exported = ExportedPredictor(str(path))
    assert exported.metadata["precision"] == "int8"
    assert exported.metadata["calibration_images"] == 5 * len(files)
    by_detections = compare_on_images(predictor, exported, files)
    assert by_detections.failure == ""
    assert by_detections.detections == 4
    weights = sum(x.numel() for x in predictor.model.parameters())
    assert path.stat().st_size < 3 * weights  # of 4 bytes each before; a small file is largely graph
