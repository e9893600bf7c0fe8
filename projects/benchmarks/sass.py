"""
What the CUDA kernels compile to: ``python -m projects.benchmarks.sass [--csrc FOLDER] [--arch sm_90] [--loops]``.

Needs nvcc and cuobjdump (the CUDA toolkit's, or the one that comes with Triton), but no GPU. The instructions of a unit
of work are counted from the machine code: those of each loop times how often the standard case runs it (``CASES``),
those outside of loops once. Where the code branches both sides are counted, so that the figures are rather too high.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional

from instseg_d2.console import run_script

ROOT = Path(__file__).resolve().parents[2]


class Kernel(NamedTuple):
    """One compiled kernel; ``loops`` are (instructions without inner loops, depth), in order of their addresses."""

    name: str
    registers: int
    shared: int
    spilled: int
    outside: int
    loops: list


class Case(NamedTuple):
    """How often a thread runs each loop for so many units of work."""

    unit: str
    units: float
    trips: list


# blend_masks: K = 4, A = 14, R = 56, 100 boxes of 25 x 25 cells on bases of 200 x 272. A tile meets 3.8 of them, a
# row of pixels 2.9; of 56 rows a column's sums leave 25 for the crop and 14 for the attention.
# assemble_instances: 2000 windows of 21 x 21 on maps of 75 x 100, k = 5. A row of pixels meets the part of 58.
# mask_prob: D = 16 and 100 windows of 40 x 40 cells on a map of 200 x 336. A tile meets 5.1.
CASES = {
    ("assemble_instances", "forward_kernel<float>"): Case("window's cell", 8, [1, 2]),
    ("assemble_instances", "backward_kernel<float>"): Case("map's cell", 5, [1, 8, 64, 58]),
    ("blend_masks", "forward_kernel<float, float, true>"): Case("pixel", 4, [1, 1]),
    ("blend_masks", "plan_kernel<float, float>"): Case("pixel", 28, [1]),
    ("blend_masks", "shares_kernel<float, float, true>"): Case("pixel", 4, [1, 1, 0]),
    ("blend_masks", "dense_kernel<float, float>"): Case("pixel", 14, [2, 0, 0, 1, 56, 25, 31, 1, 56, 14, 42]),
    ("blend_masks", "attention_kernel<float, float>"): Case("pixel", 4, [1, 0, 0, 1, 2]),
    ("blend_masks", "bases_kernel<float, float>"): Case("pixel", 5.76, [1, 1, 4, 3.8, 2.9, 2.9]),
    ("mask_prob", "forward_kernel<float, float>"): Case("window's cell", 4, [1, 1, 0, 4]),
    ("mask_prob", "pixels_kernel<float, float>"): Case("map's cell", 0.5, [1, 1, 4, 0, 5.1]),
    ("mask_prob", "objects_kernel<float, float>"): Case("window's cell and dimension", 6.25, [2]),
}


def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(path) if path.exists() else None
    if found is None:
        sys.exit("cuobjdump is needed: it comes with the CUDA toolkit and with Triton.")
    return found


def output_of(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    return subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True).stdout


def short(name: str) -> str:
    """``forward_kernel<float>`` of a whole signature."""
    return re.sub(r"\(anonymous namespace\)::|instseg_d2::|^void ", "", name).split("(")[0].strip()


def loops_of(code: list) -> tuple[int, list]:
    """Instructions outside of loops, and the loops. Code behind the last EXIT is called from elsewhere: not counted."""
    last = max(at for at, text in code if "EXIT" in text)
    code = [(at, text) for at, text in code if at <= last]
    ends: dict = {}
    for at, text in code:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            ends[int(jump[1], 16)] = max(at, ends.get(int(jump[1], 16), 0))
    spans = sorted(ends.items())
    owners = [[i for i, (first, end) in enumerate(spans) if first <= at <= end] for at, _ in code]
    own = [sum(owner[-1:] == [i] for owner in owners) for i in range(len(spans))]
    depths = [sum(a <= first and end <= b for a, b in spans) - 1 for first, end in spans]
    return sum(not owner for owner in owners), list(zip(own, depths))


def compiled(source: Path, arch: str) -> list[Kernel]:
    """The kernels of a file, those for float32."""
    from torch.utils import cpp_extension

    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        options = ("-std=c++17", "-O3", f"-arch={arch}", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin")
        report = output_of("nvcc", *options, *includes, "-o", cubin, source)
        dump = output_of(cuobjdump(), "-sass", cubin)
    kernels = []
    for part in dump.split("Function : ")[1:]:
        name = short(part.splitlines()[0])
        if not re.search(r"<float\b", name):
            continue
        code = [(int(a, 16), t) for a, t in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", part, re.M)]
        entry = next(p for p in report.split("Compiling entry function ")[1:] if short(p.split("'")[1]) == name)
        numbers = [re.search(rf"{pattern}", entry) for pattern in (r"Used (\d+) reg", r"(\d+) bytes smem")]
        spilled = int(re.search(r"(\d+) bytes spill stores", entry)[1])
        registers, shared = (int(number[1]) if number else 0 for number in numbers)
        kernels.append(Kernel(name, registers, shared, spilled, *loops_of(code)))
    return kernels


def instructions(kernel: Kernel, case: Optional[Case]) -> Optional[float]:
    """For a unit of work; None if the compiler made other loops than the case knows."""
    if case is None or len(case.trips) != len(kernel.loops):
        return None
    return (kernel.outside + sum(own * trips for (own, _), trips in zip(kernel.loops, case.trips))) / case.units


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc", help="folder of the sources")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--loops", action="store_true", help="the instructions of each loop, too")
    arguments = parser.parse_args()
    print("| operator | kernel | instructions | of a | registers | shared bytes | spilled bytes |")
    print("|---|---|---|---|---|---|---|")
    for source in sorted((arguments.csrc / "ops" / "cuda").glob("*.cu")):
        operator = source.stem.removesuffix("_kernel")
        for kernel in compiled(source, arguments.arch):
            case = CASES.get((operator, kernel.name))
            count = instructions(kernel, case)
            work = ("?", "") if count is None else (f"{count:.0f}", case.unit)
            print("|", " | ".join(map(str, (operator, f"`{kernel.name}`", *work, *kernel[1:4]))), "|")
            if arguments.loops:
                print(kernel.outside, *(f"{'  ' * depth}{own}" for own, depth in kernel.loops), sep="\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
