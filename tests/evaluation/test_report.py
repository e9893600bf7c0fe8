"""The page on an evaluation, on three images whose mistakes are known."""

import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage

from instseg_d2.evaluation.report import WORST, ReportEvaluator
from instseg_d2.modeling.postprocessing.detections import set_mask_format

SIZE = (60, 80)
A, B, C = (5, 5, 25, 25), (35, 5, 55, 25), (5, 35, 25, 55)


def annotation(label, box, crowd=0):
    x0, y0, x1, y1 = box
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    entry = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": crowd}
    return {**entry, "segmentation": [polygon]}


def detections(*entries, masks=True):
    labels, boxes, scores = zip(*entries) if entries else ((), (), ())
    found = Instances(SIZE, scores=torch.tensor(scores), pred_classes=torch.tensor(labels, dtype=torch.int64))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    if masks:
        found.pred_masks = torch.zeros(len(labels), *SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes):
            mask[y0:y1, x0:x1] = True
    return set_mask_format(found, "run_lengths")


TRUTH = {
    7: [annotation(0, A), annotation(1, B)],
    8: [annotation(0, A), annotation(1, C), annotation(0, (30, 30, 80, 60), crowd=1)],
    9: [],
}
# Image 7: both found, the second as another class. 8: one found, one missed, one detection on the crowd. 9: false.
FOUND = {
    7: [(0, A, 0.9), (0, B, 0.8)],
    8: [(0, A, 0.9), (0, (35, 35, 45, 45), 0.7), (1, C, 0.3)],
    9: [(1, B, 0.6), (0, A, 0.05)],
}


@pytest.fixture
def data(tmp_path):
    records = []
    for image_id, annotations in TRUTH.items():
        file = str(tmp_path / f"{image_id}.png")
        cv2.imwrite(file, np.full((*SIZE, 3), 90, np.uint8))
        records.append({"file_name": file, "image_id": image_id, "height": 60, "width": 80, "annotations": annotations})
    DatasetCatalog.register("toy_report", lambda: records)
    MetadataCatalog.get("toy_report").thing_classes = ["cat", "<dog>"]
    yield "toy_report"
    DatasetCatalog.remove("toy_report")
    MetadataCatalog.remove("toy_report")


def table(page):
    """The cells of the table of classes, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("<table>")[1].split("</table>")[0], re.S)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>.*?</t[hd]>", row)] for row in rows]


@pytest.mark.parametrize("masks", [True, False])
def test_the_page(data, tmp_path, masks):
    report = ReportEvaluator(data, str(tmp_path))
    for _ in range(2):  # a second evaluation starts anew
        report.reset()
        for image_id, entries in FOUND.items():
            report.process([{"image_id": image_id}], [{"instances": detections(*entries, masks=masks)}])
        assert report.evaluate() is None
    page = (tmp_path / "report.html").read_text()
    assert table(page) == [
        ["true class", "cat", "&lt;dog&gt;", "(missed)"],
        ["cat", "2", "", ""],
        ["&lt;dog&gt;", "1", "", "1"],
        ["(nothing)", "", "1", ""],
    ]
    assert "3 images, 4 objects" in " ".join(page.split())
    assert "2 are found, 1 found as another class, 1 missed; 1 detections are false" in " ".join(page.split())
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == ["7.png: 1 wrong class; cost 0.8", "8.png: 1 missed; cost 0.7", "9.png: 1 false; cost 0.6"]
    pictures = re.findall(r'src="(.*?)"', page)
    assert pictures == ["report/01.jpg", "report/02.jpg", "report/03.jpg"]
    third = cv2.imread(str(tmp_path / pictures[2])).astype(int)
    colored = third.max(2) - third.min(2) > 40  # image and paper are grey
    left, right = np.split(colored, [colored.shape[1] // 2], axis=1)
    # Nothing is annotated. Of the detections, the one over the threshold is drawn, four times enlarged.
    assert not left.any()
    assert right.sum() > 0.7 * 16 * 20 * 20
    assert not right[:, : 4 * 25].any()


def test_only_the_worst_are_kept(data, tmp_path):
    report = ReportEvaluator(data, str(tmp_path))
    for number in range(WORST + 10):
        score = 0.5 + ((7 * number) % (WORST + 10)) / 100
        report.process([{"image_id": 9}], [{"instances": detections((0, A, score))}])
    assert len(report._worst) == WORST
    report.evaluate()
    costs = re.findall(r"cost ([\d.]+)</fig", (tmp_path / "report.html").read_text())
    assert costs == sorted(costs, reverse=True)
    assert [entry[0] for entry in sorted(report._worst)] == pytest.approx(
        [0.5 + n / 100 for n in range(10, WORST + 10)]
    )


def test_the_same_images_after_each_evaluation(data, tmp_path):
    """The two annotated images, in a row each, also of evaluations before; and for TensorBoard."""
    for done in (50, 100):  # the second may be of a resumed training
        with EventStorage(done - 1) as storage:
            storage.put_scalar("total_loss", 1.0)
            report = ReportEvaluator(data, str(tmp_path))
            for image_id, entries in FOUND.items():
                report.process([{"image_id": image_id}], [{"instances": detections(*entries)}])
            report.evaluate()
    page = (tmp_path / "report.html").read_text()
    rows = re.findall(r'<div class="row">(.*?)</div>', page, re.S)
    assert [re.findall(r'src="(.*?)"', row) for row in rows] == [
        [f"report/followed_{number}_{done:07}.jpg" for done in (50, 100)] for number in (1, 2)
    ]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", rows[0]) == ["after 50 iterations", "after 100 iterations"]
    assert [(name, iteration) for name, _, iteration in storage._vis_data] == [
        ("toy_report/1", 99),
        ("toy_report/2", 99),
    ]
    picture = storage._vis_data[1][1]
    written = cv2.imread(str(tmp_path / "report" / "followed_2_0000100.jpg"))[..., ::-1]
    assert picture.shape[0] == 3
    assert np.abs(np.moveaxis(picture, 0, -1).astype(int) - written).mean() < 3  # JPEG
