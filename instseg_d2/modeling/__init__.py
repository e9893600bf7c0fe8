"""Models. Importing this package registers them in Detectron2's registries."""

from . import backbone, blendmask, instancefcn, proposal_generator, sparseinst
from .meta_arch import InstanceSegmenter

__all__ = ["InstanceSegmenter", "backbone", "blendmask", "instancefcn", "proposal_generator", "sparseinst"]
