"""
A run that is killed and resumed again and again ends like an uninterrupted one, bit by bit, and leaves no broken file.

Only if INSTSEG_KILLS gives the number of kills, since it takes minutes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from instseg_d2.data import make_shapes
from instseg_d2.files import remove_unfinished

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("INSTSEG_KILLS", 0))
ITERATIONS = 8 + 8 * KILLS


def start(folder, output):
    command = [
        sys.executable, str(ROOT / "projects/train_net.py"), "--resume",
        "--config-file", str(ROOT / "configs/quick/blendmask_shapes.yaml"),
        "--train-json", str(folder / "shapes/train.json"), "--train-images", str(folder / "shapes/images"),
        "--val-json", str(folder / "shapes/val.json"), "--val-images", str(folder / "shapes/images"),
        "OUTPUT_DIR", str(output),
        "MODEL.DEVICE", "cpu",
        "MODEL.FCOS.INFERENCE_TH_TEST", "0.0",
        "TEST.EVAL_PERIOD", "3",
        "INPUT.MIN_SIZE_TEST", "64",
        "SOLVER.MAX_ITER", str(ITERATIONS),
        "SOLVER.WARMUP_ITERS", "3",
        "SOLVER.CHECKPOINT_PERIOD", "2",
        "SOLVER.IMS_PER_BATCH", "2",
        "INPUT.MIN_SIZE_TRAIN", "(64, 96)",
        "INPUT.MAX_SIZE_TRAIN", "128",
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_training(process):
    for line in process.stdout:
        if "Training from iteration" in line:
            return
    raise AssertionError("the run ended before its training began")


def checkpoints(folder):
    return sorted(folder.glob("model_0*.pth"))


def wait_for_checkpoints(process, folder, count):
    while process.poll() is None and len(checkpoints(folder)) < count:
        time.sleep(0.005)


def finish(process):
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


@pytest.mark.slow
@pytest.mark.skipif(not KILLS or not hasattr(signal, "SIGKILL"), reason="INSTSEG_KILLS is not set, or no SIGKILL")
def test_killed_and_resumed(tmp_path):
    make_shapes(tmp_path / "shapes", "train", 8, seed=3)
    make_shapes(tmp_path / "shapes", "val", 2, seed=4)
    finish(start(tmp_path, tmp_path / "whole"))
    generator, broken = random.Random(0), tmp_path / "broken"
    for _ in range(KILLS):
        saved = len(checkpoints(broken))
        process = start(tmp_path, broken)
        wait_for_training(process)
        wait_for_checkpoints(process, broken, saved + generator.randrange(3))
        time.sleep(generator.uniform(0, 0.3))  # some steps on, or while the next one is written
        assert process.poll() is None, "it was through before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for file in broken.glob("model*.pth"):  # what is not whole has a name of its own
            assert "model" in torch.load(file), file
        if (broken / "last_checkpoint").exists():
            assert (broken / (broken / "last_checkpoint").read_text()).is_file()
    finish(start(tmp_path, broken))
    a, b = (torch.load(folder / "model_final.pth") for folder in (tmp_path / "whole", broken))
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert a["trainer"]["iteration"] == b["trainer"]["iteration"] == ITERATIONS - 1
    best = [torch.load(folder / "model_best.pth") for folder in (tmp_path / "whole", broken)]
    assert best[0]["best"] == best[1]["best"]
    assert all(torch.equal(best[0]["model"][key], value) for key, value in best[1]["model"].items())
    states = (x["trainer"]["optimizer"]["state"] for x in (a, b))
    for p, q in zip(*(state.values() for state in states)):
        assert all(torch.equal(torch.as_tensor(p[key]), torch.as_tensor(q[key])) for key in p)
    assert not [path.name for path in broken.iterdir() if path.name.startswith(".")]
    rows = [json.loads(line) for line in (broken / "metrics.json").read_text().splitlines()]
    iterations = [row["iteration"] for row in rows]
    assert len(iterations) == len(set(iterations))  # in the order in which Detectron2 writes them


def test_only_leftovers_are_removed(tmp_path):
    for name in (".model_0000001-ab12_xyz.pth", ".last_checkpoint-abcdefgh", ".hidden", "model.pth", ".a-SHORT.pth"):
        (tmp_path / name).write_text("")
    remove_unfinished(tmp_path)
    assert sorted(x.name for x in tmp_path.iterdir()) == [".a-SHORT.pth", ".hidden", "model.pth"]
