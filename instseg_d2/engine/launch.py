"""Starts one or more processes, on CPUs or GPUs, directly or under torchrun or Slurm."""

import datetime
import os
import re
import signal
import socket
import time
from collections.abc import Mapping
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ..console import keep_console
from ..errors import ConfigError, WorkerError, is_user_error, sentence

__all__ = ["launch", "slurm_environment"]

_TIMEOUT = datetime.timedelta(minutes=30)


def slurm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """
    The variables that torchrun would set for this srun task; empty if srun started at most one task.

    Raises:
        ConfigError: Slurm started a different number of tasks on each node.
    """
    size = env.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun for each of its tasks, not by sbatch for its script
    if size == "1":
        return {}
    local_size = env.get("SLURM_STEP_TASKS_PER_NODE", size)
    if "," in local_size:
        raise ConfigError(
            f"Slurm must start the same number of tasks on each node (--ntasks-per-node); got {local_size}."
        )
    first_host = re.match(r"(?:[^,\[]|\[[^\]]*\])+", env["SLURM_STEP_NODELIST"]).group()  # n[03-05,9],m1: n[03-05,9]
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": local_size.split("(")[0],
        "MASTER_ADDR": env.get("MASTER_ADDR") or re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first_host),  # n03
        "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + int(env["SLURM_JOB_ID"]) % 20000),
    }


def _join(main: Callable, args, url: str = "env://") -> None:
    """Call ``main(args)`` in the process group at ``url``; torchrun's variables give the rank."""
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    use_gpu = torch.cuda.is_available() and args.num_gpus > 0
    if use_gpu:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())  # Slurm may show each task only its own GPU
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    dist.init_process_group("nccl" if use_gpu else "gloo", url, _TIMEOUT, world_size=size, rank=rank)
    comm.create_local_process_group(local_size)
    main(args)
    dist.destroy_process_group()
    # gloo's threads release Python's tensors shortly after the last collective. If the interpreter has shut down by
    # then, they abort the process.
    time.sleep(0.2)


def _spawned(local_rank: int, main: Callable, args, variables: dict, url: str, errors) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    # Data loader workers start as in a single process or under torchrun: forked if possible.
    mp.set_start_method(mp.get_all_start_methods()[0], force=True)
    keep_console()
    os.environ.update(variables, RANK=str(int(variables["RANK"]) + local_rank), LOCAL_RANK=str(local_rank))
    try:
        _join(main, args, url)
    except Exception as error:
        time.sleep(1)  # a process that fails because another ended must report after it
        if not is_user_error(error):
            raise
        errors.put(WorkerError(sentence(error)) if isinstance(error, RuntimeError) else error)  # pickling drops causes
        raise SystemExit(2) from None


def _spawn(main: Callable, args, count: int, url: str) -> None:
    """Start ``count`` processes on this machine and wait for them; the first to fail ends the others."""
    variables = {
        "RANK": str(args.machine_rank * count),
        "WORLD_SIZE": str(count * args.num_machines),
        "LOCAL_WORLD_SIZE": str(count),
    }
    errors = mp.get_context("spawn").SimpleQueue()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not interrupt their imports
    try:
        arguments = (main, args, variables, url, errors)
        context = mp.start_processes(_spawned, arguments, count, join=False, start_method="spawn")
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as error:
        if not errors.empty():
            raise errors.get() from None
        end = f"was killed by {error.signal_name}" if error.signal_name else f"ended with exit status {error.exit_code}"
        hint = ", probably for lack of memory" if error.signal_name == "SIGKILL" else ""
        raise WorkerError(f"process {error.error_index + 1} of {count} on this machine {end}{hint}.") from error
    finally:
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join()


def _local_processes(args) -> int:
    """The number of processes on this machine: one per GPU, or the requested number on the CPU."""
    available = torch.cuda.device_count()
    if available == 0 or args.num_gpus == 0:
        if args.num_gpus > 1:
            raise ConfigError(
                f"--num-gpus {args.num_gpus}: this machine has no GPU; --num-gpus 0 --num-processes N runs on the CPU."
            )
        return args.num_processes
    if args.num_gpus > available:
        raise ConfigError(f"--num-gpus {args.num_gpus}: this machine has only {available}.")
    return args.num_gpus


def _free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def launch(main: Callable, args) -> None:
    """
    Call ``main(args)`` in every process of the job.

    Under torchrun or srun each process reads its rank from the environment. Otherwise the processes are started here:
    one for each of ``args.num_gpus`` GPUs (NCCL), or ``args.num_processes`` on the CPU (gloo).

    Args:
        main: a module-level function, since new processes import it.
        args: has num_gpus and num_processes (per machine), num_machines, machine_rank and dist_url ("auto": a free
            port of this machine).

    Raises:
        ConfigError: there are fewer GPUs than requested; several machines have no common address; or torchrun or srun
            started another number of processes than requested.
        WorkerError: a process was killed.
        Exception: whatever ``main`` raises in any process.
    """
    if "RANK" not in os.environ:
        os.environ.update(slurm_environment(os.environ))
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1":
        started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        for option, asked in (("--num-gpus", args.num_gpus), ("--num-processes", args.num_processes)):
            if 1 < asked != started:
                raise ConfigError(
                    f"{option} is {asked}, but torchrun or srun started {started} processes on this machine: start "
                    f"{asked} (torchrun --nproc-per-node, srun --ntasks-per-node) or omit {option}."
                )
        _join(main, args)
        return
    count = _local_processes(args)
    if count * args.num_machines == 1:
        main(args)
        return
    if args.dist_url == "auto" and args.num_machines > 1:
        raise ConfigError("--num-machines: give the first machine's address as --dist-url tcp://HOST:PORT.")
    _spawn(main, args, count, _free_address() if args.dist_url == "auto" else args.dist_url)
