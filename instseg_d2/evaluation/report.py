"""
A page on an evaluation: which classes are confused, what is missed, the worst images beside the truth, and how the
detections in a few images have changed during training.
"""

import glob
import heapq
import itertools
import logging
import os
from collections import Counter
from typing import Optional

import cv2
import jinja2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..data.images import read_image
from ..files import write_bytes
from ..methods import method_of
from ..visualization.annotations import draw_annotations
from ..visualization.overlay import class_name, draw_instances
from ..visualization.panels import titled_grid
from .mistakes import FALSE, MISSED, WRONG_CLASS, find_mistakes, objects_of

__all__ = ["ReportEvaluator", "build_report"]

logger = logging.getLogger(__name__)

WORST = 24  # images on the page
FOLLOWED = 4  # images shown after each evaluation of a training
FAINT = 0.1  # lowest score that makes a missed object cheaper
MISSED_COLUMN = "(missed)"
FALSE_ROW = "(nothing)"

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }
table { border-collapse: collapse; background: #fff } th, td { border: 1px solid #ddd; padding: .3em .7em }
td { text-align: right } tr > :first-child { text-align: left; font-weight: 600 }
td.good { background: #dff3e4 } td.bad { background: #fbe3e0 }
figure { margin: 1.2em 0 } figure img { max-width: 100% }
.row { display: flex; gap: 1em; overflow-x: auto } .row figure { flex: none; width: min(40em, 80%) }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ images }} images, {{ objects }} objects. With a score of at least {{ threshold }}: {{ found }} are found,
{{ confused }} found as another class, {{ missed }} missed; {{ doubtful }} detections are false. A detection finds an
object if their masks (boxes, where there are no masks) have an IoU of {{ iou }}.</p>
<h2>Which class is found as which</h2>
<table><tr><th>true class</th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for name, cells in rows -%}
<tr><td>{{ name }}</td>
{%- for count, kind in cells %}<td class="{{ kind if count }}">{{ count or "" }}</td>{% endfor %}</tr>
{% endfor -%}
</table>
{% if followed -%}
<h2>The same images after each evaluation</h2>
{% for row in followed -%}
<div class="row">{% for picture, caption in row -%}
<figure><img src="{{ picture | urlencode }}" alt="{{ caption }}" loading="lazy">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor -%}</div>
{% endfor -%}
{% endif -%}
<h2>The worst images</h2>
<p>By the cost of their mistakes: for a false detection or a wrong class its score; for a missed object 1, or 1 minus
the score with which it was found below the threshold.</p>
{% for picture, caption in worst -%}
<figure><img src="{{ picture | urlencode }}" alt="{{ caption }}" loading="lazy">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor -%}
</body></html>
"""


def build_report(cfg: CfgNode, dataset_name: str, folder: str) -> Optional["ReportEvaluator"]:
    """The report that TEST.REPORT asks for; None if the model does not tell classes apart, or no image is annotated."""
    if not cfg.TEST.REPORT or method_of(cfg).class_agnostic(cfg):
        return None
    report = ReportEvaluator(dataset_name, folder)
    return report if report.has_annotations else None


class ReportEvaluator(DatasetEvaluator):
    """
    Writes ``report.html``, with its pictures in ``report/``. Its numbers are no metrics: see `find_mistakes`. During a
    training, the pictures of a few images are kept for each evaluation, and also go to TensorBoard.

    Args:
        dataset_name: a registered data set with annotations of instances.
        folder: written to.
        score_threshold: detections that score lower count as not made.
        iou: lowest overlap of a detection with the object that it finds.
    """

    reads_run_lengths = True

    def __init__(self, dataset_name: str, folder: str, score_threshold: float = 0.5, iou: float = 0.5):
        self._name, self._folder, self._threshold, self._iou = dataset_name, folder, score_threshold, iou
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        annotated = [key for key, record in self._records.items() if record.get("annotations")]
        chosen = np.linspace(0, len(annotated) - 1, min(FOLLOWED, len(annotated))).round().astype(int)
        self._followed = [annotated[index] for index in chosen]
        self.reset()

    @property
    def has_annotations(self) -> bool:
        """Whether there is anything to compare with."""
        return any(record.get("annotations") for record in self._records.values())

    def reset(self) -> None:
        self._pairs: Counter = Counter()  # (true class or None, found class or None): number
        self._images = 0
        self._worst: list[tuple] = []  # heap of cost, running number, image id, detections, caption
        self._numbers = itertools.count()
        self._seen: dict = {}  # image id: detections, of the images that are followed

    def process(self, inputs, outputs) -> None:
        """See Detectron2's."""
        for x, output in zip(inputs, outputs):
            if "instances" in output:
                self._add(self._records[x["image_id"]], output["instances"].to("cpu"))

    def _add(self, record: dict, instances) -> None:
        instances = instances[instances.scores >= FAINT]
        found, truth = objects_of(instances, record)
        mistakes = find_mistakes(found, truth, self._threshold, self._iou)
        lost = {mistake.truth for mistake in mistakes}
        self._images += 1
        for index, (label, crowd) in enumerate(zip(truth.labels, truth.crowds)):
            if not crowd and index not in lost:
                self._pairs[label, label] += 1
        for mistake in mistakes:
            true = None if mistake.truth is None else truth.labels[mistake.truth]
            self._pairs[true, None if mistake.detection is None else found.labels[mistake.detection]] += 1
        shown = instances[instances.scores >= self._threshold]
        if record["image_id"] in self._followed:
            self._seen[record["image_id"]] = shown
        cost = sum(mistake.cost for mistake in mistakes)
        if cost:
            kinds = Counter(mistake.kind for mistake in mistakes)
            texts = [f"{kinds[kind]} {kind}" for kind in (MISSED, FALSE, WRONG_CLASS) if kinds[kind]]
            caption = f"{os.path.basename(record['file_name'])}: {', '.join(texts)}; cost {cost:.1f}"
            heapq.heappush(self._worst, (cost, -next(self._numbers), record["image_id"], shown, caption))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)

    def evaluate(self) -> None:
        """Write the page, on the main process."""
        parts = comm.gather((self._pairs, self._images, self._worst, self._seen))
        if not comm.is_main_process():
            return
        counts, numbers, lists, seen = zip(*parts)
        pairs = sum(counts, Counter())
        worst = sorted(itertools.chain(*lists), key=lambda entry: -entry[0])[:WORST]
        if has_event_storage():
            self._follow({image_id: found for part in seen for image_id, found in part.items()})
        path = os.path.join(self._folder, "report.html")
        page = (
            jinja2.Environment(autoescape=True)
            .from_string(PAGE)
            .render(
                title=f"Evaluation on {self._name}",
                images=sum(numbers),
                objects=sum(count for (true, _), count in pairs.items() if true is not None),
                found=sum(count for (true, label), count in pairs.items() if true is not None and true == label),
                confused=sum(
                    count for (true, label), count in pairs.items() if None not in (true, label) and true != label
                ),
                missed=sum(count for (_, label), count in pairs.items() if label is None),
                doubtful=sum(count for (true, _), count in pairs.items() if true is None),
                threshold=self._threshold,
                iou=self._iou,
                worst=[self._picture(number, *entry[2:]) for number, entry in enumerate(worst, 1)],
                followed=[row for number in range(1, FOLLOWED + 1) if (row := self._history(number))],
                **self._table(pairs),
            )
        )
        write_bytes(path, page.encode())
        logger.info("Written: %s", path)

    def _table(self, pairs: Counter) -> dict:
        """Rows: true classes, and false detections. Columns: found classes, and missed objects."""
        names = MetadataCatalog.get(self._name).get("thing_classes")
        labels = sorted({label for pair in pairs for label in pair if label is not None})
        rows = []
        for true in (*labels, None):
            kinds = ["good" if true == label else "bad" for label in (*labels, None)]
            counts = [pairs[true, label] for label in labels] + [0 if true is None else pairs[true, None]]
            name = FALSE_ROW if true is None else class_name(names, true)
            rows.append((name, list(zip(counts, kinds))))
        return {"rows": rows, "columns": [*(class_name(names, label) for label in labels), MISSED_COLUMN]}

    def _picture(self, number: int, image_id, instances, caption: str) -> tuple[str, str]:
        """Draw an image; returns the picture's name and the caption."""
        name = f"report/{number:02}.jpg"
        self._draw(name, image_id, instances)
        return name, caption

    def _draw(self, name: str, image_id, instances) -> np.ndarray:
        """Write a picture: an image's annotations beside detections. Returns it (H, W, 3), RGB."""
        record, names = self._records[image_id], MetadataCatalog.get(self._name).get("thing_classes")
        image = read_image(record["file_name"], "RGB", (record["width"], record["height"]))
        panels = [
            ("annotated", draw_annotations(image, record, names)),
            ("found", draw_instances(image, instances, names)),
        ]
        grid = titled_grid(panels, 2, min(640, max(320, image.shape[1])))
        write_bytes(os.path.join(self._folder, name), cv2.imencode(".jpg", grid[..., ::-1])[1].tobytes())
        return grid

    def _follow(self, seen: dict) -> None:
        """Draw the images that are shown after each evaluation."""
        storage = get_event_storage()
        done = storage.latest().get("total_loss", (0.0, storage.iter))[1] + 1
        for number, image_id in enumerate(self._followed, 1):
            if image_id in seen:
                grid = self._draw(f"report/followed_{number}_{done:07}.jpg", image_id, seen[image_id])
                storage.put_image(f"{self._name}/{number}", np.moveaxis(grid, -1, 0))

    def _history(self, number: int) -> list[tuple[str, str]]:
        """(picture, caption) of an image after each evaluation."""
        pattern = os.path.join(glob.escape(self._folder), "report", f"followed_{number}_*.jpg")
        names = sorted(map(os.path.basename, glob.glob(pattern)))
        return [(f"report/{name}", f"after {int(name[-11:-4])} iterations") for name in names]
