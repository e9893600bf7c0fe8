"""Heads inside Detectron2's detectors leave as files that find what Detectron2 finds."""

import json

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from instseg_d2.engine import Predictor
from instseg_d2.errors import ConfigError
from instseg_d2.export import export, export_verified
from instseg_d2.layers import pool_boxes
from instseg_d2.modeling.exportable import shared_copy
from instseg_d2.modeling.rcnn_exportable import check_heads
from tests.export.test_methods import HAVE, SIZE, assert_same_panoptic, files, graph_parity  # noqa: F401 (a fixture)
from tests.tiny import tiny_config

CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
FCOS = ["MODEL.PROPOSAL_GENERATOR.NAME", "FCOS", "MODEL.FCOS.INFERENCE_TH_TEST", 0.0]
FCOS += [
    "MODEL.FCOS.NORM",
    "none",
    "MODEL.FCOS.NUM_CLS_CONVS",
    1,
    "MODEL.FCOS.NUM_BOX_CONVS",
    1,
    "MODEL.FCOS.POST_NMS_TOPK_TEST",
    50,
]
NO_PROPOSALS = ["MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals"]
DCT = ["MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"]
PANOPTIC = [
    "MODEL.META_ARCHITECTURE", "PanopticFPN",
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.1,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 30,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
]  # fmt: skip


def head(name, *opts, pooled=False):
    return ["MODEL.ROI_MASK_HEAD.NAME", name, *([] if pooled else ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]), *opts]


MODELS = {
    "Mask R-CNN": [],
    "Faster R-CNN": ["MODEL.MASK_ON", False],
    "PanopticFPN": PANOPTIC,
    "blend": head("BlendMaskHead"),
    "blend in a cascade": head("BlendMaskHead", *CASCADE),
    "blend on FCOS": head("BlendMaskHead", *FCOS),
    "embed": head("EmbedMaskHead"),
    "embedded codes": head("MaskEmbeddingHead", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28, *DCT, pooled=True),
    "assemble": head("AssembleMaskHead", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
    "assemble each class": head("AssembleMaskHead"),
    "ISTR": [*NO_PROPOSALS, "MODEL.ROI_HEADS.NAME", "ISTRHeads", *DCT],
    "SparseInst": [*NO_PROPOSALS, "MODEL.ROI_HEADS.NAME", "SparseInstHeads"],
}


@BACKBONE_REGISTRY.register()
class SmallPyramid(Backbone):
    """A pyramid of few layers, because large graphs take long; with values that spread, because equal ones are ties."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 4, 4)
        self.steps = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3, 2, 1) for _ in range(5))
        self._out_features = [f"p{level}" for level in range(2, 8)]

    def forward(self, x):
        maps = [self.stem(x)]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return dict(zip(self._out_features, (F.layer_norm(x, x.shape[1:]) for x in maps)))

    def output_shape(self):
        return {name: ShapeSpec(channels=32, stride=4 << index) for index, name in enumerate(self._out_features)}

    @property
    def size_divisibility(self):
        return 32


SPREAD = {  # ends of the names of weights -> standard deviation
    "rpn_head.objectness_logits.weight": 0.3,
    "rpn_head.anchor_deltas.weight": 0.03,
    "cls_score.weight": 0.5,
    "bbox_pred.weight": 0.2,
    "mask_head.predictor.weight": 1.0,
    "score_maps.weight": 1.0,
    "attention.weight": 0.3,
    "proposal_generator.head.class_logits.weight": 0.3,
    "instance_branch.iam_conv.weight": 0.3,
    "instance_branch.class_logits.weight": 1.0,
    "instance_branch.mask_kernel.weight": 0.2,
    "heads.0.class_logits.weight": 0.3,
    "branch.layers.6.weight": 2.0,
}
_PREDICTORS = {}


def decided_heads(name, *opts):
    """`decided_predictor` of one of MODELS."""
    key = (name, *map(str, opts))
    if key not in _PREDICTORS:
        opts = [
            "MODEL.BACKBONE.NAME", "SmallPyramid",
            "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [24], [32], [48], [64]],
            "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
            "MODEL.ISTR.NUM_HEADS", 1,
            "MODEL.ISTR.NUM_PROPOSALS", 30,
            "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 30,
            "TEST.DETECTIONS_PER_IMAGE", 30,
            "INPUT.MIN_SIZE_TEST", 72,
            "INPUT.MAX_SIZE_TEST", 128,
            *MODELS[name],
            *opts,
        ]  # fmt: skip
        torch.manual_seed(0)
        predictor = Predictor(tiny_config("MaskRCNN", *opts), "", optimize=False)
        for parameter, x in predictor.model.named_parameters():
            for end, deviation in SPREAD.items():
                if parameter.endswith(end):
                    x.data.normal_(std=deviation)
            if parameter.endswith("box_distances.bias"):
                x.data.fill_(2.0)
            elif parameter.endswith("initial_boxes.weight"):
                x.data = torch.cat([torch.rand(len(x), 2), 0.2 + 0.6 * torch.rand(len(x), 2)], dim=1)
        _PREDICTORS[key] = predictor
    return _PREDICTORS[key]


@pytest.mark.parametrize("name", MODELS)
def test_graph_finds_what_detectron2_finds(name, files):  # noqa: F811
    """The module that is traced, before it is traced, on two images at once."""
    parity, exported = graph_parity(decided_heads(name), False, files)
    assert parity.failure == ""
    assert parity.detections > 60
    if name == "PanopticFPN":
        assert_same_panoptic(exported, decided_heads(name), files[1])
    assert parity.masks > 50 or name == "Faster R-CNN"


def test_compact_masks(files):  # noqa: F811
    for name in ("blend", "SparseInst"):
        parity, _ = graph_parity(decided_heads(name), True, files)
        assert parity.failure == ""


def test_file(files, tmp_path):  # noqa: F811
    """The file passes its gate, and holds standard operations only."""
    if not HAVE["onnx"]:
        pytest.skip("the packages for onnx are not installed")
    import onnx

    path = tmp_path / "x.onnx"
    opts = ["MODEL.RPN.IN_FEATURES", ["p3", "p4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]]]
    parity = export_verified(decided_heads("blend", *opts), path, "onnx", files, size=SIZE)
    assert parity.failure == ""
    metadata = json.loads(path.with_name("x.onnx.json").read_text())
    assert metadata["parity"]["detections"] == parity.detections > 30
    assert {x.domain for x in onnx.load(path).graph.node} == {""}


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("levels", [1, 3])
def test_pooling_is_detectron2s(levels, kind):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 32 >> level, 40 >> level, generator=generator) for level in range(levels)]
    corners = 300 * torch.rand(2, 30, 2, generator=generator) - 60
    boxes = torch.cat([corners, corners + 400 * torch.rand(2, 30, 2, generator=generator) ** 3], dim=2)
    boxes = [Boxes(boxes[0]), Boxes(boxes[1, :7])]
    pooler = ROIPooler(5, [1 / (8 << level) for level in range(levels)], 0, kind)
    torch.testing.assert_close(pool_boxes(pooler, maps, boxes), pooler(maps, boxes))
    pooled = []
    for one in pooler.level_poolers:
        one.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[1]))
    pool_boxes(pooler, maps, boxes)
    assert all((x[:, 3:] > x[:, 1:3]).all() for x in pooled), "OpenVINO's RoIAlign of an empty box is NaN"


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (
            ["MODEL.ROI_HEADS.NAME", "SegmentROIHeads"],
            "SegmentROIHeads cannot be exported: MODEL.ROI_HEADS.NAME must",
        ),
        (["MODEL.KEYPOINT_ON", True], "keypoints cannot be exported: set MODEL.KEYPOINT_ON to False"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"], "set POOLER_TYPE to ROIAlignV2 or ROIAlign"),
    ],
)
def test_what_cannot_be_exported(opts, words):
    predictor = Predictor(tiny_config("MaskRCNN", "MODEL.BACKBONE.NAME", "SmallPyramid", *opts), "", optimize=False)
    with pytest.raises(ConfigError, match=words):
        export(predictor, "pt2", size=SIZE)


def test_mask_heads_of_others_cannot_be_exported():
    heads = shared_copy(decided_heads("Mask R-CNN").model.roi_heads)
    heads.mask_head = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"Identity cannot be exported: choose another MODEL\.ROI_MASK_HEAD\.NAME"):
        check_heads(heads)
