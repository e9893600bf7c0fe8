"""The environment of torchrun and Slurm, and real gloo processes: their results, errors, deaths and Ctrl-C."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch

from instseg_d2.engine import launch
from instseg_d2.engine.launch import slurm_environment
from instseg_d2.errors import ConfigError, WorkerError
from tests.processes import forked, forking


def arguments(folder="", **kwargs):
    defaults = {"num_gpus": 0, "num_processes": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(folder=str(folder), **{**defaults, **kwargs})


# --- environment ---


def test_slurm():
    env = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
        "SLURM_JOB_ID": "1234567",
    }
    expected = {
        "RANK": "6",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "34567",
    }
    assert slurm_environment(env) == expected
    asked = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert slurm_environment({**env, **asked}) == {**expected, **asked}
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        slurm_environment({**env, "SLURM_STEP_TASKS_PER_NODE": "4,2(x2)"})


def test_an_sbatch_script_is_not_an_srun_task():
    assert slurm_environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) == {}
    assert slurm_environment({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[03-05,9],m1", "n03"),
        ("rack2-n[7]", "rack2-n7"),
        ("r[1-2]n[03,05]x", "r1n03x"),
    ],
)
def test_first_host(nodes, first):
    task = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}
    assert slurm_environment({**task, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_impossible_requests_are_named():
    with pytest.raises(ConfigError, match=r"--num-gpus 8: this machine has no GPU; --num-gpus 0 --num-processes N"):
        launch(print, arguments(num_gpus=8))
    with pytest.raises(ConfigError, match="--dist-url tcp://HOST:PORT"):
        launch(print, arguments(num_machines=2))


@pytest.mark.parametrize("asked", [{"num_gpus": 8}, {"num_processes": 4}])
def test_a_count_that_srun_or_torchrun_has_not_started(monkeypatch, asked):
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setitem(launch.__globals__, "_join", lambda main, args: main(int(os.environ["LOCAL_WORLD_SIZE"])))
    with pytest.raises(
        ConfigError, match=rf"--num-\w+ is {max(asked.values())}, but torchrun or srun started 1 process"
    ):
        launch(print, arguments(**asked))
    seen = []
    launch(seen.append, arguments(num_gpus=1))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch(seen.append, arguments(num_gpus=2))
    assert seen == [1, 2]


# --- processes ---


class Toy(nn.Module):
    """Sum over its images of a loss, so that the mean over two processes is half the sum over both images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, images):
        return sum(self.norm(self.conv(image[None])).square().sum().sqrt() for image in images)


def gradients(model, images):
    model(images).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def toy_and_images():
    torch.manual_seed(3)
    return Toy(), [torch.randn(1, 8, 8), torch.randn(1, 9, 7)]


def distributed_main(args):
    """Leaves gradients in the folder; then rank 1 fails while rank 0 waits for it."""
    model, images = toy_and_images()
    rank, size = comm.get_rank(), comm.get_world_size()
    found = gradients(create_ddp_model(model, device_ids=None), [images[rank]])
    world = (rank, size, comm.get_local_rank(), dist.get_backend())
    torch.save({"gradients": found, "world": world}, f"{args.folder}/{rank}.pth")
    dist.barrier()
    if rank == 1:
        raise ConfigError("a key is wrong")
    dist.barrier()


def test_two_processes(tmp_path):
    """They give the gradients of one process with both images; the error of one process is raised here."""
    with forking("forkserver"), pytest.raises(ConfigError, match="a key is wrong"):
        launch(distributed_main, arguments(tmp_path, num_processes=2))
    model, images = toy_and_images()
    expected = gradients(model, images) / 2
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pth")
        assert result["world"] == (rank, 2, rank, "gloo")
        torch.testing.assert_close(result["gradients"], expected)


def dying_main(args):
    """Rank 1 ends as ``args.folder`` says, while rank 0 waits for it."""
    dist.barrier()
    if comm.get_rank() == 1:
        if args.folder == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("a defect")
    dist.barrier()


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(
    ("death", "error", "message"),
    [
        ("killed", WorkerError, "process 2 of 2 on this machine was killed by SIGKILL, probably for lack of memory"),
        ("defect", mp.ProcessRaisedException, "(?s)Process 1 terminated.*in dying_main.*KeyError: 'a defect'"),
    ],
)
def test_the_death_of_a_process_ends_the_others(death, error, message):
    with forking(), pytest.raises(error, match=message):
        launch(dying_main, arguments(death, num_processes=2))
    assert not mp.active_children()


def waiting_main(args):
    print("waits", flush=True)
    time.sleep(600)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c():
    """From a terminal, which signals all processes: while they start, and while they run."""
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "from instseg_d2.console import run_script\n"
        "from instseg_d2.engine import launch\n"
        "from tests.engine.test_launch import arguments, waiting_main\n"
        "from tests.processes import forking\n"
        "print('starts', flush=True)\n"
        "print(run_script(launch, waiting_main, arguments(num_processes=2)), flush=True)\n"
        "with forking():\n"
        "    sys.exit(run_script(launch, waiting_main, arguments(num_processes=2)))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    watchdog = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    assert process.stdout.readline() == "starts\n"
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert [process.stdout.readline() for _ in range(3)] == ["130\n", "waits\n", "waits\n"]
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == 2 * "stopped by the user\n"
    assert process.returncode == 130
    watchdog.cancel()


def test_one_process_needs_no_group():
    seen = []
    launch(lambda args: seen.append((args.num_gpus, dist.is_initialized())), arguments())
    assert seen == [(0, False)]


def write_ranks(path):
    """Main function of a process that torchrun starts."""
    launch(write_ranks_main, arguments(path))


def write_ranks_main(args):
    ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank()))
    if comm.is_main_process():
        Path(args.folder).write_text(json.dumps(ranks))


def torchrun(function, *args):
    """As the command starts a script, but forks."""
    words = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--start-method=fork", ""]
    elastic_launch(run.config_from_args(run.parse_args(words))[0], function)(*args)


def test_under_torchrun(tmp_path):
    assert forked(torchrun, write_ranks, tmp_path / "ranks.json")[0] == 0
    assert json.loads((tmp_path / "ranks.json").read_text()) == [[0, 0], [1, 1]]
