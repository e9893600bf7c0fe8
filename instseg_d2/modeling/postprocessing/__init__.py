"""From network resolution to the requested image size."""

from .paste import paste_masks
from .rescale import rescale_instances

__all__ = ["paste_masks", "rescale_instances"]
