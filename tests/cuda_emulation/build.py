"""
Builds the extension into a copy of the tree: with the kernels of csrc/ops/cuda, emulated, in place of csrc/ops/cpu.

Objects are named by a digest of what they are made from, so that only what changed is compiled again.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_emulation.rewrite import rewrite

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TREE = ("instseg_d2", "projects", "tests", "pyproject.toml", "setup.py", "csrc", "configs")


def read_sources(change=lambda path, text: text) -> dict:
    """
    {path in csrc: rewritten text}; ``change`` gets each CUDA source first. Kernels of the CPU stay only where there is
    none of CUDA.
    """
    sources = {}
    replaced = {path.stem for path in (ROOT / "csrc").rglob("*.cu")}
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        name = path.relative_to(ROOT / "csrc").as_posix()
        if not (name.startswith("ops/cpu/") and path.suffix == ".cpp" and path.stem in replaced):
            text = path.read_text()
            sources[name] = rewrite(change(name, text)) if name.startswith("ops/cuda/") else text
    return sources


def digest(*parts) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


class CompileError(RuntimeError):
    """With the compiler's messages."""


class Compiler:
    """
    Args:
        folder: where objects lie.
        fma: contract multiplications and additions, as nvcc does.
        sanitize: for -fsanitize, "" for none.
    """

    def __init__(self, folder: Path, fma=False, sanitize="", flags=()):
        import sysconfig

        from torch.utils import cpp_extension

        self.folder = folder
        self.lock = threading.Lock()
        self.command = os.environ.get("CXX", "c++").split()
        cpu = Path("/proc/cpuinfo")
        has_fma = os.uname().machine == "x86_64" and cpu.exists() and " fma " in cpu.read_text()
        contraction = ["-ffp-contract=fast", *(["-mfma"] if has_fma else [])]
        self.flags = [
            *("-std=c++17", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-Wno-unknown-pragmas"),
            *(contraction if fma else ["-ffp-contract=off"]),
            *([f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g1"] if sanitize else []),
            *(["-DEMU_REAL_THREADS", "-pthread"] if sanitize == "thread" else []),
            *flags,
        ]
        includes = [HERE / "include", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
        self.includes = [f"-I{path}" for path in includes]
        self.libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        self.headers = "".join(path.read_text() for path in sorted((HERE / "include").rglob("*.h")))
        version = subprocess.run([*self.command, "--version"], capture_output=True, text=True, check=True).stdout
        self.key = digest(version, *self.flags, *self.includes, self.headers)

    def run(self, *arguments):
        done = subprocess.run([*self.command, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"{done.stdout}{done.stderr}\nThe emulated CUDA sources do not compile (see above).")

    def precompiled(self) -> Path:
        """The folder of the precompiled header."""
        folder = self.folder / f"header-{self.key}"
        with self.lock:
            if not (folder / "torch_emulation.h.gch").exists():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "torch_emulation.h").write_text('#error "the precompiled header does not fit"\n')
                header = HERE / "include" / "torch_emulation.h"
                part = folder / f"{uuid.uuid4()}.part"
                self.run(*self.flags, *self.includes, "-x", "c++-header", header, "-o", part)
                part.rename(folder / "torch_emulation.h.gch")
        return folder

    def object(self, sources: dict, name: str, csrc: Path) -> Path:
        """Compiles one of the sources, which lie in ``csrc``."""
        headers = "".join(text for path, text in sources.items() if path.endswith((".h", ".cuh")))
        target = self.folder / f"{Path(name).stem}-{digest(self.key, headers, name, sources[name])}.o"
        if not target.exists():
            part = target.with_suffix(f".{uuid.uuid4()}.part")
            header = ["-I", self.precompiled(), "-include", "torch_emulation.h"]
            self.run(*self.flags, *header, *self.includes, "-x", "c++", "-c", csrc / name, "-o", part)
            part.rename(target)
        return target

    def extension(self, sources: dict, csrc: Path, library: Path):
        """Writes the sources to ``csrc`` and links them."""
        for name, text in sources.items():
            (csrc / name).parent.mkdir(parents=True, exist_ok=True)
            (csrc / name).write_text(text)
        self.precompiled()
        names = sorted((n for n in sources if n.endswith((".cu", ".cpp"))), key=lambda n: not n.endswith(".cu"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda name: self.object(sources, name, csrc), names))
        library.parent.mkdir(parents=True, exist_ok=True)
        torch = ["-lc10", "-ltorch_cpu", "-ltorch"]
        self.run("-shared", *self.flags, *objects, *self.libraries, *torch, "-o", library)


def copy_tree(tree: Path):
    """The package and its tests, with the original sources of the operators, without their library."""
    tree.mkdir(parents=True, exist_ok=True)
    for name in TREE:
        source, target = ROOT / name, tree / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__", "build"))
        else:
            shutil.copy(source, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "cuda_emulation", help="the copy of the tree")
    parser.add_argument("--fma", action="store_true", help="contract multiplications and additions, as nvcc does")
    parser.add_argument("--sanitize", default="", help="for -fsanitize: address, undefined, thread")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    copy_tree(output)
    compiler = Compiler(output.parent / "cuda_emulation_objects", arguments.fma, arguments.sanitize)
    try:
        compiler.extension(read_sources(), output / "emulated_csrc", output / "instseg_d2" / "_C.abi3.so")
    except CompileError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
