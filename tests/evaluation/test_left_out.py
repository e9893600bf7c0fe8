"""Unreadable test images are reported before training and excluded with their objects; other results stay the same."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from instseg_d2.config import get_cfg
from instseg_d2.data import build_test_loader, check_images, register_coco
from instseg_d2.errors import DatasetError, ImageError
from instseg_d2.evaluation import ProposalRecallEvaluator, build_evaluator, evaluate, leaves_out
from tests.coco_sets import SIZE, rectangles, write_set

NUMBER = 6
BOXES = rectangles(NUMBER)


class Oracle(torch.nn.Module):
    """Finds all objects, by the file name."""

    def forward(self, batch):
        outputs = []
        for sample in batch:
            x, y, w, h = BOXES[int(Path(sample["file_name"]).stem)].tolist()
            found = Instances((SIZE[1], SIZE[0]))
            found.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32))
            found.scores = torch.ones(1)
            found.pred_classes = torch.tensor([int(Path(sample["file_name"]).stem) % 2])
            found.pred_masks = torch.zeros(1, SIZE[1], SIZE[0], dtype=torch.bool)
            found.pred_masks[0, y : y + h, x : x + w] = True
            outputs.append({"instances": found})
        return outputs


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    files = write_set(tmp_path, BOXES)
    register_coco("toy_left_val", *files)
    yield files
    DatasetCatalog.remove("toy_left_val")
    MetadataCatalog.pop("toy_left_val")


def run(folder, evaluator=None):
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = SIZE[1]
    evaluator = evaluator or build_evaluator(cfg, "toy_left_val", str(folder))
    return evaluate(Oracle(), build_test_loader(cfg, "toy_left_val"), evaluator, "toy_left_val")


def truncate(path):
    """The header is intact, so only reading the image shows it."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:4000])


BROKEN = {
    "no image": lambda path: path.write_bytes(b"<html>not found</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "another size": lambda path: Image.new("RGB", (50, 50)).save(path),
    "turned": lambda path: Image.new("RGB", SIZE[::-1]).save(path),
    "truncated": truncate,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_bad_image_excludes_only_itself(files, tmp_path, caplog, kind):
    BROKEN[kind](Path(files[1]) / "2.png")
    with caplog.at_level(logging.WARNING, logger="instseg_d2"):
        check_images("toy_left_val", training=False, leave_out=leaves_out("toy_left_val"))
        before = [record.getMessage() for record in caplog.records]
        results = run(tmp_path / "out")
    told = [message for message in before if "1 of 6 images of toy_left_val are unusable" in message]
    assert len(told) == (kind != "truncated")
    assert all("2.png" in message for message in told)
    for task in ("bbox", "segm"):  # were it counted as empty, its object would be missed
        assert {k: results[task][k] for k in ("AP", "AP-a", "AP-b")} == pytest.approx(
            {"AP": 100, "AP-a": 100, "AP-b": 100}
        )
    assert "excluded from the evaluation: " in caplog.text
    assert "1 of 6 images are excluded (1 objects)" in caplog.text


def test_an_image_that_vanishes_after_the_check(files, tmp_path):
    (Path(files[1]) / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 images of toy_left_val are missing .*0\.png"):
        check_images("toy_left_val", training=False, leave_out=True)
    assert run(tmp_path / "out")["segm"]["AP"] == pytest.approx(100)


def test_the_class_of_the_image_alone(files, tmp_path):
    """A class whose images are all excluded disappears from the results, as if it had no objects."""
    for number in (1, 3, 5):
        (Path(files[1]) / f"{number}.png").write_bytes(b"")
    results = run(tmp_path / "out")["segm"]
    assert (results["AP"], results["AP-a"]) == pytest.approx((100, 100))
    assert np.isnan(results["AP-b"])


def test_recall_leaves_it_out_as_well(files, tmp_path):
    (Path(files[1]) / "1.png").write_bytes(b"")
    results = run(tmp_path, ProposalRecallEvaluator("toy_left_val", None, limits=(1, 100)))
    assert results["proposals"]["AR@1"] == 100


def test_nothing_that_can_be_read(files, tmp_path):
    for path in Path(files[1]).iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="6 of 6 images of toy_left_val are unusable"):
        check_images("toy_left_val", training=False, leave_out=True)


@pytest.mark.parametrize("kind", ["lvis", "pascal_voc", "cityscapes_instance"])
def test_evaluators_that_want_all_images(files, tmp_path, monkeypatch, kind):
    """They would count the image as empty, so it is an error, before and after training."""
    monkeypatch.setattr("instseg_d2.evaluation.evaluators._PACKAGES", {})
    metadata = MetadataCatalog.get("toy_left_val")
    del metadata.evaluator_type
    metadata.evaluator_type = kind
    (Path(files[1]) / "2.png").write_bytes(b"")
    assert not leaves_out("toy_left_val")
    with pytest.raises(DatasetError, match=r"1 of 6 images .* are unusable, the first: .*2\.png"):
        check_images("toy_left_val", training=False, leave_out=leaves_out("toy_left_val"))
    with pytest.raises(ImageError, match=r"2\.png"):
        run(tmp_path, ProposalRecallEvaluator("toy_left_val", None))
