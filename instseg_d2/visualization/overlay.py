"""
Draws instances on their image with OpenCV: mask, outline, box and a "name 97%" tag, in one colour per instance.

M instances in an image of H x W pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Optional

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BitMasks, Instances

__all__ = ["class_name", "draw_instances", "draw_panoptic", "instance_color"]

GOLDEN_ANGLE = 137.508  # degrees; keeps successive hues far apart, for any number of instances
FONT = cv2.FONT_HERSHEY_SIMPLEX
FIRST_STUFF_COLOR = 1000  # far from the colours of the first instances
UNKNOWN = (160, 160, 160)  # an object that is not yet followed
CROWDED = 15  # with more instances than this, tags much wider than their object are omitted


def class_name(class_names: Optional[Sequence[str]], index: int) -> str:
    """The name of a contiguous class index; "class 7" if the name is unknown."""
    return str(class_names[index]) if class_names is not None and 0 <= index < len(class_names) else f"class {index}"


@lru_cache(maxsize=2048)
def instance_color(index: int) -> tuple[int, int, int]:
    """RGB colour (0-255) of an instance: hues a golden angle apart at three lightnesses of CIE Lab."""
    hue = np.deg2rad(274.0 + GOLDEN_ANGLE * index)
    lightness = (84.0, 56.0, 60.0)[index % 3]
    lab = np.float32([[[lightness, 78.0 * np.cos(hue), 78.0 * np.sin(hue)]]])
    rgb = cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)[0, 0].clip(0, 1) * 255
    return tuple(round(v) for v in rgb.tolist())


def draw_instances(
    image_rgb: np.ndarray,
    instances: Instances,
    class_names: Optional[Sequence[str]] = None,
    *,
    score_threshold: float = 0.0,
    alpha: float = 0.5,
    boxes: bool = True,
    labels: bool = True,
) -> np.ndarray:
    """
    A copy of the image with the instances drawn on it, large ones below small ones.

    Args:
        image_rgb: (H, W, 3) uint8, RGB.
        instances: any of ``pred_masks`` ((M, H, W) bool, BitMasks or RunLengthMasks), ``pred_boxes`` (pixels, XYXY),
            ``scores``, ``pred_classes`` and ``track_ids``, on any device; missing fields are not drawn. An object with
            a track id has its number and its colour; without (0), it is grey.
        class_names: name of every contiguous class index.
        score_threshold: instances that score lower are not drawn.
        alpha: opacity of the masks, 0 to 1.
        boxes, labels: whether to draw boxes, tags.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or the masks do not have its size.
    """
    kept = list(range(len(instances)))
    if instances.has("scores"):
        kept = torch.nonzero(instances.scores >= score_threshold).flatten().tolist()
    tags = [""] * len(instances)
    if labels and instances.has("pred_classes"):
        tags = [class_name(class_names, index) for index in instances.pred_classes.tolist()]
    if labels and instances.has("scores"):
        tags = [f"{tag} {score:.0%}".strip() for tag, score in zip(tags, instances.scores.tolist())]
    masks = _mask_list(instances.pred_masks) if instances.has("pred_masks") else None
    xyxy = instances.pred_boxes.tensor.detach().cpu().numpy()[kept] if instances.has("pred_boxes") else None
    colors = None
    if instances.has("track_ids"):
        ids = instances.track_ids.tolist()
        colors = [instance_color(ids[index]) if ids[index] else UNKNOWN for index in kept]
        if labels:
            tags = [f"#{track_id} {tag}".strip() if track_id else tag for track_id, tag in zip(ids, tags)]
    # Views of the masks: indexing all at once would copy them.
    kept_masks = None if masks is None else [masks[index] for index in kept]
    kept_tags = [tags[index] for index in kept]
    return draw_layers(image_rgb, kept_masks, xyxy, kept_tags, alpha=alpha, boxes=boxes, colors=colors)


def draw_panoptic(
    image_rgb: np.ndarray,
    segment_ids: torch.Tensor,
    segments: Sequence[dict],
    class_names: Optional[Sequence[str]] = None,
    stuff_names: Optional[Sequence[str]] = None,
    *,
    score_threshold: float = 0.0,
    alpha: float = 0.5,
) -> np.ndarray:
    """
    A copy of the image with the segments of a panoptic map drawn on it, stuff in one colour per class.

    Args:
        image_rgb: (H, W, 3) uint8, RGB.
        segment_ids: (H, W), 0 where there is no segment.
        segments: dicts with id, category_id (contiguous), isthing and, for things, score.
        class_names, stuff_names: name of every contiguous class index of things and of stuff.
        score_threshold: things that score lower are not drawn.
    """
    ids = np.asarray(segment_ids)
    things = [x for x in segments if x["isthing"] and x["score"] >= score_threshold]
    stuff = [x for x in segments if not x["isthing"]]
    tags = [f"{class_name(class_names, x['category_id'])} {x['score']:.0%}" for x in things]
    tags += [class_name(stuff_names, x["category_id"]) for x in stuff]
    colors = [instance_color(index) for index in range(len(things))]
    colors += [instance_color(FIRST_STUFF_COLOR + x["category_id"]) for x in stuff]
    masks = [ids == x["id"] for x in (*things, *stuff)]
    places = np.array([_inner_line(mask) for mask in masks]).reshape(-1, 4)
    return draw_layers(image_rgb, masks, places, tags, alpha=alpha, boxes=False, colors=colors)


def _inner_line(mask: np.ndarray) -> tuple:
    """The line x0, y, x1, y + 1 across the largest disc inside a mask, where a segment's tag goes."""
    distance = cv2.distanceTransform(np.pad(mask.view(np.uint8), 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    radius = distance[y, x]
    return x - 1 - radius, y - 1, x - 1 + radius, y


def draw_layers(
    image_rgb, masks, xyxy, tags: Sequence[str], *, alpha: float = 0.5, boxes: bool = True, colors=None
) -> np.ndarray:
    """
    :func:`draw_instances` for plain arrays.

    Args:
        masks: M arrays (H, W), bool or uint8 of 0 and 1, or COCO's compressed run lengths; or None.
        xyxy: (M, 4) boxes in pixels; None: the boxes of the masks.
        tags: M texts; empty ones are not drawn.
        colors: M RGB triples; None: ``instance_color``.
    """
    image = np.array(image_rgb, order="C")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be (H, W, 3) uint8 RGB; got {image.shape} {image.dtype}")
    count = len(tags)
    if count == 0 or (masks is None and xyxy is None):
        return image
    extents = None
    if masks is not None:
        size = tuple(masks[0]["size"] if isinstance(masks[0], dict) else masks[0].shape)
        if size != image.shape[:2]:
            raise ValueError(f"masks of {size} pixels cannot be drawn on an image of {image.shape[:2]} pixels")
        extents = [_extent(mask) for mask in masks]
    rects = _rectangles(xyxy, extents, image.shape[:2])
    width = max(1, round(min(image.shape[:2]) / 500))
    colors = [instance_color(index) for index in range(count)] if colors is None else colors
    drawn = [index for index in range(count) if rects[index] is not None]
    for index in sorted(drawn, key=lambda i: -(rects[i][2] - rects[i][0]) * (rects[i][3] - rects[i][1])):
        color = colors[index]
        if masks is not None and extents[index][2]:
            _blend_mask(image, masks[index], extents[index], color, alpha, width)
        if boxes:
            x0, y0, x1, y1 = rects[index]
            cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, width, cv2.LINE_8)
    _draw_tags(image, rects, tags, colors)
    return image


def _mask_list(masks) -> Sequence:
    """Tensor or BitMasks as a bool array (M, H, W), not copied if in host memory; RunLengthMasks as their codes."""
    if hasattr(masks, "codes"):
        return masks.codes
    masks = masks.tensor if isinstance(masks, BitMasks) else torch.as_tensor(masks)
    return masks.detach().cpu().numpy().astype(bool, copy=False)


def _extent(mask) -> Sequence[int]:
    """The tight box x, y, width, height of an array or of COCO's run lengths; all 0 if empty."""
    if isinstance(mask, dict):
        return mask_util.toBbox(mask).astype(int).tolist()
    return cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))


def _rectangles(xyxy, extents, size) -> list[Optional[tuple[int, int, int, int]]]:
    """Integer boxes x0, y0, x1, y1 (exclusive) inside the image: the given ones, else the masks' (None if empty)."""
    if xyxy is None:
        return [(x, y, x + w, y + h) if w else None for x, y, w, h in extents]
    height, width = size
    xyxy = np.nan_to_num(xyxy)
    low = np.floor(xyxy[:, :2]).clip(0, [width - 1, height - 1])
    high = np.ceil(xyxy[:, 2:]).clip(low + 1, [width, height])
    return [tuple(row) for row in np.concatenate([low, high], axis=1).astype(int).tolist()]


def _blend_mask(image, mask, extent, color, alpha: float, width: int) -> None:
    """Tint the mask and draw its outline, working only on the mask's box."""
    x, y, w, h = extent
    pixels = mask_util.decode(mask) if isinstance(mask, dict) else mask
    region, inside = image[y : y + h, x : x + w], pixels[y : y + h, x : x + w]
    inside = np.ascontiguousarray(inside).view(np.uint8)
    ramp = np.arange(256, dtype=np.float32)[:, None] * (1 - alpha) + alpha * np.float32(color)
    tinted = cv2.LUT(region, ramp.round().astype(np.uint8)[None])
    cv2.copyTo(tinted, inside, region)
    outline, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(region, outline, -1, color, width, cv2.LINE_AA)


def _draw_tags(image, rects, tags, colors) -> None:
    """Draw the tags, best score first, where they cover no earlier tag; dark text on bright tags, white on dark."""
    height, width = image.shape[:2]
    text_height = min(max(min(height, width) / 42, 8.0), 40.0)  # pixels: a capital letter with margin
    scale = text_height / 21
    pad = max(2, round(text_height / 5))
    taken = np.zeros((height, width), dtype=bool)
    for index, (rect, text) in enumerate(zip(rects, tags)):
        if not text or rect is None:
            continue
        (text_width, ascent), descent = cv2.getTextSize(text, FONT, scale, 1)
        w, h = text_width + 2 * pad, ascent + descent + pad
        too_wide = len(tags) > CROWDED and w > 1.3 * (rect[2] - rect[0])
        place = None if too_wide else _free_place(rect, w, h, taken)
        if place is None:
            continue
        x, y = place
        taken[y : y + h, x : x + w] = True
        color = colors[index]
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), color, cv2.FILLED)
        ink = (20, 20, 20) if bright else (255, 255, 255)
        cv2.putText(image, text, (x + pad, y + pad // 2 + ascent), FONT, scale, ink, 1, cv2.LINE_AA)


def _free_place(rect, w: int, h: int, taken: np.ndarray) -> Optional[tuple[int, int]]:
    """Top left corner of a w x h tag above, below or inside the box (inside first if it is tall); None: no room."""
    height, width = taken.shape
    if w > width or h > height:
        return None
    x = min(rect[0], width - w)
    above, below, inside = [rect[1] - h], [rect[3]], [rect[1], rect[3] - h]
    tall = rect[3] - rect[1] >= 3 * h
    for y in above + (inside + below if tall else below + inside):
        if 0 <= y <= height - h and not taken[y : y + h, x : x + w].any():
            return x, y
    return None
