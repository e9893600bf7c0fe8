"""Sets images aside for validation."""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..files import write_json
from .coco import class_names, require_registered
from .coco_file import read_json
from .presence import loading

__all__ = ["classes_in", "held_out", "lacking", "write_split"]

SHARE, MOST = 0.2, 500  # of the images, at most so many, are for validation


def classes_in(annotations: Iterable[dict]) -> set:
    """The classes of an image; a crowd is no object."""
    return {x["category_id"] for x in annotations if not x.get("iscrowd")}


def held_out(classes: Sequence[Collection], share: float) -> list[int]:
    """
    Draw about this share of the images, at least one and not all; the same ones each time. Of the images with a class
    the same share is drawn, as far as possible, but at least one of several, the rarest class first. Images that alone
    have a class are left for training, as far as possible. One image with objects stays, one of several is drawn.

    Args:
        classes: the classes in each of at least two images.

    Returns:
        Indices of images, ascending.
    """
    number = len(classes)
    order = random.Random(0).sample(range(number), number)
    members = defaultdict(list)
    for image in order:
        for name in set(classes[image]) or {None}:  # images without objects are a class, too
            members[name].append(image)
    drawn, seen = [], set()
    for name, images in sorted(members.items(), key=lambda item: (item[0] is None, len(item[1]))):
        least = 1 if name is not None and len(images) > 1 else 0
        missing = max(round(share * len(images)), least) - len(set(drawn).intersection(images))
        drawn += [image for image in images if image not in seen][: max(missing, 0)]
        seen.update(images)
    count = min(max(round(share * number), 1), number - 1)
    alone = {images[0] for name, images in members.items() if name is not None and len(images) == 1}
    others = sorted((image for image in order if image not in set(drawn)), key=alone.__contains__)
    annotated = [image for image in (*drawn, *others) if classes[image]]
    first, last = annotated[: len(annotated) > 1], annotated[-1:]
    between = [image for image in (*drawn, *others) if image not in (*first, *last)]
    return sorted([*first, *between, *last][:count])


def lacking(classes: Sequence[Collection], drawn: Sequence[int]) -> list:
    """The classes that only the images drawn have, ascending."""
    others = set().union(*(classes[image] for image in set(range(len(classes))).difference(drawn)))
    return sorted(set().union(*(classes[image] for image in drawn)) - others)


def write_split(name: str, folder) -> tuple[float, tuple[str, ...], list[str]]:
    """
    Write a registered COCO data set as two files, train.json and val.json, with a fifth of its images, but at most 500,
    in the latter. Missing images stay in the former. Each annotation file, as it is now, and each choice of images has
    a subfolder of its own.

    Returns:
        This share, the absolute paths of the files, and the names of the classes that only validation has; 0, () and []
        if there is only one image.

    Raises:
        DatasetError: the set cannot be loaded, or the folder is not writable.
    """
    require_registered(name)
    with loading([name]):
        records = DatasetCatalog.get(name)
    if len(records) < 2:
        return 0.0, (), []
    share = min(SHARE, MOST / len(records))
    there = [x for x in records if "://" in x["file_name"] or os.path.isfile(x["file_name"])]  # addresses are not tried
    if len(there) < 2:
        return 0.0, (), []
    classes = [classes_in(record["annotations"]) for record in there]
    drawn = held_out(classes, share)
    ids = {there[index]["image_id"] for index in drawn}
    source = Path(MetadataCatalog.get(name).json_file).absolute()
    content, _ = read_json(source)
    state = (str(source), source.stat().st_size, source.stat().st_mtime_ns, sorted(ids))
    folder, paths = Path(folder, hashlib.sha256(repr(state).encode()).hexdigest()[:8]).absolute(), []
    for part, inside in (("train", False), ("val", True)):
        images = [image for image in content["images"] if (image["id"] in ids) == inside]
        objects = [x for x in content["annotations"] if (x["image_id"] in ids) == inside]
        paths.append(str(folder / f"{part}.json"))
        write_json(paths[-1], {**content, "images": images, "annotations": objects})
    return share, tuple(paths), [class_names(name)[index] for index in lacking(classes, drawn)]
