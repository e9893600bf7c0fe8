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

_import_error = None  # what `python -m instseg_d2.doctor` reports

try:
    getpass.getuser()
except (ImportError, KeyError, OSError):
    # On import, torch forms this path from the user's name, and fails if there is none (docker run --user).
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchinductor_{getattr(os, 'getuid', str)()}")
    )

_installed = {name for name in ("torch", "onnxruntime", "openvino") if importlib.util.find_spec(name)}

try:
    if "torch" in _installed or not _installed:
        import detectron2

        from . import data, modeling
except Exception as error:
    # sys.argv[0] is "-m" only while `python -m instseg_d2.doctor` imports the package; the doctor reports the error.
    _import_error = error
    if sys.argv[:1] != ["-m"]:
        if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
            raise ModuleNotFoundError(
                "instseg_d2 needs Detectron2, which is not installed: run `python projects/get_detectron2.py`, "
                "or follow https://detectron2.readthedocs.io/en/latest/tutorials/install.html.",
                name="detectron2",
            ) from None
        raise
