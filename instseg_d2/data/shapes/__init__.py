"""The synthetic shapes data set, with instance and panoptic annotations."""

from .instances import make_shapes, register_shapes
from .panoptic import make_shapes_panoptic, register_shapes_panoptic
