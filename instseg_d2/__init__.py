"""One-stage and query-based instance segmentation for Detectron2.

Importing this package registers every method, backbone, head and data set by its public name; it changes
nothing in Detectron2 itself. Where a runtime of exported models is installed without PyTorch, only
`instseg_d2.runtime` works.
"""

import getpass
import importlib.util
import os
import sys
import tempfile

__version__ = "0.1.0"

try:
    getpass.getuser()
except (ImportError, KeyError, OSError):
    # On import, torch forms this path from the user's name, and fails if there is none (docker run --user).
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchinductor_{getattr(os, 'getuid', str)()}")
    )


def register() -> None:
    """
    Register every method, backbone, head and data set.

    Raises:
        ImportError: a package that they need is missing or broken.
    """
    try:
        import detectron2
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ModuleNotFoundError(
            "instseg_d2 needs Detectron2, which is not installed: run `python -m instseg_d2.get_detectron2`, "
            "or follow https://detectron2.readthedocs.io/en/latest/tutorials/install.html.",
            name="detectron2",
        ) from None
    from . import data, modeling


def _registers_later() -> bool:
    """In a command, `commands.run` registers when the arguments are read, so that help comes at once."""
    program = (getattr(sys, "argv", None) or [""])[0]
    if os.path.basename(program) in ("instseg", "instseg.exe") and os.path.isfile(program):
        return True
    return getattr(sys.modules.get("__main__"), "INSTSEG_COMMAND", False)  # a script of projects/


_installed = {name for name in ("torch", "onnxruntime", "openvino") if importlib.util.find_spec(name)}

if ("torch" in _installed or not _installed) and not _registers_later():
    try:
        register()
    except Exception:
        # sys.argv[0] is "-m" only while `python -m instseg_d2.doctor` or another module imports the package: the
        # doctor reports the error.
        if sys.argv[:1] != ["-m"]:
            raise
