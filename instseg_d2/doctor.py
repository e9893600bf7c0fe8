"""``python -m instseg_d2.doctor``: what is installed, in which version, and what to do about anything missing."""

import importlib
import importlib.util
import os
import sys
from typing import NamedTuple

from .console import run_script

MINIMUM_PYTHON = (3, 9)
MINIMUM_TORCH = (2, 4)
_REQUIREMENTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "requirements.txt")


class Row(NamedTuple):
    """One line of the table; an empty ``advice`` means OK."""

    name: str
    found: str
    advice: str = ""
    needed: bool = True  # the package does not work without it

    @property
    def failed(self) -> bool:
        return self.needed and bool(self.advice)


def _fault(error: Exception, name: str) -> str:
    """Why the module ``name`` cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        return "not installed" if error.name == name.split(".")[0] else f"needs {error.name}"
    return f"broken: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _import(name: str):
    """(module, "") or (None, why not); a broken installation may raise anything."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:
        return None, _fault(error, name)


def _python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    advice = "" if sys.version_info >= MINIMUM_PYTHON else f"use Python {wanted} or newer"
    return Row("Python", f"{version}, {sys.executable}", advice)


def _remedy(title: str) -> str:
    """How to install a package: in a checkout, or beside the wheel."""
    if os.path.isfile(_REQUIREMENTS):
        return "run `make setup`, or pip install -r requirements.txt"
    return f"pip install {'opencv-python' if title == 'OpenCV' else title.lower()}"


def _package(title: str, module_name: str) -> Row:
    module, fault = _import(module_name)
    if module is None:
        return Row(title, fault, _remedy(title))
    version = getattr(module, "__version__", "")
    if not version:
        metadata = importlib.import_module("importlib.metadata")
        try:
            version = metadata.version(title)
        except metadata.PackageNotFoundError:
            version = "installed"
    return Row(title, version)


def _torch() -> Row:
    row = _package("torch", "torch")
    if row.advice:
        return row
    version = tuple(int(part) for part in row.found.split(".")[:2])
    wanted = ".".join(map(str, MINIMUM_TORCH))
    return row if version >= MINIMUM_TORCH else row._replace(advice=f"install torch {wanted} or newer")


def _torchvision() -> Row:
    row = _package("torchvision", "torchvision")
    if row.advice:
        return row
    try:  # its operators are compiled for one version of torch
        import torch
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception:
        return row._replace(advice="install the torchvision release that matches this torch")
    return row


def _detectron2() -> Row:
    advice = "run `python -m instseg_d2.get_detectron2`"
    module, fault = _import("detectron2")
    if module is None:
        return Row("Detectron2", fault, advice if fault == "not installed" else "install what it needs")
    import importlib.metadata

    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = module.__version__
    compiled = "compiled" if importlib.util.find_spec("detectron2._C") else "Python only, which is enough"
    return Row("Detectron2", f"{version}, {os.path.dirname(module.__file__)} ({compiled})")


def _opencv() -> Row:
    row = _package("OpenCV", "cv2")
    if row.advice and ".so" in row.found:  # opencv-python needs libraries that servers and containers often lack
        advice = "install the system's libgl1 and libglib2.0-0, or opencv-python-headless instead of opencv-python"
        return row._replace(advice=advice)
    return row


def _this_package() -> Row:
    package, fault = _import("instseg_d2")
    if not fault:
        try:
            package.register()
        except Exception as error:
            fault = _fault(error, "instseg_d2")
    if fault:
        return Row("instseg_d2", fault, "fix what it names, see the rows above")
    return Row("instseg_d2", f"{package.__version__}, {os.path.dirname(package.__file__)}")


def _cuda() -> Row:
    torch, _ = _import("torch")
    if torch is None:
        return Row("CUDA", "unknown, as torch is missing", needed=False)
    runtime = torch.version.cuda or "none in this torch"
    if not torch.cuda.is_available():
        return Row("CUDA", f"runtime {runtime}, no usable GPU: the CPU is used", needed=False)
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Row("CUDA", f"runtime {runtime}, {torch.cuda.device_count()} x {', '.join(sorted(names))}", needed=False)


def _extension() -> Row:
    ops, fault = _import("instseg_d2.ops")
    if ops is None:
        return Row("Extension", f"unknown: {fault}", "fix the rows above", needed=False)
    built = ops.has_extension()
    torch = importlib.import_module("torch")
    if built is None:
        advice = "optional, faster: install a C++ compiler, then pip install --no-build-isolation -e ."
        return Row("Extension", "none, PyTorch is used instead", advice, needed=False)
    if built == "cpu" and torch.cuda.is_available():
        advice = "optional, faster: FORCE_CUDA=1 pip install --no-build-isolation -e . with CUDA's nvcc"
        return Row("Extension", "built for CPU", advice, needed=False)
    return Row("Extension", "built for CPU and CUDA" if built == "cuda" else "built for CPU")


def _datasets() -> Row:
    folder = os.environ.get("INSTSEG_DATASETS")
    if not folder:
        return Row("INSTSEG_DATASETS", "not set (optional)", needed=False)
    if not os.path.isdir(folder):
        return Row("INSTSEG_DATASETS", f"{folder}: no such folder", "name an existing folder or unset it", needed=False)
    found = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, "train.json")))
    return Row("INSTSEG_DATASETS", f"{folder}: {', '.join(found) or 'no <name>/train.json in it'}", needed=False)


def diagnose() -> list:
    """All rows of the table."""
    return [
        _python(),
        _torch(),
        _torchvision(),
        _detectron2(),
        _package("fvcore", "fvcore"),
        _package("pycocotools", "pycocotools"),
        _opencv(),
        _package("NumPy", "numpy"),
        _package("SciPy", "scipy"),
        _package("Jinja2", "jinja2"),
        _package("tqdm", "tqdm"),
        _package("safetensors", "safetensors"),
        _this_package(),
        _cuda(),
        _extension(),
        _datasets(),
    ]


def table(rows: list) -> str:
    """The rows as aligned text."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{row.name:<{widths[0]}}  {row.found:<{widths[1]}}  {row.advice or 'OK'}" for row in rows)


def main() -> int:
    """Print the table; returns 1 if a required package is missing or broken, else 0."""
    rows = diagnose()
    sys.stdout.write(table(rows) + "\n")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(run_script(main))
