"""The predictor: Detectron2's DefaultPredictor as oracle, channel orders, kinds of images, names, errors."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from instseg_d2 import methods
from instseg_d2.errors import CheckpointError, ConfigError
from instseg_d2.inference.image_predictor import to_rgb
from instseg_d2.inference.predictor import Predictor
from instseg_d2.modeling.meta_arch import detect
from instseg_d2.modeling.postprocessing import MASK_FORMATS
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_config, spots_image


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)


def _small_mask_rcnn():
    cfg = detectron2_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.INPUT.MAX_SIZE_TEST = 160
    return cfg


@pytest.mark.parametrize(("input_format", "optimize"), [("BGR", False), ("RGB", True)])
def test_equals_detectron2s_own_predictor(tmp_path, input_format, optimize):
    torch.manual_seed(0)
    cfg = _small_mask_rcnn()
    cfg.INPUT.FORMAT = input_format
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    bgr = np.random.default_rng(0).integers(0, 255, (70, 110, 3), dtype=np.uint8)
    expected = DefaultPredictor(cfg)(bgr)["instances"]
    found = Predictor(cfg, optimize=optimize)(bgr)
    assert len(expected) > 5
    assert found.image_size == (70, 110)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3


def test_detectron2s_models_take_the_same_arguments():
    torch.manual_seed(0)
    model = build_model(_small_mask_rcnn()).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "height": 70, "width": 110}]
    with torch.no_grad():
        expected = model(inputs)[0]["instances"]
    threshold = float(expected.scores.median())
    expected = expected[expected.scores >= threshold]
    full, coded, bare = (detect(model, inputs, threshold, form)[0]["instances"] for form in MASK_FORMATS)
    assert len(expected) > 3
    for found in (full, coded, bare):
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert not found.scores.requires_grad
    assert torch.equal(full.pred_masks, expected.pred_masks)
    assert torch.equal(coded.pred_masks.decode(), expected.pred_masks)
    assert not bare.has("pred_masks")
    with pytest.raises(ValueError, match="masks is 'all'; it must be one of full"):
        detect(model, inputs, masks="all")


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
@pytest.mark.parametrize("kind", ["RGB", "BGR", "RGBA", "BGRA", "PIL", "path", "str"])
def test_every_kind_of_color_image_gives_the_same_objects(tmp_path, input_format, kind):
    rgb = spots_image()
    alpha = np.full((60, 80, 1), 7, np.uint8)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    image = {
        "RGB": rgb,
        "BGR": np.ascontiguousarray(rgb[..., ::-1]),
        "RGBA": np.concatenate([rgb, alpha], 2),
        "BGRA": np.concatenate([rgb[..., ::-1], alpha], 2),
        "PIL": Image.fromarray(rgb),
        "path": tmp_path / "image.png",
        "str": str(tmp_path / "image.png"),
    }[kind]
    path = save_checkpoint(tmp_path / "spots.pth", spots_config(input_format), CLASS_NAMES)
    instances = Predictor.from_checkpoint(path)(image, "RGB" if kind.startswith("RGB") else "BGR")
    assert instances.pred_classes.tolist() == [0, 1]
    assert instances.pred_boxes.tensor.tolist() == [[10, 10, 40, 30], [50, 40, 70, 55]]
    torch.testing.assert_close(instances.scores, torch.tensor([200 / 255, 100 / 255]))
    assert instances.pred_masks[0].sum() == 600
    assert not instances.scores.requires_grad


def test_grey_images_and_batches(checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint)
    grey = np.zeros((30, 40), np.uint8)
    grey[5:10, 5:15] = 255
    for image in (grey, grey[..., None], Image.fromarray(grey)):
        assert sorted(predictor(image).pred_classes.tolist()) == [0, 1]  # bright in red and in blue
    several = predictor.batch([spots_image(), np.zeros((9, 7, 3), np.uint8), grey], "RGB")
    assert [len(instances) for instances in several] == [2, 0, 2]
    assert several[1].pred_masks.shape == (0, 9, 7)
    generated = predictor.batch((image for image in [spots_image(), grey]), "RGB")
    assert [len(instances) for instances in generated] == [2, 2]
    for nothing in ([], (), iter([]), (x for x in [])):
        assert predictor.batch(nothing) == []


def _kinds_of_16_bits(tmp_path, rgb):
    deep = rgb.astype(np.uint16) << 4
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    return {"array": deep, "path": tmp_path / "deep.png", "float": rgb / np.float32(255), "double": deep.astype(float)}


@pytest.mark.parametrize("kind", ["array", "path", "float", "double"])
def test_images_of_more_than_eight_bits(tmp_path, checkpoint, kind):
    rgb = spots_image()
    found = Predictor.from_checkpoint(checkpoint)(_kinds_of_16_bits(tmp_path, rgb)[kind], "RGB")
    torch.testing.assert_close(found.scores, torch.tensor([200 / 255, 100 / 255]))
    assert found.pred_classes.tolist() == [0, 1]


def test_the_range_of_values_is_stored_in_the_checkpoint(tmp_path):
    cfg = spots_config()
    cfg.INPUT.VALUE_RANGE = (0, 8191)  # 12 bits come out half as bright
    weights = save_checkpoint(tmp_path / "spots.pth", cfg, CLASS_NAMES)
    plain = spots_config()
    (tmp_path / "plain.yaml").write_text(plain.dump())
    deep = _kinds_of_16_bits(tmp_path, spots_image())
    for predictor in (
        Predictor.from_checkpoint(weights),
        Predictor.from_checkpoint(weights, str(tmp_path / "plain.yaml")),
        Predictor(cfg, weights),
    ):
        assert predictor.value_range == (0, 8191)
        assert predictor(deep["path"]).scores.tolist() == pytest.approx([100 / 255])  # 50 is below the limit of 60
        assert predictor(deep["array"], "RGB").scores.tolist() == pytest.approx([100 / 255])
        assert predictor(spots_image(), "RGB").scores.tolist() == pytest.approx([200 / 255, 100 / 255])
    overridden = Predictor.from_checkpoint(weights, opts=["INPUT.VALUE_RANGE", "(0, 4095)"])
    assert overridden(deep["path"]).scores.tolist() == pytest.approx([200 / 255, 100 / 255])
    with pytest.raises(ConfigError, match=r"INPUT\.VALUE_RANGE is \(3, 1\); it must be two numbers"):
        Predictor.from_checkpoint(weights, opts=["INPUT.VALUE_RANGE", "(3, 1)"])


def test_resizes_as_the_config_says(tmp_path):
    cfg = spots_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 120, 140
    predictor = Predictor(cfg, save_checkpoint(tmp_path / "spots.pth"))
    record = predictor.preprocess(spots_image(), "RGB")
    assert record["image"].shape == (3, 105, 140)  # 60 x 80, the longest side limited to 140
    assert record["image"].dtype == torch.uint8
    assert (record["height"], record["width"]) == (60, 80)
    instances = predictor(spots_image(), "RGB")
    assert instances.pred_masks.shape == (2, 60, 80)


@pytest.mark.parametrize(
    ("image", "order", "message"),
    [
        (np.zeros((4, 4, 3), complex), "BGR", r"array of numbers .* got ndarray \(4, 4, 3\) complex128"),
        (np.array([["a"]]), "BGR", "got ndarray"),
        (np.zeros((4, 4, 2), np.uint8), "BGR", r"got ndarray \(4, 4, 2\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), "BGR", "got ndarray"),
        (torch.zeros(3, 4, 4), "BGR", "got Tensor"),
        (None, "BGR", "got NoneType"),
        (np.zeros((4, 4, 3), np.uint8), "GBR", "channel_order must be"),
        ("no/such.png", "BGR", "no/such.png"),
    ],
)
def test_other_images_are_refused_in_one_sentence(image, order, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image, order)


def test_exif_orientation_of_pil_images():
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:5] = 255
    turned = Image.fromarray(np.rot90(upright).copy())  # stored a quarter turn to the left
    turned.getexif()[274] = 6  # "rotate by 90 degrees clockwise to see it"
    assert (to_rgb(turned) == upright).all()


def test_explain(checkpoint, tmp_path):
    panels = Predictor.from_checkpoint(checkpoint).explain(spots_image(), max_instances=3, channel_order="RGB")
    assert [title for title, _ in panels] == ["red 0", "red 1", "red 2"]
    assert panels[0][1].max() == 200
    silent = save_checkpoint(tmp_path / "silent.pth", spots_config(explains=False))
    assert Predictor.from_checkpoint(silent).explain(spots_image()) == []


def test_names_and_ids_come_from_the_checkpoint_or_the_data_set(tmp_path, checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint)
    assert predictor.class_names == CLASS_NAMES
    assert (predictor.class_name(1), predictor.class_name(2), predictor.category_id(1)) == ("blue spot", "class 2", 1)

    metadata = MetadataCatalog.get("spots_for_predictor_test")
    metadata.set(thing_classes=CLASS_NAMES, thing_dataset_id_to_contiguous_id={7: 0, 90: 1})
    cfg = spots_config()
    cfg.DATASETS.TEST = ("never_registered", "spots_for_predictor_test")
    nameless = save_checkpoint(tmp_path / "nameless.pth")
    assert Predictor(cfg, nameless).class_names is None  # 80 classes in the config, two in the data set
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    for weights, names in ((nameless, None), (checkpoint, None), (nameless, CLASS_NAMES)):
        predictor = Predictor(cfg, weights, class_names=names)
        assert predictor.class_names == CLASS_NAMES
        assert predictor.category_id(1) == 90
    other = Predictor(cfg, nameless, class_names=["a", "b"])
    assert (other.class_name(1), other.category_id(1)) == ("b", 1)


def test_overrides_may_be_whole_numbers(checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint, opts=["MODEL.FCOS.INFERENCE_TH_TEST", "0"])
    assert predictor.cfg.MODEL.FCOS.INFERENCE_TH_TEST == 0.0


def test_semantic_classes_follow_the_checkpoint(tmp_path):
    path = tmp_path / "spots.pth"
    content = torch.load(save_checkpoint(path, spots_config(), CLASS_NAMES), weights_only=False)
    torch.save({**content, "stuff_names": ["things", "sky", "sea"]}, path)
    file = tmp_path / "config.yaml"
    file.write_text("MODEL:\n  META_ARCHITECTURE: BrightSpots\n")
    predictor = Predictor.from_checkpoint(str(path), str(file))
    assert predictor.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert predictor.stuff_names == ["things", "sky", "sea"]


def test_a_class_agnostic_model_finds_objects(checkpoint, monkeypatch):
    record = methods.Method("BrightSpots", class_agnostic=lambda cfg: True)
    monkeypatch.setitem(methods._METHODS, "BrightSpots", record)
    predictor = Predictor.from_checkpoint(checkpoint)
    assert predictor.class_names == ["object"]
    assert predictor.category_id(0) == 0


def test_config_file_overrides_and_class_count(tmp_path, checkpoint):
    file = tmp_path / "config.yaml"
    file.write_text("MODEL:\n  META_ARCHITECTURE: BrightSpots\nINPUT:\n  FORMAT: RGB\n  MIN_SIZE_TEST: 0\n")
    predictor = Predictor.from_checkpoint(checkpoint, str(file), ["INPUT.MAX_SIZE_TEST", 77])
    assert (predictor.cfg.INPUT.FORMAT, predictor.cfg.INPUT.MAX_SIZE_TEST) == ("RGB", 77)
    assert predictor.cfg.MODEL.FCOS.NUM_CLASSES == 2  # as many as the checkpoint has names
    assert predictor(spots_image(), "RGB").pred_classes.tolist() == [0, 1]
    assert Predictor.from_checkpoint(checkpoint, opts=["TEST.DETECTIONS_PER_IMAGE", "3"]).cfg.INPUT.FORMAT == "BGR"


def test_errors_name_what_is_wrong(tmp_path, checkpoint):
    bare = save_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match=r"bare\.pth contains no config.*--config-file"):
        Predictor.from_checkpoint(bare)
    with pytest.raises(CheckpointError, match="absent"):
        Predictor.from_checkpoint(str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_RL.*SOLVER.BASE_LR"):
        Predictor.from_checkpoint(checkpoint, opts=["SOLVER.BASE_RL", "1"])
    cfg = spots_config()
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT"):
        Predictor(cfg)
    cfg = spots_config()
    cfg.MODEL.META_ARCHITECTURE = "Spotless"
    with pytest.raises(ConfigError, match="Spotless"):
        Predictor(cfg)
    torch.save({"model": {"weight": torch.ones(())}, "cfg": "MODEL:\n  NO_SUCH_KEY: 1\n"}, tmp_path / "newer.pth")
    with pytest.raises(ConfigError, match=r"newer\.pth: its config does not fit.*NO_SUCH_KEY"):
        Predictor.from_checkpoint(str(tmp_path / "newer.pth"))


def test_runs_on_the_cpu_where_there_is_no_gpu(monkeypatch, checkpoint, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predictor = Predictor.from_checkpoint(checkpoint, opts=["MODEL.DEVICE", "cuda"])
    assert predictor.model.weight.device.type == "cpu"
    assert "No GPU" in caplog.text


def test_random_weights_are_announced(caplog):
    Predictor(spots_config(), "")
    assert "random" in caplog.text


def test_jpeg_and_opencv_see_the_same(tmp_path, checkpoint):
    cv2.imwrite(str(tmp_path / "image.png"), spots_image()[..., ::-1])
    predictor = Predictor.from_checkpoint(checkpoint)
    by_path, by_array = predictor(tmp_path / "image.png"), predictor(cv2.imread(str(tmp_path / "image.png")))
    assert torch.equal(by_path.pred_masks, by_array.pred_masks)
    assert torch.equal(by_path.pred_classes, by_array.pred_classes)
