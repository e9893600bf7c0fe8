"""Training under torchrun: a killed process costs the steps since the last checkpoint, and the weights are the same."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from instseg_d2.data import make_shapes
from tests.scripts import ROOT

SCRIPT = ROOT / "projects" / "clusters" / "torchrun.sh"
LIMIT = 200  # seconds


@contextlib.contextmanager
def started(folder, out):
    words = ["--config", "quick/blendmask_shapes", "--num-gpus", "0", "--train-json", folder / "train.json"]
    words += ["--train-images", folder / "images", "SOLVER.MAX_ITER", 12, "SOLVER.IMS_PER_BATCH", 2]
    words += ["SOLVER.CHECKPOINT_PERIOD", 4, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", out]
    words += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", 128]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PROCESSES": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(SCRIPT), *map(str, words)]
    with open(f"{out}.log", "w") as log:
        job = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield job
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def children(process):
    """The processes that torchrun started."""
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_a_killed_process_is_restarted(tmp_path):
    make_shapes(tmp_path, "train", 8, 0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with started(tmp_path, whole) as job:
        assert job.wait(LIMIT) == 0, (tmp_path / "whole.log").read_text()
    log = tmp_path / "killed.log"
    with started(tmp_path, killed) as job:
        end = time.monotonic() + LIMIT
        while not (killed / "model_0000003.pth").exists() and job.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(children(job)[-1], signal.SIGKILL)
        assert job.wait(LIMIT) == 0, log.read_text()
    assert f"Resuming {killed} after " in log.read_text()
    expected, found = (torch.load(out / "model_final.pth", weights_only=False)["model"] for out in (whole, killed))
    assert all(torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)) for name, value in expected.items())
    assert set(found) == set(expected)
