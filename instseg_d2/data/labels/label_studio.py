"""
Label Studio's tasks with predictions: polygons in percent of the image; masks with holes or of several parts as brush
strokes, whose pixels are packed as run lengths (rle-pack of thi.ng/umbrella) of R, G, B and A.
"""

import functools
import os
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pycocotools.mask as mask_util

from ...files import ListFile, write_bytes
from ..segmentations import to_rle
from .geometry import pieces
from .writer import BOXES, Writer

__all__ = ["LabelStudioWriter", "packed"]

LONGEST = 1 << 16  # values of a run
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="polygon" toName="image">{labels}
  </PolygonLabels>
  <BrushLabels name="brush" toName="image">{labels}
  </BrushLabels>
</View>
"""


def packed(mask: np.ndarray) -> list[int]:
    """
    The bytes of rle-pack for a mask (H, W), each pixel as four values of 0 or 255.

    The bits are: number of values (32), bits of a value - 1 (5), four widths of run lengths - 1 (4 each), and for each
    run 1 (the value repeats), index of the width (2), length - 1, value.
    """
    pixels = mask.ravel().astype(bool)
    ends = np.flatnonzero(np.append(pixels[1:] != pixels[:-1], True)) + 1
    bits = [f"{pixels.size * 4:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in (3, 4, 8, 16))]
    start = 0
    for end in ends.tolist():
        length, value = (end - start) * 4, 255 * int(pixels[start])
        for part in range(0, length, LONGEST):
            bits.append(f"1{3:02b}{min(LONGEST, length - part) - 1:016b}{value:08b}")
        start = end
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()


class LabelStudioWriter(Writer):
    """
    Writes tasks.json, a task for each image, and label_config.xml; see `Writer`. Label Studio must serve the image
    folder (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
    """

    per_image = False

    @functools.cached_property
    def _tasks(self) -> ListFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        return ListFile(self.folder / "tasks.json")

    def _value(self, annotation: dict, image: dict) -> tuple[str, dict]:
        """("polygon" or "brush", the value of the result)."""
        if not annotation.get("segmentation"):
            self.notes[BOXES] += 1
        found = pieces(annotation, image, inside=True)
        if len(found) == 1 and not found[0][1]:
            ring = found[0][0] * 100 / (image["width"], image["height"])
            return "polygon", {"points": ring.round(4).tolist(), "closed": True}
        rle = to_rle(annotation["segmentation"], image["height"], image["width"])
        return "brush", {"format": "rle", "rle": packed(mask_util.decode(rle))}

    def add(self, image: dict, annotations: list[dict]) -> None:
        results = []
        for number, annotation in enumerate(self.kept(image, annotations), start=1):
            kind, value = self._value(annotation, image)
            result = {
                "id": str(number),
                "from_name": kind,
                "to_name": "image",
                "type": f"{kind}labels",
                "original_width": image["width"],
                "original_height": image["height"],
                "image_rotation": 0,
                "value": {**value, f"{kind}labels": [self.names[annotation["category_id"]]]},
            }
            results.append({**result, **({"score": annotation["score"]} if "score" in annotation else {})})
        data = {"image": f"/data/local-files/?d={quote(os.fsencode(image['file_name']))}"}
        self._tasks.add([{"data": data, "predictions": [{"model_version": "instseg_d2", "result": results}]}])

    def finish(self) -> None:
        super().finish()
        self._tasks.finish()
        labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in self.names.values())
        write_bytes(self.folder / "label_config.xml", CONFIG.format(labels=labels).encode())
