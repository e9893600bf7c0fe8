"""Panoptic results as a user sees them: the drawing, the predictor's outputs, and the demo from a checkpoint."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.apps.predict import run_demo
from instseg_d2.data.coco import class_information
from instseg_d2.data.shapes import panoptic as shapes_panoptic
from instseg_d2.inference.predictor import Predictor
from instseg_d2.modeling.build import build
from instseg_d2.visualization import draw_panoptic, instance_color
from instseg_d2.visualization.overlay import FIRST_STUFF_COLOR
from tests.tiny import tiny_config

PANOPTIC = [
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 20,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3,
    "MODEL.WEIGHTS", "",
    "INPUT.MIN_SIZE_TEST", 64,
]  # fmt: skip


def test_segments_have_their_colours():
    image = np.full((40, 60, 3), 100, np.uint8)
    ids = torch.zeros(40, 60, dtype=torch.int32)
    ids[:20], ids[20:, :30], ids[20:, 30:40] = 3, 1, 2
    segments = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.9},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.4},
        {"id": 3, "isthing": False, "category_id": 2},
    ]
    drawn = draw_panoptic(image, ids, segments, ["a", "b"], ["things", "x", "y"], score_threshold=0.5, alpha=1.0)
    assert tuple(drawn[35, 15]) == instance_color(0)
    assert tuple(drawn[15, 55]) == instance_color(FIRST_STUFF_COLOR + 2)
    assert (drawn[25:, 43:] == 100).all()  # no segment
    assert (drawn[36, 33:38] == 100).all()  # below the threshold
    assert np.array_equal(draw_panoptic(image, torch.zeros(40, 60), []), image)


def test_tags_lie_on_their_segments():
    """L-shaped stuff around another segment: the centre of its box lies in the other one."""
    ids = torch.full((200, 300), 1, dtype=torch.int32)
    ids[:150, 60:] = 2
    segments = [{"id": i, "isthing": False, "category_id": i} for i in (1, 2)]
    drawn = draw_panoptic(np.zeros((200, 300, 3), np.uint8), ids, segments, None, ["", "L", "inner"], alpha=0.2)
    for segment in (1, 2):
        tag = (drawn == instance_color(FIRST_STUFF_COLOR + segment)).all(2)
        rows, columns = np.nonzero(cv2.erode(tag.astype(np.uint8), np.ones((4, 4))))  # no outline
        assert len(rows) > 10
        assert (ids.numpy()[rows, columns] == segment).mean() > 0.9


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a panoptic BlendMask that finds objects and stuff everywhere."""
    cfg = tiny_config("BlendMask", *PANOPTIC)
    torch.manual_seed(1)
    model = build(cfg)
    head = model.proposal_generator.head
    head.class_logits.bias.data.fill_(3.0)
    head.quality_logits.bias.data.fill_(3.0)
    head.box_distances.bias.data.fill_(0.1)  # small boxes: there is room for stuff
    model.basis_module.predictor.weight.data.zero_()
    model.basis_module.predictor.bias.data.fill_(1.0)  # masks fill their boxes
    model.sem_seg_head.predictor.bias.data[2] = 100.0
    path = tmp_path / "panoptic.pth"
    names = {"class_names": ["a", "b", "c"], "stuff_names": ["things", "sky", "sea"]}
    torch.save({"model": model.state_dict(), "cfg": cfg.dump(), **names}, path)
    return str(path)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (48, 80, 3), np.uint8)


def test_outputs_of_the_predictor(weights):
    predictor = Predictor.from_checkpoint(weights)
    assert predictor.stuff_names == ["things", "sky", "sea"]
    record = predictor.preprocess(picture(0))
    (output,) = predictor.outputs([record])
    ids, segments = output["panoptic_seg"]
    assert ids.shape == (48, 80)
    assert {s["isthing"] for s in segments} == {True, False}
    assert {s["category_id"] for s in segments if not s["isthing"]} == {2}
    (instances,) = predictor.predict([record])
    assert torch.equal(instances.scores, output["instances"].scores)


def test_the_demo_draws_things_and_stuff(weights, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    image = picture(1)
    Image.fromarray(image).save(folder / "x.png")
    predictor = Predictor.from_checkpoint(weights)
    assert run_demo(predictor, [str(folder)], str(output), score_threshold=1.0)
    assert json.loads((output / "results.json").read_text()) == []
    drawn = cv2.imread(str(output / "x.jpg"))[..., ::-1].astype(float)
    (found,) = predictor.outputs([predictor.preprocess(image, "RGB")])
    ids, segments = found["panoptic_seg"]
    (sea,) = [s for s in segments if not s["isthing"]]
    inside = (ids == sea["id"]).numpy()
    expected = (image[inside].mean(0) + np.array(instance_color(FIRST_STUFF_COLOR + 2))) / 2
    assert np.abs(drawn[inside].mean(0) - expected).max() < 25


def test_stuff_names_are_stored_in_checkpoints(tmp_path):
    name = "tiny_panoptic_names"
    shapes_panoptic.register_split(name, tmp_path, "val", 1, 8)
    try:
        information = class_information(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    assert information["stuff_names"] == ["things", "sky", "grass", "water", "bricks"]
    assert information["category_ids"] == [1, 2, 3, 5, 8, 13]
