"""
Seeds each fault of mutants.py in the CUDA kernels and runs the tests of the operator, which have to fail.

One process imports everything but the operators and is copied for each fault, so that none waits for imports.
"""

import argparse
import importlib
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_emulation import build
from tests.cuda_emulation.mutants import MUTANTS

OPERATORS = ("assemble_instances", "blend_masks", "mask_prob")
SECONDS = 120  # of a processor: a fault may also be one that never ends
SLOW = ("temporaries", "opcheck", "compiles", "gradcheck", "environment_variable", "on_the_threads")


def operator_of(mutant) -> str:
    """Whose tests run; what several share is tested by mask_prob's."""
    return next((name for name in OPERATORS if mutant.source.startswith(name)), "mask_prob")


def seeded(mutant):
    """Gives the source with the fault to ``build.read_sources``."""

    def change(path, text):
        if path != f"ops/cuda/{mutant.source}":
            return text
        count = text.count(mutant.old)
        if count != 1:
            sys.exit(
                f"Seeded fault {mutant.name!r}: csrc/{path} holds its text {count} times, not once. "
                f"Bring it up to date in tests/cuda_emulation/mutants.py: {mutant.old!r}"
            )
        return text.replace(mutant.old, mutant.new)

    return change


def use(library: Path):
    """Loads a library as the operators' extension."""
    spec = importlib.util.spec_from_file_location("instseg_d2._C", library)
    sys.modules["instseg_d2._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["instseg_d2._C"])
    del os.environ["INSTSEG_NO_EXT"]
    for name in ("extension", *OPERATORS):
        importlib.reload(sys.modules[f"instseg_d2.ops.{name}"])
    importlib.reload(sys.modules["instseg_d2.ops"])


def arguments_of(operator: str) -> list[str]:
    files = ["tests/cuda_emulation/test_limits.py", "tests/ops/test_operators.py", f"tests/ops/test_{operator}.py"]
    return [*files, "-k", f"{operator} and not ({' or '.join(SLOW)})"]


def run_races(library: Path, log: Path) -> int:
    """1 if ThreadSanitizer finds a race, else the exit status."""
    preload = subprocess.run(["c++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    options = {"LD_PRELOAD": preload.stdout.strip(), "TSAN_OPTIONS": "report_signal_unsafe=0"}
    command = ["setarch", "-R", sys.executable, "-m", "tests.cuda_emulation.races", str(library)]
    with open(log, "w") as out:
        done = subprocess.run(command, env={**os.environ, **options}, stdout=out, stderr=out)
    return 1 if done.returncode == 66 else done.returncode


def run(library: Path, arguments: list, log: Path) -> int:
    """The exit status of pytest in a copy of this process; negative: of a signal, as when its time is over."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
            with open(log, "w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            use(library)
            import pytest

            status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments]))
            sys.stdout.flush()
        except BaseException as error:  # the copy never goes on as the original
            print(repr(error), flush=True)
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=build.ROOT / "build" / "cuda_emulation", help="as of build.py")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run every N-th of them, to save time")
    parser.add_argument("--only", default="", help="run those whose name holds this text")
    parser.add_argument("--fma", action="store_true", help="as of build.py")
    parser.add_argument("--races", action="store_true", help="those that only ThreadSanitizer can find")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if mutant.races == arguments.races and arguments.only in mutant.name]
    mutants = mutants[:: arguments.every]
    sources = [build.read_sources(seeded(mutant)) for mutant in MUTANTS]  # each of them has to match
    sources = [sources[MUTANTS.index(mutant)] for mutant in mutants]
    tree = arguments.output.resolve()
    compiler = build.Compiler(
        tree.parent / "cuda_emulation_objects", arguments.fma, "thread" if arguments.races else ""
    )
    os.chdir(tree)
    os.environ.update(INSTSEG_NO_EXT="1", OMP_NUM_THREADS="1")
    os.environ.setdefault("INSTSEG_EMULATION_SEED", "1")
    sys.path.insert(0, str(tree))
    import instseg_d2.ops

    assert instseg_d2.ops.__file__.startswith(str(tree)), instseg_d2.ops.__file__
    failed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def check(number, operator, sources):
            """(whether the tests fail, the first line that says so); None: they cannot be run."""
            place = Path(folder) / str(number)
            try:
                compiler.extension(sources, place / "csrc", place / "_C.so")
            except build.CompileError as error:
                return None, next((line for line in str(error).splitlines() if "error" in line), str(error))
            if arguments.races:
                status = run_races(place / "_C.so", place / "log")
            else:
                status = run(place / "_C.so", arguments_of(operator), place / "log")
            log = (place / "log").read_text()
            telling = [line for line in log.splitlines() if line.startswith(("FAILED", "ERROR", "Fatal", "SUMMARY"))]
            result = {0: False, 1: True}.get(status, True if status < 0 else None)
            return result, (telling or log.splitlines()[-1:] or ["time over"])[0]

        whole = build.read_sources()
        sound_of = OPERATORS if arguments.every == 1 and not arguments.races else OPERATORS[:1]
        sound = [pool.submit(check, name, name, whole) for name in sound_of]
        seeds = [
            pool.submit(check, number, operator_of(mutant), sources[number]) for number, mutant in enumerate(mutants)
        ]
        for name, job in zip(sound_of, sound):
            fails, line = job.result()
            print(f"{name}, without a fault: {line}", flush=True)
            if fails is not False:
                failed.append(f"{name} without a fault")
        for mutant, job in zip(mutants, seeds):
            fails, line = job.result()
            word = {True: "found", False: "MISSED", None: "NOT RUN"}[fails]
            print(f"{word} {mutant.name}: {line}", flush=True)
            if not fails:
                failed.append(mutant.name)
    print(f"{len(mutants)} seeded faults of the {len(MUTANTS)} in the list")
    if failed:
        sys.exit("Wrong: " + "; ".join(failed))


if __name__ == "__main__":
    main()
