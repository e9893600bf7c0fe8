"""``instseg convert``: labels of one program as those of another."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from ..data.labels import WRITERS, default_images, read_labels, recognise
from ..errors import ConfigError

__all__ = ["convert"]


def convert(
    source, target: str, output, *, images: Optional[str] = None, source_format: Optional[str] = None
) -> list[str]:
    """
    Write the labels of a data set in another format.

    Args:
        source: file or folder.
        target, source_format: names of formats; the latter is recognised by the content if it is None.
        output: folder to write to; must be empty or missing.
        images: folder of the images; default: where the format has them.

    Returns:
        The report, a sentence each.

    Raises:
        DatasetError: the labels are broken, or the target cannot hold them.
        ConfigError: the output is not empty.
    """
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
    for image in tqdm(content["images"], unit="image", disable=None):
        writer.add(image, objects[image["id"]])
    writer.finish()
    summary = (
        f"read {source_format} labels: {len(content['images'])} images, {len(content['annotations'])} objects, "
        f"{len(content['categories'])} classes"
    )
    notes += [f"{what}: {count}" for what, count in writer.notes.items()]
    return [summary, *notes, f"wrote {target} labels: {output}{os.sep}"]
