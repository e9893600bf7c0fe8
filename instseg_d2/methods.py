"""
What each method says about itself: a record beside its meta-architecture. Shared code asks the record and names no
method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from detectron2.config import CfgNode
from torch import Tensor, nn

__all__ = [
    "MaskHead",
    "Method",
    "Publication",
    "mask_head_of",
    "method_of",
    "methods",
    "register_mask_head",
    "register_method",
]

StateDict = dict[str, Tensor]


def _nothing(*_) -> None:
    """What a method does where it has nothing to do."""


def _never(cfg: CfgNode) -> bool:
    return False


@dataclass(frozen=True)
class Publication:
    """
    Where a method comes from.

    Attributes:
        folder: of its recipes, below configs/.
        paper: conference and arXiv number.
        weights: where the authors publish them.
        note: what they publish beside the numbers of the recipes.
    """

    folder: str
    paper: str
    weights: str
    note: str = ""


@dataclass(frozen=True)
class Method:
    """
    The record of a method; the defaults are those of Detectron2's own models.

    Attributes:
        name: its meta-architecture in MODEL.META_ARCHITECTURE; aliases: other names of it.
        add_config: adds its keys to a config, in place.
        check_config: refuses values of a complete config that the method cannot use, see `config.values`.
        class_count_keys: config key -> what it counts beside the foreground classes: 0, or 1 for the background.
        optimizer: where SOLVER.OPTIMIZER is empty.
        undecayed_names: parts of parameter names that get SOLVER.WEIGHT_DECAY_NORM. None: the norms get it.
        fit: called as ``fit(model, cfg)`` in all processes before training, once the weights are loaded. It gets every
            model, also one of Detectron2 with a head of this method, and does nothing where nothing is to be fitted.
        crop_scheme: where INPUT.CROP.SCHEME is empty.
        needs_masks: it learns from masks even if MODEL.MASK_ON is False.
        semantic_target: cfg -> whether it learns from ``basis_sem``, see `InstanceDatasetMapper`.
        class_agnostic: cfg -> whether every detection is of class 0, "object", whatever classes the data have. Then the
            recall of proposals is measured.
        panoptic: cfg -> whether its results also have "sem_seg" and "panoptic_seg".
        authors_names: start of a key that only its authors' checkpoints have -> function from a state dict of theirs
            to one with our names.
        exportable: model -> the module that is exported, a `modeling.exportable.Exportable`. None: there is none.
        publication: None: there is none.
    """

    name: str
    aliases: tuple[str, ...] = ()

    add_config: Callable[[CfgNode], None] = _nothing
    check_config: Callable[[CfgNode], None] = _nothing
    class_count_keys: Mapping[str, int] = field(
        default_factory=lambda: {"MODEL.ROI_HEADS.NUM_CLASSES": 0, "MODEL.RETINANET.NUM_CLASSES": 0}
    )

    optimizer: str = "SGD"
    undecayed_names: Optional[tuple[str, ...]] = None
    fit: Callable[[nn.Module, CfgNode], None] = _nothing

    crop_scheme: str = "before_resize"
    needs_masks: bool = False
    semantic_target: Callable[[CfgNode], bool] = _never

    class_agnostic: Callable[[CfgNode], bool] = _never
    panoptic: Callable[[CfgNode], bool] = _never

    authors_names: Mapping[str, Callable[[StateDict], StateDict]] = field(default_factory=dict)
    exportable: Optional[Callable[[nn.Module], nn.Module]] = None

    publication: Optional[Publication] = None


@dataclass(frozen=True)
class MaskHead:
    """
    The record of a mask head for Detectron2's ROI heads.

    Attributes:
        name: in MODEL.ROI_MASK_HEAD.NAME.
        values: the keys of MODEL.ROI_MASK_HEAD that can have one value only, with it.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


_METHODS: dict[str, Method] = {}
_MASK_HEADS: dict[str, MaskHead] = {}


def _register(records: dict, names: tuple[str, ...], record) -> None:
    taken = [name for name in names if name in records]
    if taken:
        raise ValueError(f"{taken[0]} has a record already.")
    records.update(dict.fromkeys(names, record))


def register_method(method: Method) -> Method:
    """
    Make a method known under its names; returns it.

    Raises:
        ValueError: one of the names is taken.
    """
    _register(_METHODS, (method.name, *method.aliases), method)
    return method


def register_mask_head(head: MaskHead) -> MaskHead:
    """As `register_method`, for a mask head."""
    _register(_MASK_HEADS, (head.name,), head)
    return head


def methods() -> tuple[Method, ...]:
    """All records of methods, each once."""
    return tuple({id(method): method for method in _METHODS.values()}.values())


def method_of(cfg: CfgNode) -> Method:
    """The record of MODEL.META_ARCHITECTURE; the defaults for a model that is no method of this package."""
    name = cfg.MODEL.META_ARCHITECTURE
    return _METHODS.get(name) or Method(name)


def mask_head_of(cfg: CfgNode) -> MaskHead:
    """The record of MODEL.ROI_MASK_HEAD.NAME; the defaults for a head that is not of this package."""
    name = cfg.MODEL.ROI_MASK_HEAD.NAME
    return _MASK_HEADS.get(name) or MaskHead(name)


register_method(Method("PanopticFPN", panoptic=lambda cfg: True))  # Detectron2's
