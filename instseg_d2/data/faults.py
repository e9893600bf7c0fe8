"""
The faults of COCO files: one list, for training and for ``check_data``.

Every fault has one name and one severity:

* error: training stops;
* dropped: training drops the annotation or image;
* repaired: training repairs and uses it;
* warning: training uses it unchanged, with a warning;
* note: nothing is wrong, but you may want to know.
"""

from collections import defaultdict
from typing import NamedTuple, Optional

__all__ = ["DROPPED", "ERROR", "FAULTS", "NOTE", "REPAIRED", "WARNING", "Finding", "Findings", "listed"]

ERROR, DROPPED, REPAIRED, WARNING, NOTE = "error", "dropped", "repaired", "warning", "note"
KEPT = "kept"

# (severity, what happens in a clean copy): names of the faults
_TABLE = {
    (ERROR, DROPPED): (
        "images: no id",
        "images: no file_name",
        "images: id that is neither number nor text",
        "images: duplicate id",
        "images: file_name that is not text",
        "images: no width and height, and no readable file",
        "categories: no id",
        "categories: no name",
        "categories: id that is neither number nor text",
        "categories: duplicate id",
        "categories: name that is not text",
        "annotations: no image_id",
        "annotations: no category_id",
        "annotations: unknown category",
        "annotations: unknown image",
    ),
    (ERROR, KEPT): ("annotations: none can be used",),
    (DROPPED, DROPPED): (
        "images: missing file",
        "images: corrupt file",
        "images: file of another size than listed",
        "annotations: of a dropped image",
        "annotations: polygon with fewer than 3 points",
        "annotations: polygon with an odd number of coordinates",
        "annotations: polygon whose points are not pairs",
        "annotations: polygon with a coordinate that is not a number",
        "annotations: polygon with a coordinate beyond 100000",
        "annotations: polygon outside the image",
        "annotations: polygon without area",
        "annotations: object within the first pixel of the image",
        "annotations: mask that is neither polygon nor RLE",
        "annotations: RLE of another size than the image",
        "annotations: broken RLE",
        "annotations: empty RLE",
        "annotations: annotation without a mask",
        "annotations: annotation with neither box nor mask",
        "annotations: box that is not 4 numbers",
        "annotations: box without area",
        "annotations: box outside the image",
        "annotations: crowd flag that is neither 0 nor 1",
    ),
    (REPAIRED, REPAIRED): (
        "file: encoding other than plain UTF-8",
        "images: no width and height",
        "categories: name that is a number",
        "annotations: id written differently than in its list",
        "annotations: mask or box in another notation",
        "annotations: mask with parts of fewer than 3 points",
        "annotations: no usable area, box or crowd flag",
        "annotations: ids missing, repeated or below 1",
    ),
    (WARNING, REPAIRED): (
        "images: file listed twice",
        "annotations: area that disagrees with the mask",
        "annotations: area larger than the box",
        "annotations: box that disagrees with the mask",
        "annotations: box partly outside the image",
    ),
    (WARNING, DROPPED): ("annotations: object annotated twice",),
    (WARNING, KEPT): (
        "categories: duplicate name",
        "categories: only crowds (iscrowd 1), so neither trained on nor evaluated",
        "images: values far from the range of the others",
        "annotations: none",
    ),
    (NOTE, KEPT): (
        "images: ids that are not 64-bit integers",
        "images: no object",
        "images: same picture under two names",
        "images: more than 8 bits",
        "images: further pages or frames, which are not read",
        "images: one side over 100 times as long as the other",
        "categories: ids that are not 64-bit integers",
        "categories: no object, so neither trained on nor evaluated",
        "annotations: polygon partly outside the image",
    ),
}
FAULTS = {name: pair for pair, names in _TABLE.items() for name in names}


class Finding(NamedTuple):
    """One row of a report; remedy: what happens in a clean copy (dropped, repaired, kept)."""

    what: str
    count: int
    first: str
    severity: str
    remedy: str


class Findings:
    """Counts faults in the order in which they first appear."""

    def __init__(self):
        self._rows: dict[str, list] = {}

    def add(self, what: str, first: str, count: int = 1, kind: Optional[tuple] = None) -> None:
        """Count a fault; ``first``: where it is; ``kind``: (severity, remedy) of a fault that is not in FAULTS."""
        row = self._rows.setdefault(what, [0, first, *(kind or FAULTS[what])])
        row[0] += count

    def rows(self) -> list[Finding]:
        """One row per fault."""
        return [Finding(what, *row) for what, row in self._rows.items()]


def listed(rows: list[Finding]) -> str:
    """The rows as part of a sentence, grouped by list (images, annotations, ...)."""
    texts = defaultdict(list)
    for row in rows:
        where, what = row.what.split(": ", 1)
        texts[where].append(f"{what} ({row.first})" if row.count == 1 else f"{row.count} x {what} (first: {row.first})")
    return "; ".join(f"{where}: {', '.join(parts)}" for where, parts in texts.items())
