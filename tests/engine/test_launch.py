"""Finding the world in the environment, and real gloo processes."""

import argparse
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn

from instseg_d2.engine import launch
from instseg_d2.engine.launch import World, _first_host, find_world
from instseg_d2.errors import ConfigError


def arguments(folder="", **kwargs):
    defaults = {"num_gpus": 0, "num_processes": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(folder=str(folder), **{**defaults, **kwargs})


# --- environment ---


def test_torchrun():
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert find_world(env) == World(5, 8, 1, 4, "env://")
    assert find_world({**env, "RANK": "0", "WORLD_SIZE": "1"}) is None


def test_slurm():
    env = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
        "SLURM_JOB_ID": "1234567",
    }
    assert find_world(env) == World(6, 8, 2, 4, "tcp://gpu07:34567")
    asked = {**env, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert find_world(asked).url == "tcp://10.0.0.1:29500"
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        find_world({**env, "SLURM_STEP_TASKS_PER_NODE": "4,2(x2)"})


def test_script_of_sbatch_is_no_task_of_srun():
    assert find_world({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) is None
    assert find_world({}) is None


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
    assert _first_host(nodes) == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_impossible_requests_are_named():
    with pytest.raises(ConfigError, match=r"--num-gpus 8: no GPU was found here; --num-gpus 0 --num-processes N"):
        launch(print, arguments(num_gpus=8))
    with pytest.raises(ConfigError, match="--dist-url tcp://HOST:PORT"):
        launch(print, arguments(num_machines=2))


@pytest.mark.parametrize("asked", [{"num_gpus": 8}, {"num_processes": 4}])
def test_a_count_that_srun_or_torchrun_has_not_started(monkeypatch, asked):
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setitem(launch.__globals__, "_run", lambda main, args, world, use_gpu: main(world.local_size))
    with pytest.raises(ConfigError, match=rf"--num-\w+ {max(asked.values())}: torchrun or srun has started 1 on this"):
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
    """They give the gradients of one process with both images, and the error of one of them is raised here."""
    with pytest.raises(ConfigError, match="a key is wrong"):
        launch(distributed_main, arguments(tmp_path, num_processes=2))
    model, images = toy_and_images()
    expected = gradients(model, images) / 2
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pth")
        assert result["world"] == (rank, 2, rank, "gloo")
        torch.testing.assert_close(result["gradients"], expected)


def test_one_process_needs_no_group():
    seen = []
    launch(lambda args: seen.append((args.num_gpus, dist.is_initialized())), arguments())
    assert seen == [(0, False)]


def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import argparse, json, sys
            from detectron2.utils import comm
            from instseg_d2.engine import launch

            def main(args):
                ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank()))
                if comm.is_main_process():
                    json.dump(ranks, open(sys.argv[1], "w"))

            launch(main, argparse.Namespace(num_gpus=0, num_processes=1))
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, script, tmp_path / "ranks.json"], env=env)
    assert done.returncode == 0
    assert json.loads((tmp_path / "ranks.json").read_text()) == [[0, 0], [1, 1]]
