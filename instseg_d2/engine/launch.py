"""Starting one or many processes, on CPUs or GPUs, by itself or under torchrun or Slurm."""

import datetime
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Callable, NamedTuple, Optional

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ..errors import ConfigError, is_user_error

__all__ = ["World", "find_world", "launch"]

_TIMEOUT = datetime.timedelta(minutes=30)


class World(NamedTuple):
    """Where a process stands among all processes."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    url: str  # where rank 0 listens


def _first_host(nodelist: str) -> str:
    """First name of a Slurm node list: 'n[03-05,9],m1' -> 'n03'."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist).group()
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def find_world(env: Mapping[str, str]) -> Optional[World]:
    """
    The place that torchrun or srun gave to this process in its environment.

    Args:
        env: environment variables.

    Returns:
        None when neither started it, or when it is the only process.

    Raises:
        ConfigError: Slurm started a different number of tasks on each node.
    """
    if "RANK" in env and "WORLD_SIZE" in env and "LOCAL_RANK" in env:
        size = int(env["WORLD_SIZE"])
        world = World(int(env["RANK"]), size, int(env["LOCAL_RANK"]), int(env.get("LOCAL_WORLD_SIZE", size)), "env://")
        return world if size > 1 else None
    # Set by srun for each of its tasks, not by sbatch for its script.
    size = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1:
        return None
    local_size = env.get("SLURM_STEP_TASKS_PER_NODE", str(size))
    if "," in local_size:
        raise ConfigError(f"Slurm must start equally many tasks on each node (--ntasks-per-node); got {local_size}.")
    host = env.get("MASTER_ADDR") or _first_host(env["SLURM_STEP_NODELIST"])
    port = env.get("MASTER_PORT") or 20000 + int(env["SLURM_JOB_ID"]) % 20000
    local_size = int(local_size.split("(")[0])
    return World(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size, f"tcp://{host}:{port}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _run(main: Callable, args, world: World, use_gpu: bool) -> None:
    """Join the process group, call ``main(args)`` and leave the group."""
    if use_gpu:
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())  # Slurm may show each task its GPU alone
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_size))
    backend = "nccl" if use_gpu else "gloo"
    dist.init_process_group(backend, world.url, _TIMEOUT, world_size=world.size, rank=world.rank)
    comm.create_local_process_group(world.local_size)
    main(args)
    dist.destroy_process_group()
    # gloo's threads give back Python's tensors just after the last collective has returned. Were the interpreter
    # already on its way out, they would abort the process; sleeping lets them have it first.
    time.sleep(0.2)


def _spawned(local_rank: int, main: Callable, args, world: World, use_gpu: bool, errors) -> None:
    def report_errors(args):
        try:
            main(args)
        except Exception as error:
            if not is_user_error(error):
                raise
            errors.put(error)  # before the other processes fail for want of this one
            raise SystemExit(2) from None

    rank = world.rank + local_rank
    _run(report_errors, args, world._replace(rank=rank, local_rank=local_rank), use_gpu)


def _local_processes(args) -> int:
    """How many processes this machine runs: one a GPU, or the number asked for on the CPU."""
    available = torch.cuda.device_count()
    if available == 0 or args.num_gpus == 0:
        if args.num_gpus > 1:
            raise ConfigError(
                f"--num-gpus {args.num_gpus}: no GPU was found here; --num-gpus 0 --num-processes N runs on the CPU."
            )
        return args.num_processes
    if args.num_gpus > available:
        raise ConfigError(f"--num-gpus {args.num_gpus}: this machine has {available}.")
    return args.num_gpus


def launch(main: Callable, args) -> None:
    """
    Call ``main(args)`` in every process of the job.

    Under torchrun or srun each process finds its place in the environment. Otherwise the processes are started here:
    one for each of ``args.num_gpus`` GPUs (NCCL), or ``args.num_processes`` on the CPU (gloo).

    Args:
        main: a function of a module, since new processes import it.
        args: with num_gpus, num_processes and num_machines (each a machine), machine_rank, dist_url ("auto": a free
            port of this machine).

    Raises:
        ConfigError: more GPUs asked for than there are; several machines without an address; another number of
            processes asked for than torchrun or srun has started.
        Exception: what ``main`` raised in any process.
    """
    use_gpu = torch.cuda.is_available() and args.num_gpus > 0
    world = find_world(os.environ)
    if world is not None:
        for option, asked in (("--num-gpus", args.num_gpus), ("--num-processes", args.num_processes)):
            if 1 < asked != world.local_size:
                raise ConfigError(
                    f"{option} {asked}: torchrun or srun has started {world.local_size} on this machine; ask it for "
                    f"{asked} (--nproc-per-node of torchrun, --ntasks-per-node of srun) or leave {option} out."
                )
        _run(main, args, world, use_gpu)
        return
    count = _local_processes(args)
    if count * args.num_machines == 1:
        main(args)
        return
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise ConfigError("--num-machines: give the first machine's address as --dist-url tcp://HOST:PORT.")
        url = f"tcp://127.0.0.1:{_free_port()}"
    world = World(args.machine_rank * count, count * args.num_machines, 0, count, url)
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        mp.start_processes(_spawned, (main, args, world, use_gpu, errors), count, start_method="spawn")
    except (mp.ProcessExitedException, mp.ProcessRaisedException):
        if errors.empty():
            raise
        raise errors.get() from None
