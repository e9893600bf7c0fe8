"""Starts a model of some classes from one of others: the rows of classes with equal names are carried over."""

import re
from collections.abc import Mapping, Sequence
from typing import Optional

import torch
from torch import Tensor

from ..methods import ClassRows, methods

__all__ = ["carry_classes"]

COCO_CLASSES = 80


def _rows(layer: ClassRows, count: int, classes: int) -> Optional[Tensor]:
    """The indices (classes, rows of each) among ``count`` rows; None if the layer has no rows for each class."""
    inner = count - layer.before - layer.after
    if inner <= 0 or not classes or inner % classes or layer.per_class not in (None, inner // classes):
        return None
    index = torch.arange(layer.before, layer.before + inner)
    return index.view(-1, classes).T if layer.interleaved else index.view(classes, -1)


def _coco_names() -> list[str]:
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return [category["name"] for category in COCO_CATEGORIES if category["isthing"]]


def _layer_of(name: str) -> Optional[ClassRows]:
    layer = name.rpartition(".")[0]
    layers = (pair for method in methods() for pair in method.class_layers.items())
    return next((rows for pattern, rows in layers if re.search(rf"(^|\.)({pattern})$", layer)), None)


def _carried(
    layer: ClassRows, value: Tensor, fresh: Tensor, old: Sequence[str], new: Sequence[str]
) -> Optional[Tensor]:
    source, target = _rows(layer, len(value), len(old)), _rows(layer, len(fresh), len(new))
    if source is None or target is None or source.shape[1] != target.shape[1] or value.shape[1:] != fresh.shape[1:]:
        return None
    result = fresh.detach().to("cpu", value.dtype, copy=True)
    result[: layer.before] = value[: layer.before]
    if layer.after:
        result[-layer.after :] = value[-layer.after :]
    pairs = [(old.index(name), i) for i, name in enumerate(new) if name in old]
    if pairs:
        there, here = zip(*pairs)
        result[target[list(here)]] = value[source[list(there)]]
    return result


def carry_classes(checkpoint: dict, model: Mapping[str, Tensor], names: Mapping[str, Sequence[str]]) -> list[str]:
    """
    Replace the weights of class layers in ``checkpoint["model"]`` by the model's own, with the rows of the background
    and of the classes whose names are equal from the checkpoint. A file without names and with rows for 80 classes,
    where the model has another number, is taken to be trained on COCO.

    Args:
        checkpoint: "model", and "class_names" and "stuff_names" if they are known.
        model: the state dict of the model, with its initial values.
        names: "class_names" and "stuff_names" of the model, if they are known.

    Returns:
        Sentences for the user on which classes were carried over; none if the classes are the same or unknown.
    """
    state, sentences = checkpoint["model"], {}
    for name, value in state.items():
        layer = _layer_of(name) if name in model and value.dim() else None
        new = names.get(layer.names) if layer else None
        if not new:
            continue
        old, of_coco = checkpoint.get(layer.names), ""
        if old is None and layer.names == "class_names" and len(new) != COCO_CLASSES:
            old, of_coco = _coco_names(), " (it names none; it has as many as COCO)"
        if not _are_names(old) or list(old) == list(new):
            continue
        result = _carried(layer, value, model[name], list(old), list(new))
        if result is not None:
            state[name] = result
            sentences[layer.names] = _sentence(list(old), list(new), of_coco)
    return list(sentences.values())


def _are_names(names) -> bool:
    return isinstance(names, (list, tuple)) and bool(names) and all(isinstance(name, str) for name in names)


def _sentence(old: list[str], new: list[str], of_coco: str) -> str:
    kept, fresh = [x for x in new if x in old], [x for x in new if x not in old]
    text = f"Of its {len(old)} classes{of_coco}, {_listed(kept)} {'is' if len(kept) == 1 else 'are'} carried over"
    return text + (f"; {_listed(fresh)} {'starts' if len(fresh) == 1 else 'start'} fresh." if fresh else ".")


def _listed(names: list[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"
