"""Every method leaves as a file that finds what the model finds."""

import importlib.util
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from instseg_d2.engine import Predictor
from instseg_d2.export import FORMATS, ExportedPredictor, compare, export_verified
from instseg_d2.export.exporters import export_metadata
from instseg_d2.export.parity import reference
from instseg_d2.methods import method_of
from instseg_d2.runtime import Model, read_image
from instseg_d2.runtime.sessions import METADATA
from tests.tiny import tiny_config, tiny_model

METHODS = ("BlendMask", "EmbedMask", "FCOSDetector", "InstanceFCN", "ISTR", "SparseInst")
HAVE = {
    format: all(importlib.util.find_spec(name) is not None for name in names)
    for format, names in {
        "onnx": ("onnx", "onnxscript", "onnxruntime"),
        "openvino": ("onnx", "onnxscript", "openvino"),
        "pt2": (),
    }.items()
}
SIZE = (96, 128)
PANOPTIC = [
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.1,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 30,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
]  # fmt: skip
CLASSIFIED = [
    "MODEL.INSTANCE_FCN.CLASSIFY", True,
    "MODEL.INSTANCE_FCN.CLASSIFIER_SCALE", 64,
    "MODEL.ROI_HEADS.NAME", "SegmentROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", ["res3"],
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.02,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.47,  # boxes of whole cells have an IoU of just 0.5
    "TEST.DETECTIONS_PER_IMAGE", 40,
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index, (height, width) in enumerate(((60, 80), (90, 70))):
        coarse = generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(folder / f"{index}.png")
    return sorted(map(str, folder.iterdir()))


_PREDICTORS = {}


def decided_predictor(name, *opts):
    """
    A predictor with random weights that finds objects of many classes and shapes. Its scores lie apart, and its boxes
    inside the image, because rounding decides about equal scores and about masks beyond the border.
    """
    key = (name, *map(str, opts))
    if key not in _PREDICTORS:
        opts = ["INPUT.MIN_SIZE_TEST", 72, "INPUT.MAX_SIZE_TEST", 128, *opts]
        predictor = Predictor(tiny_config(name, *opts, finding=True), "", optimize=False)
        predictor.model.load_state_dict(tiny_model(name, *opts, finding=True).state_dict())
        generator = torch.Generator().manual_seed(0)
        for parameter, x in predictor.model.named_parameters():
            if "head.scales" in parameter:
                x.data.fill_(0.5 ** int(parameter.split(".")[-1]))
            elif parameter.endswith("box_distances.bias"):
                x.data.fill_(0.4)
            elif parameter.endswith(("head.objectness.weight", "head.class_logits.weight", "mask_kernel.weight")):
                x.data.mul_(30)
            elif parameter.endswith("top_layer.weight"):
                x.data.normal_(std=0.1, generator=generator)
            elif parameter.endswith("cls_score.weight"):
                x.data.normal_(std=1.0, generator=generator)
            elif parameter.endswith("offset.weight"):
                x.data.normal_(std=0.01, generator=generator)
        _PREDICTORS[key] = predictor
    return _PREDICTORS[key]


def graph_parity(predictor, compact, files):
    """What the gate finds for the module that is traced, as it is traced; and that as a predictor."""
    graph = method_of(predictor.cfg).exportable(predictor.model).eval()
    graph.compact = compact
    metadata = export_metadata(predictor, graph, graph.compact_form if compact else "full", SIZE, 2)

    def session(inputs):
        with torch.no_grad(), mock.patch("torch.compiler.is_exporting", return_value=True):
            found = graph(*(torch.from_numpy(x) for x in inputs.values()))
        return {name: x.numpy() for name, x in zip(graph.output_names, found)}

    exported = ExportedPredictor.of(session, metadata)
    return compare(predictor, exported, files, repeats=1), exported


@pytest.mark.parametrize("masks", ["full", "compact"])
@pytest.mark.parametrize("name", METHODS)
def test_graph_finds_what_the_model_finds(name, masks, files):
    """The module that is traced, before it is traced, on two images at once."""
    if name == "FCOSDetector" and masks == "compact":
        pytest.skip("makes no masks")
    parity, exported = graph_parity(decided_predictor(name), masks == "compact", files)
    assert parity.failure == ""
    assert parity.images == 2 * len(files)
    assert parity.detections > 60
    assert parity.masks > 50 or name == "FCOSDetector"
    if name != "FCOSDetector":
        record = exported.preprocess(files[1])
        (coded,), (full,) = exported.predict([record], masks="run_lengths"), exported.predict([record])
        assert torch.equal(coded.pred_masks.decode(), full.pred_masks)
        (without,) = exported.predict([record], masks="none")
        assert not without.has("pred_masks")
        assert (without.scores.diff() <= 0).all()


@pytest.mark.parametrize("masks", ["full", "compact"])
def test_classified_segments(masks, files):
    """InstanceFCN with ROI heads, which choose among its segments."""
    parity, exported = graph_parity(decided_predictor("InstanceFCN", *CLASSIFIED), masks == "compact", files)
    assert parity.failure == ""
    assert parity.masks > 50
    assert len(exported.predict([exported.preprocess(files[0])])[0].pred_classes.unique()) == 3


@pytest.mark.parametrize(
    ("name", "format", "masks"),
    [
        ("BlendMask", "onnx", "crops"),
        ("InstanceFCN", "pt2", "crops"),
        ("ISTR", "pt2", "full"),
        ("SparseInst", "openvino", "canvas"),
    ],
)
def test_files(name, format, masks, files, tmp_path):
    """The file passes its gate; its metadata say what is in it."""
    if not HAVE[format]:
        pytest.skip(f"the packages for {format} are not installed")
    path = tmp_path / f"x{FORMATS[format]}"
    opts = ["MODEL.FCOS.USE_DEFORMABLE", True, *PANOPTIC] if name == "BlendMask" else []
    predictor = decided_predictor(name, *opts)
    parity = export_verified(predictor, str(path), format, files, masks=masks, size=SIZE)
    assert parity.failure == ""
    metadata = ExportedPredictor(str(path), trust=True).metadata
    assert metadata == json.loads(Path(f"{path}.json").read_text())
    assert metadata["method"] == name
    assert metadata["parity"]["detections"] == parity.detections > 30
    assert list(metadata["outputs"])[:3] == ["boxes", "scores", "labels"]
    assert (metadata["masks"] or {}).get("form") == (None if name == "FCOSDetector" else masks)
    if format == "onnx":
        import onnx

        graph = onnx.load(path)
        assert {x.domain for x in graph.graph.node} == {""}, "a node that only this package knows"
        assert METADATA in {x.key for x in graph.metadata_props}
    if name == "BlendMask":
        exported = ExportedPredictor(path)
        assert_same_panoptic(exported, predictor, files[1])
        (expected,) = exported.outputs([exported.preprocess(files[1])])
        assert np.array_equal(Model(path)(read_image(files[1])).sem_seg, expected["sem_seg"].numpy())


def assert_same_panoptic(exported, predictor, file):
    """The file gives PyTorch's semantic and panoptic maps."""
    record = exported.preprocess(file)
    (found,) = exported.outputs([record])
    (expected,) = reference(predictor, [record], SIZE)
    assert len(found["sem_seg"].unique()) > 2
    (ids, segments), (expected_ids, expected_segments) = found["panoptic_seg"], expected["panoptic_seg"]
    assert {x["isthing"] for x in segments} == {True, False}
    assert [x["category_id"] for x in segments] == [x["category_id"] for x in expected_segments]
    assert float((ids == expected_ids).float().mean()) > 0.999
    assert "panoptic_seg" not in exported.outputs([record], masks="none")[0]
