"""One-stage and query-based instance segmentation for Detectron2.

Importing this package registers every method, backbone, head and data set by its public name; it changes
nothing in Detectron2 itself.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "instseg_d2 needs Detectron2, which is not installed: run `python projects/get_detectron2.py`, "
        "or install one by https://detectron2.readthedocs.io/en/latest/tutorials/install.html.",
        name="detectron2",
    ) from None

__version__ = "0.1.0"

from . import data, modeling
