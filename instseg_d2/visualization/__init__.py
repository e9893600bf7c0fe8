"""Draws detections, annotations, coloured maps and titled grids, and writes a page of results."""

from .annotations import draw_annotations
from .html import write_index
from .overlay import class_name, draw_instances, draw_panoptic, instance_color
from .panels import colorize, overlay_heatmap, titled_grid

__all__ = [
    "class_name",
    "colorize",
    "draw_annotations",
    "draw_instances",
    "draw_panoptic",
    "instance_color",
    "overlay_heatmap",
    "titled_grid",
    "write_index",
]
