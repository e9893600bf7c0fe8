"""Loads and saves weights: safely, with a report, in the formats of Detectron2 and of the methods' authors."""

from .checkpointer import InstSegCheckpointer
from .formats import read_checkpoint_info, read_extra, read_weights
from .named import check_named
from .paths import split_query
from .writing import save_safetensors

__all__ = [
    "InstSegCheckpointer",
    "check_named",
    "read_checkpoint_info",
    "read_extra",
    "read_weights",
    "save_safetensors",
    "split_query",
]
