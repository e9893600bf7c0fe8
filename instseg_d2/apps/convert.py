"""``instseg convert``: labels of one program as those of another."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from ..data.labels import WRITERS, default_images, read_labels, recognise
from ..data.split import classes_in, held_out, lacking
from ..errors import ConfigError, DatasetError

__all__ = ["convert"]


def _drawn(images: list[dict], objects: dict, share: float) -> tuple[set, list]:
    """Ids of about this share of the images, of each class, and those of classes that no other has; see `held_out`."""
    if len(images) < 2:
        raise DatasetError(f"--val needs two images or more; there {'is one' if images else 'are none'}.")
    by_name = sorted(images, key=lambda image: image["file_name"])
    classes = [classes_in(objects[image["id"]]) for image in by_name]
    drawn = held_out(classes, share)
    return {by_name[index]["id"] for index in drawn}, lacking(classes, drawn)


def convert(
    source,
    target: str,
    output,
    *,
    images: Optional[str] = None,
    source_format: Optional[str] = None,
    val_share: float = 0.0,
) -> list[str]:
    """
    Write the labels of a data set in another format.

    Args:
        source: file or folder.
        target, source_format: names of formats; the latter is recognised by the content if it is None.
        output: folder to write to; must be empty or missing.
        images: folder of the images; default: where the format has them.
        val_share: share of the images that go to val.json, the others to train.json; only for COCO. 0: one file.

    Returns:
        The report, a sentence each.

    Raises:
        DatasetError: the labels are broken, or the target cannot hold them.
        ConfigError: the output is not empty, or val_share is wrong.
    """
    if val_share and (target != "coco" or not 0 < val_share < 1):
        raise ConfigError(f"--val {val_share} must be above 0 and below 1, and goes with --to coco.")
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not an empty folder; choose another --output")
    source_format, source = recognise(source, source_format)
    folder = Path(images).expanduser() if images else default_images(source, source_format)
    content, notes = read_labels(source, source_format, folder)
    writer = WRITERS[target](output, content["categories"], folder)
    writer.check_names(image["file_name"] for image in content["images"])
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    drawn, missing, val = set(), [], None
    if val_share:
        drawn, missing = _drawn(content["images"], objects, val_share)
        val = WRITERS[target](output, content["categories"], folder)
        writer.name, val.name = "train.json", "val.json"
    for image in tqdm(content["images"], unit="image", disable=None):
        (val if image["id"] in drawn else writer).add(image, objects[image["id"]])
    writer.finish()
    if val:
        val.finish()
    summary = (
        f"read {source_format} labels: {len(content['images'])} images, {len(content['annotations'])} objects, "
        f"{len(content['categories'])} classes"
    )
    if val:
        notes.append(f"train.json: {len(content['images']) - len(drawn)} images, val.json: {len(drawn)}")
    if missing:
        names = [category["name"] for category in content["categories"] if category["id"] in missing]
        notes.append(f"train.json has no objects of these classes: {', '.join(names)}")
    notes += [f"{what}: {count}" for what, count in writer.notes.items()]
    return [summary, *notes, f"wrote {target} labels: {output}{os.sep}"]
