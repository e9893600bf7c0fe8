"""From arguments to a config: own data, class counts, device, and errors for bad input."""

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.commands import run
from instseg_d2.commands.train import work
from instseg_d2.config import class_count_keys, get_cfg, get_value
from instseg_d2.console import run_script
from instseg_d2.engine import argument_parser, launch, setup
from instseg_d2.errors import CheckpointError, ConfigError, DatasetError, is_user_error, sentence
from instseg_d2.files import atomic_write
from instseg_d2.modeling.build import build

ROOT = Path(__file__).parents[2]


def write_coco(folder, names, images=2):
    """A COCO file with one object of each class in each image, and its images."""
    folder.mkdir(exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(images)],
        "categories": [{"id": 5 * i + 3, "name": name} for i, name in enumerate(names)],
        "annotations": [],
    }
    for image in range(images):
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(folder / f"{image}.png")
        for number in range(len(names)):
            x = 4 + 6 * number
            content["annotations"].append(
                {"id": 1 + image * len(names) + number, "image_id": image, "category_id": 5 * number + 3,
                 "bbox": [x, x, 20, 20], "area": 400, "iscrowd": 0,
                 "segmentation": [[x, x, x + 20, x, x + 20, x + 20, x, x + 20]]}
            )  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(content))
    return str(folder / "labels.json"), str(folder)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Arguments that name a training and a validation set of three classes."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    train, val = (write_coco(tmp_path / name, ["cup", "fork", "spoon"]) for name in ("train", "val"))
    return ["--train-json", train[0], "--train-images", train[1], "--val-json", val[0], "--val-images", val[1]]


@pytest.fixture(autouse=True)
def _leave_logging_alone():
    root, known = logging.getLogger(), [logging.getLogger(name) for name in ("instseg_d2", "detectron2", "fvcore")]
    before, levels = list(root.handlers), [logger.level for logger in known]
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
    for logger, level in zip(known, levels):
        logger.setLevel(level)


def parse(tmp_path, arguments, *opts):
    return argument_parser().parse_args([*arguments, "OUTPUT_DIR", str(tmp_path / "out"), *opts])


def class_counts(cfg):
    return {key: get_value(cfg, key) - extra for key, extra in class_count_keys(cfg).items()}


def test_own_data(tmp_path, data):
    cfg = setup(parse(tmp_path, data))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("custom_train",), ("custom_val",))
    assert set(class_counts(cfg).values()) == {3}
    assert cfg.is_frozen()
    log = (tmp_path / "out" / "log.txt").read_text()
    keys = "MODEL.ROI_HEADS.NUM_CLASSES was 80, MODEL.RETINANET.NUM_CLASSES was 80"
    assert f"Number of classes: 3, as in custom_train ({keys})." in log
    assert cfg.MODEL.EMBED_MASK.NUM_CLASSES == 4


def test_a_method_may_count_the_background(tmp_path, data):
    setup(parse(tmp_path, data, "MODEL.META_ARCHITECTURE", "EmbedMask"))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "as in custom_train (MODEL.EMBED_MASK.NUM_CLASSES was 81 with the background)." in log


def test_registered_data_sets_count_too(tmp_path, data):
    setup(parse(tmp_path, data))
    cfg = setup(parse(tmp_path, [], "DATASETS.TRAIN", "('custom_train',)", "DATASETS.TEST", "('custom_val',)"))
    assert set(class_counts(cfg).values()) == {3}


def test_semantic_classes_of_registered_data_sets(tmp_path, data):
    setup(parse(tmp_path, data))
    MetadataCatalog.get("custom_train").stuff_classes = ["things", "sky", "sea"]
    cfg = setup(parse(tmp_path, [], "DATASETS.TRAIN", "('custom_train',)", "DATASETS.TEST", "()"))
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.FCOS.NUM_CLASSES) == (3, 3)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Number of semantic classes: 3, as in custom_train (was 54)." in log


def test_training_data_alone_is_not_evaluated_on_other_data(tmp_path, data):
    cfg = setup(parse(tmp_path, data[:4], "DATASETS.TEST", "('coco_2017_val',)"))
    assert cfg.DATASETS.TEST == ()


def test_other_classes_in_validation(tmp_path, data):
    val = write_coco(tmp_path / "val", ["cup", "knife", "spoon"])
    with pytest.raises(DatasetError, match=r"custom_train and custom_val.*'fork'.*'knife'"):
        setup(parse(tmp_path, [*data[:5], val[0], *data[6:]]))


def empty_image(folder, count):
    """Remove the objects of the last ``count`` images of a COCO file, so that training does not read these."""
    content = json.loads((folder / "labels.json").read_text())
    last = {image["id"] for image in content["images"][-count:]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in last]
    (folder / "labels.json").write_text(json.dumps(content))


def test_missing_images_are_counted_before_anything_is_built(tmp_path, data):
    train, val = tmp_path / "train", tmp_path / "val"
    (train / "0.png").unlink()
    setup(parse(tmp_path, data))  # the loader skips one
    (train / "1.png").unlink()
    with pytest.raises(DatasetError, match=rf"^2 of 2 images of custom_train are missing in {train}, the first is 0"):
        setup(parse(tmp_path, data))
    write_coco(train, ["cup", "fork", "spoon"], images=4)
    empty_image(train, 2)
    (train / "2.png").unlink(), (train / "3.png").unlink()
    setup(parse(tmp_path, data))
    with pytest.raises(DatasetError, match=r"^2 of 4 images of custom_train are missing in .*, the first is 2\.png\.$"):
        setup(parse(tmp_path, data, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"))
    (val / "1.png").unlink()  # an evaluation skips none
    with pytest.raises(DatasetError, match=rf"^1 of 2 images of custom_val are missing in {val}, the first is 1\.png"):
        setup(parse(tmp_path, data))


@pytest.mark.parametrize("name", ["coco_2017_train", "cityscapes_fine_instance_seg_train", "voc_2007_trainval"])
def test_missing_builtin_data(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    hint = r"datasets/.*: No such file or directory; Detectron2 looks for its built-in .* DETECTRON2_DATASETS"
    with pytest.raises(DatasetError, match=rf"^{name} cannot be loaded: {hint}"):
        setup(parse(tmp_path, [], "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()"))


def test_an_evaluation_that_cannot_be_is_refused_before_training(tmp_path, data):
    setup(parse(tmp_path, data))
    MetadataCatalog.get("toy_poses").set(evaluator_type="poses", thing_classes=["cup", "fork", "spoon"])
    DatasetCatalog.register("toy_poses", lambda: [{"file_name": str(tmp_path / "val" / "0.png")}])
    opts = ["DATASETS.TRAIN", "('custom_train',)", "DATASETS.TEST", "('toy_poses',)"]
    with pytest.raises(DatasetError, match="toy_poses has evaluator_type poses; it must be one of"):
        setup(parse(tmp_path, [], *opts))
    DatasetCatalog.remove("toy_poses")
    MetadataCatalog.pop("toy_poses")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_device_falls_back(tmp_path, data):
    cfg = setup(parse(tmp_path, data))
    assert cfg.MODEL.DEVICE == "cpu"
    assert "No GPU found: MODEL.DEVICE is set to cpu." in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("seed", [-1, 7])
def test_seed(tmp_path, data, seed):
    drawn = []
    for _ in range(2):
        setup(parse(tmp_path, data, "SEED", str(seed)))
        drawn.append((torch.rand(1).item(), np.random.rand()))
    assert (drawn[0] == drawn[1]) == (seed == 7)


@pytest.mark.parametrize(
    ("arguments", "opts", "error", "message"),
    [
        ([], [], ConfigError, "DATASETS.TRAIN is empty.*--train-json"),
        ([], ["DATASETS.TRAIN", "('shapes_trian',)"], DatasetError, "no data set named shapes_trian.*shapes_train"),
        (["--train-json", "a.json"], [], ConfigError, "--train-json needs --train-images"),
        (["--val-images", "d"], [], ConfigError, "--val-images needs --val-json"),
        (["--val-json", "a.json", "--val-images", "d"], [], ConfigError, "--val-json without --train-json"),
        (["--train-json", "none.json", "--train-images", "."], [], DatasetError, "none.json: no such"),
        (["--config-file", "none.yaml"], [], ConfigError, "none.yaml"),
        ([], ["SOLVER.BASE_RL", "1"], ConfigError, "SOLVER.BASE_RL.*SOLVER.BASE_LR"),
        (["--eval-only"], ["DATASETS.TEST", "('shapes_val',)"], CheckpointError, "MODEL.WEIGHTS FILE"),
        (["--eval-only"], [], ConfigError, "DATASETS.TEST is empty"),
        ([], ["--eval-only"], ConfigError, "--eval-only must come before the config overrides"),
    ],
)
def test_sentences(tmp_path, arguments, opts, error, message):
    with pytest.raises(error, match=message):
        setup(parse(tmp_path, arguments, *opts))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DEVICE", "gpu"], r"MODEL\.DEVICE is 'gpu'; it must be cuda, cuda:N or cpu\."),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosine"], r"LR_SCHEDULER_NAME is 'WarmupCosine'; .* or Warm"),
        (["SOLVER.STEPS", "(9, 5)", "SOLVER.MAX_ITER", "20"], r"LR_SCHEDULER_NAME WarmupMultiStepLR does not work"),
        (["SOLVER.WARMUP_METHOD", "cubic"], r"WARMUP_METHOD is 'cubic'; it must be linear or constant"),
    ],
)
def test_values_that_no_training_can_use(tmp_path, data, opts, message):
    with pytest.raises(ConfigError, match=message):
        setup(parse(tmp_path, data, *opts))


def test_one_warning_about_the_schedule(tmp_path, data, caplog):
    setup(parse(tmp_path, data, "SOLVER.MAX_ITER", "5"))
    assert "SOLVER.STEPS" not in caplog.text  # the trainer will say it


FPN = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
       "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
       "MODEL.DEVICE", "cpu"]  # fmt: skip


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 48], r"num_channels.*\(.*\.py, line \d+\)\.$"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res9"]], r": .+ \(resnet\.py, line \d+\)\.$"),
    ],
)
def test_models_that_cannot_be_built(opts, message):
    cfg = get_cfg()
    cfg.merge_from_list([*FPN, *opts])
    with pytest.raises(ConfigError, match=f"^the model of this config cannot be built: .*{message}"):
        build(cfg)


def test_output_folder_that_cannot_be_made(tmp_path, data):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*out is not writable"):
        setup(parse(tmp_path, data))


def test_evaluation_takes_the_classes_of_the_checkpoint(tmp_path, data):
    for names in (["cup", "fork", "spoon"], ["cat", "dog"]):
        checkpointer = InstSegCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), metadata={"class_names": names})
        checkpointer.save("model")
        args = parse(tmp_path, ["--eval-only", *data[4:]], "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
        if len(names) == 3:
            assert set(class_counts(setup(args)).values()) == {3}
        else:
            with pytest.raises(DatasetError, match=r"model\.pth was trained on 2 classes \(cat, dog\).*has 3 \(cup, "):
                setup(args)


# --- the command ---


def test_mistakes_end_in_one_line(tmp_path, data, capsys, monkeypatch):
    args = parse(tmp_path, data, "MODEL.WEIGHTS", "none.pth", "MODEL.BACKBONE.FREEZE_AT", "0")
    monkeypatch.delenv("INSTSEG_DEBUG", raising=False)
    assert run_script(launch, work, args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: none.pth: no such weight file.")
    monkeypatch.setenv("INSTSEG_DEBUG", "1")
    with pytest.raises(CheckpointError):
        run_script(launch, work, args)


def test_other_errors_keep_their_traceback(capsys):
    def main():
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run_script(main)


def test_stopping_by_hand(capsys):
    def main():
        raise KeyboardInterrupt

    assert run_script(main) == 130
    assert capsys.readouterr().err == "stopped by the user\n"


def test_sentences_of_wrapped_errors():
    class Refuses(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DatasetError("a.json: annotation 3\nis wrong")

    with pytest.raises(DatasetError) as caught:
        next(iter(torch.utils.data.DataLoader(Refuses(), num_workers=1)))
    assert sentence(caught.value) == "a.json: annotation 3 is wrong"
    with pytest.raises(FileNotFoundError) as caught:
        Path("none.txt").read_text()
    assert sentence(caught.value) == "none.txt: No such file or directory"


def test_a_full_disk_is_named(tmp_path):
    full = errno.ENOSPC, os.strerror(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "metrics.bin"):
        raise OSError(*full)
    assert is_user_error(caught.value)
    assert sentence(caught.value) == f"{tmp_path}/metrics.bin: {full[1]}"
    assert sentence(pickle.loads(pickle.dumps(caught.value))) == sentence(caught.value)  # from another process
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.bin"):
        (tmp_path / "other.bin").read_bytes()
    assert sentence(caught.value) == f"{tmp_path}/other.bin: No such file or directory"  # its own name stays
    assert sentence(OSError(*full)) == f"{full[1]}: free some space in OUTPUT_DIR, or choose another folder"


TINY = {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.FPN.IN_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [32], [64], [128], [256]]",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
}


def test_a_user_trains_resumes_and_evaluates(tmp_path, data, capsys):
    """Two gloo processes train, one resumes, the checkpoint knows its classes, and --eval-only gives the same."""
    opts = [str(word) for item in TINY.items() for word in item]
    out = tmp_path / "out"
    command = [sys.executable, "projects/train_net.py", *data, "--num-gpus", "0", "--num-processes", "2", *opts]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "OUTPUT_DIR", str(out)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RetinaNet on 2 x CPU" in done.stdout
    assert f"Starting a new run in {out}." in done.stdout

    assert run_script(launch, work, parse(tmp_path, [*data, "--resume"], *opts, "SOLVER.MAX_ITER", "3")) == 0
    stdout = capsys.readouterr().out
    assert f"Resuming {out} after 2 iterations." in stdout
    assert "iter 3/3  total_loss" in stdout
    results = json.loads((out / "inference" / "results.json").read_text())
    assert set(results["bbox"]) >= {"AP", "AP50", "AP-cup", "AP-fork", "AP-spoon"}

    (out / "inference" / "results.json").unlink()
    config = (out / "config.yaml").read_text()
    assert "MAX_ITER: 3" in config
    args = parse(tmp_path, [*data, "--eval-only"], *opts, "MODEL.WEIGHTS", str(out / "model_final.pth"))
    assert run_script(launch, work, args) == 0
    assert json.loads((out / "inference" / "results.json").read_text()) == results
    assert torch.load(out / "model_final.pth")["class_names"] == ["cup", "fork", "spoon"]
    assert (out / "config.yaml").read_text() == config  # an evaluation has its own

    words = ["--weights", str(out / "model_final.pth"), "--output", str(tmp_path / "evaluation"), "--num-gpus", "0"]
    assert run("evaluate", [*words, "--json", data[5], "--images", data[7]]) == 0  # with the config in the file
    assert json.loads((tmp_path / "evaluation" / "inference" / "results.json").read_text()) == results
    for name in ("custom_train", "custom_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    assert run("evaluate", words) == 2
    assert "--json and --images, or --data (the test set of its config, custom_val, is not" in capsys.readouterr().err
    assert f"WEIGHTS: {out}/model_final.pth" in (out / "inference" / "config.yaml").read_text()


def make_deep(folder, bits):
    """The images of ``write_coco`` with values of this many bits, stored in 16."""
    for path in sorted(folder.glob("*.png")):
        ramp = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
        Image.fromarray(ramp).save(path)


def test_values_of_more_than_eight_bits_have_one_range(tmp_path, data):
    make_deep(tmp_path / "train", 12)
    cfg = setup(parse(tmp_path, data))
    assert cfg.INPUT.VALUE_RANGE == (0, 4095)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("their values 0 to 4095 become 0 to 255") == 1
    assert setup(parse(tmp_path, data, "INPUT.VALUE_RANGE", "(0, 9999)")).INPUT.VALUE_RANGE == (0, 9999)
    with pytest.raises(ConfigError, match=r"INPUT\.VALUE_RANGE is \(9,\); it must be two numbers"):
        setup(parse(tmp_path, data, "INPUT.VALUE_RANGE", "(9,)"))


def test_validation_images_are_read_like_the_training_images(tmp_path, data):
    make_deep(tmp_path / "train", 12)
    make_deep(tmp_path / "val", 16)
    assert setup(parse(tmp_path, data)).INPUT.VALUE_RANGE == (0, 4095)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "custom_val: 2 of 2 images do not fit the range of values 0 to 4095" in log


def test_evaluation_reads_images_as_training_did(tmp_path, data):
    make_deep(tmp_path / "val", 12)
    cfg = get_cfg()
    for trained, expected in (((0, 16383), (0, 16383)), ((), (0, 4095))):
        cfg.INPUT.VALUE_RANGE = trained
        names = ["cup", "fork", "spoon"]
        torch.save({"model": {"weight": torch.zeros(1)}, "cfg": cfg.dump(), "class_names": names}, tmp_path / "w.pth")
        weights = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "w.pth")]
        args = argument_parser().parse_args([*data[4:], *weights, "OUTPUT_DIR", str(tmp_path / "out")])
        assert setup(args).INPUT.VALUE_RANGE == expected
