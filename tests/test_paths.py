"""Wherever a public function takes a path, a pathlib.Path works like a str."""

import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.apps.inputs import find_inputs
from instseg_d2.apps.predict import run_demo
from instseg_d2.apps.video import Video, write_video
from instseg_d2.checkpoint import (
    InstSegCheckpointer,
    read_checkpoint_info,
    read_extra,
    read_weights,
    save_safetensors,
    split_query,
)
from instseg_d2.config import get_cfg, load_config
from instseg_d2.data import (
    common_range,
    make_shapes,
    make_shapes_panoptic,
    read_image,
    register_coco,
)
from instseg_d2.data.images import further_frames, image_size
from instseg_d2.engine import Predictor, argument_parser, setup
from instseg_d2.evaluation import build_evaluator, write_results
from instseg_d2.files import remove_unfinished, write_bytes, write_json
from instseg_d2.visualization import write_index
from tests.bright_spots import BrightSpots, save_checkpoint, spots_config, spots_image


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with an image, a checkpoint with its config, a YAML file and a small data set."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "photos").mkdir()
    Image.fromarray(spots_image()).save(folder / "photos" / "spots.png")
    cfg = spots_config()
    save_checkpoint(folder / "spots.pth", cfg, ["red", "blue"])
    (folder / "spots.yaml").write_text(cfg.dump())
    make_shapes(str(folder / "shapes"), "train", 2, seed=0)
    frames = [spots_image()] * 2
    (folder / "clip").write_text(write_video(str(folder / "clip"), frames, 10.0))
    return folder


@pytest.fixture(autouse=True)
def _leave_logging_and_catalogs_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    root, names = logging.getLogger(), set(DatasetCatalog)
    handlers = list(root.handlers)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def scores(predictor, image):
    return predictor(image).scores.tolist()


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def written(path, write):
    write(path)
    return Path(path).read_bytes()


def model():
    return BrightSpots(input_format="BGR", explains=True)


def loaded(path, folder):
    checkpointer = InstSegCheckpointer(model(), folder, for_test=True)
    checkpointer.load(path)
    checkpointer.save("again")
    return checkpointer.model.state_dict(), listing(folder)


def registered(json_file, images):
    register_coco("by_path", json_file, images)
    return DatasetCatalog.get("by_path")


def evaluator_folder(json_file, images, folder):
    registered(json_file, images)
    return str(build_evaluator(get_cfg(), "by_path", folder)._output_dir)


def set_up(json_file, images, folder):
    args = argument_parser().parse_args([])
    args.train_json, args.train_images, args.num_gpus = json_file, images, 0
    args.opts = ["OUTPUT_DIR", folder, "DATASETS.TEST", ()]
    return setup(args).OUTPUT_DIR, listing(folder)


# Calls with p and out, which make paths in the folder of files and in the folder of results.
CALLS = {
    "Predictor(weights)": lambda p, out: scores(Predictor(spots_config(), p("spots.pth")), spots_image()),
    "from_checkpoint": lambda p, out: scores(
        Predictor.from_checkpoint(p("spots.pth"), p("spots.yaml")), p("photos/spots.png")
    ),
    "from_checkpoint opts": lambda p, out: str(
        Predictor.from_checkpoint(p("spots.pth"), opts=["OUTPUT_DIR", p("x")]).cfg.OUTPUT_DIR
    ),
    "Predictor.batch": lambda p, out: [
        len(x) for x in Predictor.from_checkpoint(p("spots.pth")).batch([p("photos/spots.png")] * 2)
    ],
    "Predictor.explain": lambda p, out: len(Predictor.from_checkpoint(p("spots.pth")).explain(p("photos/spots.png"))),
    "run_demo": lambda p, out: (
        run_demo(Predictor.from_checkpoint(p("spots.pth")), [p("photos")], out("demo")),
        listing(out("demo")),
    ),
    "run_demo with a video": lambda p, out: (
        run_demo(Predictor.from_checkpoint(p("spots.pth")), p(Path(p("clip")).read_text()), out("demo")),
        listing(out("demo")),
    ),
    "find_inputs": lambda p, out: [
        find_inputs([p("photos")]),
        find_inputs(p("photos/*.png")),
        find_inputs((p("clip"),)),
    ],
    "Video": lambda p, out: len(list(Video(p(Path(p("clip")).read_text())))),
    "write_video": lambda p, out: (write_video(out("v"), [spots_image()], 10.0), listing(Path(out("v")).parent)),
    "read_image": lambda p, out: read_image(p("photos/spots.png")).tolist(),
    "image_size": lambda p, out: image_size(p("photos/spots.png")),
    "further_frames": lambda p, out: further_frames(p("photos/spots.png")),
    "common_range": lambda p, out: common_range([p("photos/spots.png")], "x"),
    "load_config": lambda p, out: load_config(p("spots.yaml")).dump(),
    "load_config opts": lambda p, out: str(load_config("", ["MODEL.WEIGHTS", p("x.pth")]).MODEL.WEIGHTS),
    "register_coco": lambda p, out: registered(p("shapes/train.json"), p("shapes/images")),
    "make_shapes": lambda p, out: (str(make_shapes(out("s"), "val", 2, seed=0)), listing(out("s"))),
    "make_shapes_panoptic": lambda p, out: (str(make_shapes_panoptic(out("s"), "val", 2, seed=0)), listing(out("s"))),
    "setup": lambda p, out: set_up(p("shapes/train.json"), p("shapes/images"), out("run")),
    "build_evaluator": lambda p, out: evaluator_folder(p("shapes/train.json"), p("shapes/images"), out("e")),
    "write_results": lambda p, out: written(out("r.json"), lambda path: write_results(path, {"AP": 1.0})),
    "InstSegCheckpointer": lambda p, out: loaded(p("spots.pth"), out("c")),
    "read_checkpoint_info": lambda p, out: read_checkpoint_info(p("spots.pth")),
    "read_extra": lambda p, out: read_extra(p("spots.pth")),
    "read_weights": lambda p, out: read_weights(p("spots.pth")),
    "split_query": lambda p, out: split_query(p("spots.pth")),
    "save_safetensors": lambda p, out: written(
        out("w.safetensors"), lambda x: save_safetensors(x, model().state_dict())
    ),
    "write_index": lambda p, out: str(write_index(out("."), [], "x")),
    "write_bytes": lambda p, out: written(out("b"), lambda path: write_bytes(path, b"x")),
    "write_json": lambda p, out: written(out("j"), lambda path: write_json(path, [1])),
    "remove_unfinished": lambda p, out: remove_unfinished(out(".")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_path_object_does_what_its_text_does(files, tmp_path, name):
    found = []
    folder = tmp_path / "out"
    for kind in (str, Path):
        folder.mkdir()
        found.append(CALLS[name](lambda x, kind=kind: kind(files / x), lambda x, kind=kind: kind(folder / x)))
        folder.rename(tmp_path / kind.__name__)
    assert found[0] == found[1]
    assert found[0] is not None or name == "remove_unfinished"
