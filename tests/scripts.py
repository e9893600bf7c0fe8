"""Commands and the scripts of projects/, for tests that call them like a user."""

import importlib.util
import logging
from contextlib import contextmanager
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.commands import parse
from instseg_d2.data import make_shapes, register_coco

ROOT = Path(__file__).parents[1]


def load_script(name):
    """projects/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "projects" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name, words):
    """A command of the package, or a script of projects/; errors are raised."""
    if (ROOT / f"instseg_d2/commands/{name}.py").exists():
        return importlib.import_module(f"instseg_d2.commands.{name}").main(parse(name, words))
    script = load_script(name)
    return script.main(script.parse(words))


@contextmanager
def registered_shapes(folder, **seeds):
    """Four drawn images for each data set, name=seed, registered inside the block, with their folder of images."""
    for name, seed in seeds.items():
        register_coco(name, make_shapes(folder / name, "train", 4, seed), folder / name / "images")
    try:
        yield {name: folder / name / "images" for name in seeds}
    finally:
        for name in seeds:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)


@pytest.fixture(autouse=True)
def restore_logging():
    """Restore the log handlers after a script has set up logging."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before
