"""Detectron2's own models train, are evaluated and predict through the scripts of this package."""

import importlib.util
import json
import sys

import pytest
import torch
from detectron2.data import MetadataCatalog

from instseg_d2.commands import parse, run
from instseg_d2.commands.train import work
from instseg_d2.config import load_config, set_num_classes
from instseg_d2.errors import ConfigError
from instseg_d2.layers import DeformConv
from instseg_d2.modeling.build import build
from tests.scripts import ROOT, registered_shapes, restore_logging  # noqa: F401 (a fixture)

CONFIG = str(ROOT / "configs" / "quick" / "maskrcnn_shapes.yaml")
DATA = "few_shapes_of_detectron2_models"
SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
    "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "INPUT.MIN_SIZE_TEST", "96",
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "2",
    "DATASETS.TRAIN", f"('{DATA}',)",
    "DATASETS.TEST", f"('{DATA}',)",
]  # fmt: skip
# A user's version of a file in Detectron2's projects/PointRend/configs/InstanceSegmentation.
POINT_REND = """
MODEL:
  ROI_MASK_HEAD: {NAME: PointRendMaskHead, POOLER_TYPE: "", CONV_DIM: 32, FC_DIM: 32, NUM_FC: 1, POINT_HEAD_ON: True}
  POINT_HEAD: {NAME: StandardPointHead, FC_DIM: 16, SUBDIVISION_STEPS: 2}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with registered_shapes(tmp_path_factory.mktemp("shapes"), **{DATA: 3}) as folders:
        yield folders[DATA]


def point_rend(folder):
    path = folder / "point_rend.yaml"
    path.write_text(f"_BASE_: {CONFIG}{POINT_REND}")
    return str(path)


def train_and_look(config, images, tmp_path):
    """Train two steps, evaluate the checkpoint, run the demo from the checkpoint alone; the results of both."""
    out = tmp_path / "run"
    work(parse("train", ["--config-file", config, *SMALL, "OUTPUT_DIR", str(out)]))
    trained = json.loads((out / "inference" / "results.json").read_text())
    final, again = str(out / "model_final.pth"), tmp_path / "again"
    words = ["--config-file", config, "--eval-only", *SMALL, "OUTPUT_DIR", str(again), "MODEL.WEIGHTS", final]
    work(parse("train", words))
    assert json.loads((again / "inference" / "results.json").read_text()) == trained
    assert {"AP", "AP50", "APs"} <= set(trained["segm"])
    words = ["--weights", final, "--input", str(images), "--output", str(tmp_path / "demo"), "--score-threshold", "0"]
    assert run("predict", words) == 0
    state = torch.load(final)
    losses = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    return state, losses[0], json.loads((tmp_path / "demo" / "results.json").read_text())


def test_mask_rcnn(images, tmp_path):
    state, losses, results = train_and_look(CONFIG, images, tmp_path)
    assert {"loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
    assert state["class_names"] == list(MetadataCatalog.get(DATA).thing_classes)
    assert state["model"]["roi_heads.mask_head.predictor.weight"].shape[0] == 6
    assert results
    assert {"segmentation", "bbox", "category_name"} <= set(results[0])


def test_point_rend(images, tmp_path):
    pytest.importorskip("detectron2.projects.point_rend")
    state, losses, results = train_and_look(point_rend(tmp_path), images, tmp_path)
    assert "loss_mask_point" in losses
    assert state["model"]["roi_heads.mask_head.point_head.predictor.weight"].shape[0] == 6
    assert results


def test_point_rend_values(tmp_path):
    pytest.importorskip("detectron2.projects.point_rend")
    path = point_rend(tmp_path)
    cfg = load_config(path, ["MODEL.POINT_HEAD.NUM_FC", 2])
    assert (cfg.MODEL.POINT_HEAD.FC_DIM, cfg.MODEL.POINT_HEAD.NUM_FC) == (16, 2)
    set_num_classes(cfg, 4)
    assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == 4
    assert "POINT_HEAD" not in load_config(CONFIG).MODEL


def test_point_rend_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.projects.point_rend", None)
    with pytest.raises(ConfigError, match=r"MODEL\.POINT_HEAD belongs to Detectron2's project PointRend, which"):
        load_config(point_rend(tmp_path))


def test_deformable_convolutions():
    """Detectron2's need its compiled library; torchvision's do not."""
    opts = ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50]
    cfg = load_config("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml", opts)
    if importlib.util.find_spec("detectron2._C") is None:
        with pytest.raises(ConfigError, match=r"needs an operator of Detectron2's compiled library.*is not avail"):
            build(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone", "MODEL.FCOS.TOP_LEVELS", 1])
    with torch.device("meta"):
        model = build(cfg)
    found = [name for name, module in model.backbone.named_modules() if isinstance(module, DeformConv)]
    assert len(found) == 4 + 6 + 3


def test_names_of_the_model_zoo():
    cfg = load_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.SOLVER.MAX_ITER, cfg.MODEL.RESNETS.DEPTH) == ("GeneralizedRCNN", 90000, 50)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file, neither here nor in this package"):
        load_config("none.yaml")
