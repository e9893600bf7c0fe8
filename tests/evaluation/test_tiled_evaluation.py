"""TEST.TILE: evaluation, prediction and exported models cut the images, for a network that sees only small ones."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from instseg_d2.apps.batch_predictor import BatchPredictor
from instseg_d2.commands import run
from instseg_d2.config import check_config, load_config
from instseg_d2.data import register_coco
from instseg_d2.engine import Trainer
from instseg_d2.errors import ConfigError
from instseg_d2.export import ExportedPredictor, accuracy, compare_on_data, export
from instseg_d2.export.exporters import Export, default_size
from instseg_d2.inference.predictor import ModelPredictor, Predictor
from instseg_d2.inference.tiles import TiledPredictor, in_tiles, model_for_test, seen_by_network
from tests.bright_spots import CLASS_NAMES, BrightSpots, save_checkpoint, spots_config
from tests.coco_sets import polygon
from tests.tiny import tiny_config

# Objects x, y, width, height of two images: over a seam of tiles of 64 with an overlap of 0.5, inside one, over many.
BOXES = [[(50, 20, 30, 12), (100, 70, 20, 20)], [(10, 90, 140, 8)]]
SIZE = (160, 120)  # width, height


@META_ARCH_REGISTRY.register()
class NearsightedSpots(BrightSpots):
    """`BrightSpots` that finds nothing in images with a side of more than 64 pixels."""

    def _detect(self, record):
        if max(record["image"].shape[-2:]) <= 64:
            return super()._detect(record)
        size = record["height"], record["width"]
        nothing = Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        nothing.pred_classes, nothing.pred_masks = torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size, dtype=bool)
        return nothing


@pytest.fixture
def cfg(tmp_path, request):
    """The config of a trained model with a test set of red objects."""
    images, annotations = tmp_path / "images", []
    images.mkdir()
    for number, boxes in enumerate(BOXES):
        image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        for x, y, w, h in boxes:
            image[y : y + h, x : x + w, 2] = 200  # BGR
            annotation = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h}
            annotations.append({**annotation, "id": len(annotations) + 1, "segmentation": [polygon((x, y, w, h))]})
        cv2.imwrite(str(images / f"{number}.png"), image)
    records = [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(len(BOXES))]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    (tmp_path / "test.json").write_text(
        json.dumps({"images": records, "annotations": annotations, "categories": categories})
    )
    name = f"tiled_{request.node.name}"
    register_coco(name, tmp_path / "test.json", images)
    cfg = spots_config()
    cfg.MODEL.META_ARCHITECTURE = "NearsightedSpots"
    cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def result(cfg):
    model = Trainer.build_model(cfg)
    torch.nn.init.ones_(model.weight)
    return Trainer.test(cfg, model).get("segm", {}).get("AP")


def test_evaluation(cfg):
    assert not result(cfg)
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = 64, 0.5
    assert result(cfg) == pytest.approx(100)


def test_a_report_of_tiles(cfg, tmp_path):
    cfg.TEST.TILE.SIZE, cfg.TEST.REPORT = 64, True
    assert result(cfg) > 50
    assert (tmp_path / "output" / "inference" / "report.html").is_file()


def test_the_limit_is_that_of_an_image(cfg):
    """Its best detection."""
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP, cfg.TEST.DETECTIONS_PER_IMAGE = 64, 0.5, 1
    model = Trainer.build_model(cfg)
    torch.nn.init.ones_(model.weight)
    tiled = model_for_test(cfg, model)
    for sample in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        assert len(tiled(sample)[0]["instances"]) == 1


def test_what_the_network_sees(cfg):
    """The first tile of the first image, the second one of the second, and whole images without tiles."""
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = 64, 0.5
    image = np.arange(120 * 160 * 3, dtype=np.uint8).reshape(120, 160, 3)
    for index, (x, y) in enumerate([(0, 0), (32, 0), (64, 0), (96, 0), (0, 28)]):
        record = seen_by_network(ModelPredictor(cfg, None), image, index)
        assert np.array_equal(record["image"].permute(1, 2, 0).numpy(), image[y : y + 64, x : x + 64])
    cfg.TEST.TILE.SIZE = 0
    assert seen_by_network(ModelPredictor(cfg, None), image, 1)["image"].shape == (3, 120, 160)


def test_prediction(cfg, tmp_path):
    """As the model was tested, unless --tile says otherwise."""
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = 64, 0.5
    weights = save_checkpoint(tmp_path / "spots.pth", cfg, CLASS_NAMES)

    def found(name, *arguments):
        command = ["--weights", weights, "--input", str(tmp_path / "images"), "--output", str(tmp_path / name)]
        assert run("predict", [*command, "--no-pictures", *arguments]) == 0
        return sorted(tuple(x["bbox"]) for x in json.loads((tmp_path / name / "results.json").read_text()))

    assert found("as_tested") == sorted(box for boxes in BOXES for box in boxes)
    assert found("whole", "--tile", "0") == []
    assert found("large", "--tile", "128") == []
    assert len(Predictor.from_checkpoint(weights)(str(tmp_path / "images" / "0.png"))) == 2
    image = {"path": np.array([str(tmp_path / "images" / "0.png")])}
    for tile, count in ((None, 2), (0, 0), (64, 2), (128, 0)):
        assert len(BatchPredictor(weights, tile=tile)(image)["scores"][0]) == count


def test_a_file_is_compared_in_tiles(cfg, tmp_path, monkeypatch):
    """With another model in place of the file: both find all objects, as they would not in whole images."""
    monkeypatch.setattr(accuracy, "time_both", lambda *_: (1.0, 1.0))
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = 64, 0.5
    weights = save_checkpoint(tmp_path / "spots.pth", cfg, CLASS_NAMES)
    found = compare_on_data(*(Predictor.from_checkpoint(weights) for _ in range(2)), cfg.DATASETS.TEST[0])
    assert (found.images, found.pytorch, found.exported) == (2, pytest.approx(100), pytest.approx(100))


def test_eight_bits_are_calibrated_on_tiles(tmp_path, monkeypatch):
    """The tiles of 64 of 160 x 120 pixels begin at 0, 32, 64 and 96: one of each image, the next one of the next."""
    image = np.arange(120 * 160).reshape(120, 160, 1).astype(np.uint8).repeat(3, axis=2)
    files = [str(tmp_path / f"{i}.png") for i in range(10)]
    for file in files:
        cv2.imwrite(file, image)
    seen = []
    monkeypatch.setattr(Export, "quantize", lambda self, modules, records: seen.extend(records))
    cfg = tiny_config("SparseInst")
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP, cfg.INPUT.MIN_SIZE_TEST = 64, 0.5, 64
    export(Predictor(cfg, "", class_names=["a", "b", "c"]), "onnx", calibration=files)
    corners = [(x, y) for y in (0, 28, 56) for x in (0, 32, 64, 96)]
    assert len(seen) == len(files)
    for record, (x, y) in zip(seen, corners):
        assert np.array_equal(record["image"].permute(1, 2, 0).numpy(), image[y : y + 64, x : x + 64])


def test_images_that_fit_are_not_cut(cfg):
    cfg.TEST.TILE.SIZE = 160
    assert not result(cfg)


def test_exported_models(tmp_path):
    cfg = tiny_config("SparseInst")
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = 64, 0.25
    predictor = Predictor(cfg, "", class_names=["a", "b", "c"])
    path = str(tmp_path / "model.onnx")
    exported = export(predictor, "onnx", dynamic=True)
    exported.save(path)
    assert exported.information["tile"] == [64, 0.25]
    assert default_size(cfg) == (cfg.INPUT.MIN_SIZE_TEST,) * 2
    assert not ExportedPredictor(path).batches
    tested = in_tiles(ExportedPredictor(path))
    assert isinstance(tested, TiledPredictor)
    assert (tested.side, tested.overlap) == (64, 0.25)
    cfg.TEST.TILE.SIZE = 0
    whole = Predictor(cfg, "")
    assert in_tiles(whole) is whole


@pytest.mark.parametrize(
    ("tested", "tile", "overlap", "expected"),
    [
        (0, None, None, None),
        (0, 64, None, (64, 0.2)),
        (0, 64, 0.0, (64, 0.0)),
        (64, None, None, (64, 0.5)),
        (64, 0, None, None),
        (64, None, 0.3, (64, 0.3)),
        (64, 32, None, (32, 0.5)),
        (64, 32, 0.0, (32, 0.0)),
    ],
)
def test_given_tiles_and_those_of_the_test(cfg, tested, tile, overlap, expected):
    cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = tested, 0.5
    predictor = ModelPredictor(cfg, None)
    found = in_tiles(predictor, tile, overlap)
    if expected is None:
        assert found is predictor
        with pytest.raises(ConfigError, match="--overlap is that of tiles: give their size as well"):
            in_tiles(predictor, tile, 0.3)
    else:
        assert (found.side, found.overlap) == expected


@pytest.mark.parametrize("size", [-1, 31])
def test_no_size_of_a_tile(size):
    with pytest.raises(ConfigError, match=rf"TEST\.TILE\.SIZE is {size}; it must be 0, or at least 32 pixels"):
        check_config(load_config("", ["TEST.TILE.SIZE", size]))


def test_panoptic_models():
    with pytest.raises(ConfigError, match=r"TEST\.TILE\.SIZE must be 0: only instances"):
        check_config(load_config("quick/blendmask_panoptic_shapes", ["TEST.TILE.SIZE", 64]))
