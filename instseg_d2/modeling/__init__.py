"""Models. Importing this package registers them in Detectron2's registries."""

from . import backbone, blendmask, embedmask, instancefcn, istr, proposal_generator, rcnn_exportable, sparseinst
from .meta_arch import InstanceSegmenter

__all__ = [
    "InstanceSegmenter",
    "backbone",
    "blendmask",
    "embedmask",
    "instancefcn",
    "istr",
    "proposal_generator",
    "rcnn_exportable",
    "sparseinst",
]
