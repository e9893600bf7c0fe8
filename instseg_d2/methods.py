"""
One record per method, with everything that shared code needs to know about it. Shared code never names a method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from detectron2.config import CfgNode
from torch import Tensor, nn

__all__ = [
    "AutoRecipe",
    "ClassRows",
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
    """Default for a method's functions: do nothing."""


def _never(cfg: CfgNode) -> bool:
    return False


@dataclass(frozen=True)
class Publication:
    """
    The origin of a method.

    Attributes:
        folder: folder of its recipes, below configs/.
        paper: conference and arXiv number.
        weights: where the authors publish their weights.
        note: further published results, beyond those of the recipes.
    """

    folder: str
    paper: str
    weights: str
    note: str = ""


@dataclass(frozen=True)
class ClassRows:
    """
    Which rows (of the first dimension) of a layer's weight and bias belong to which class.

    Attributes:
        per_class: rows of each class; None: any number.
        before, after: rows of the background, before and after those of the classes.
        interleaved: the classes' first rows come first, then their second rows, ...; otherwise class by class.
        names: the checkpoint's list of the classes' names.
    """

    per_class: Optional[int] = 1
    before: int = 0
    after: int = 0
    interleaved: bool = False
    names: str = "class_names"


@dataclass(frozen=True)
class AutoRecipe:
    """
    How `engine.auto` makes recipes of a method.

    Attributes:
        rules: (config with the values of the rules that all methods share, `data.fingerprint.Fingerprint`, whether the
            base is a small recipe, the number that divides every batch, the values given by key) ->
            {config key: (value, reason)}.
        small: name of the recipe that others are based on for CPUs and small data; empty: there is none, so a recipe
            has to be given.
        photos: the same for photos, with pretrained weights; empty: there is none.
        all_as_photos: these weights are the better start for other images too.
        large: the authors', for GPUs and much data.
    """

    rules: Callable[[CfgNode, Any, bool, int, Mapping[str, Any]], Mapping[str, tuple[Any, str]]]
    small: str = ""
    large: str = ""
    photos: str = ""
    all_as_photos: bool = False


@dataclass(frozen=True)
class Method:
    """
    The record of a method; the defaults are those of Detectron2's own models.

    Attributes:
        name: its meta-architecture in MODEL.META_ARCHITECTURE; aliases: other accepted names.
        add_config: adds its keys to a config, in place.
        check_config: raises ConfigError for invalid values in a complete config, see `config.values`.
        class_count_keys: config key -> number added to the foreground classes: 0, or 1 for the background.
        class_layers: pattern of the end of a layer's name -> its `ClassRows`, for layers with rows for each class. The
            layers of all records are known in every model, since heads are used in Detectron2's models too.
        optimizer: default if SOLVER.OPTIMIZER is empty.
        undecayed_names: parts of parameter names that get SOLVER.WEIGHT_DECAY_NORM. None: the norms get it.
        fit: called as ``fit(model, cfg)`` in all processes, after loading the weights and before training. It is called
            for every model, including Detectron2 models with a head of this method.
        crop_scheme: default if INPUT.CROP.SCHEME is empty.
        rerun_parts: what automatic recipes name in MODEL.ACTIVATION_CHECKPOINTING where memory is short.
        auxiliary: whether its features can have the head of MODEL.AUXILIARY in training.
        needs_masks: whether it is trained on masks even if MODEL.MASK_ON is False.
        semantic_target: cfg -> whether it is trained on ``basis_sem``, see `InstanceDatasetMapper`.
        class_agnostic: cfg -> whether every detection has class 0, "object", regardless of the data's classes. The
            evaluation then measures the recall of proposals.
        panoptic: cfg -> whether its output includes "sem_seg" and "panoptic_seg".
        authors_names: key prefix found only in the authors' checkpoints -> function that converts their state dict to
            our names.
        exportable: model -> the module to export, a `modeling.exportable.Exportable`. None: not exportable.
        auto: how recipes for own data are made. None: only the shared rules, on a given recipe.
        publication: its origin. None: unpublished.
    """

    name: str
    aliases: tuple[str, ...] = ()

    add_config: Callable[[CfgNode], None] = _nothing
    check_config: Callable[[CfgNode], None] = _nothing
    class_count_keys: Mapping[str, int] = field(
        default_factory=lambda: {"MODEL.ROI_HEADS.NUM_CLASSES": 0, "MODEL.RETINANET.NUM_CLASSES": 0}
    )

    class_layers: Mapping[str, ClassRows] = field(
        default_factory=lambda: {
            r"box_predictor(\.\d+)?\.cls_score": ClassRows(after=1),
            r"box_predictor(\.\d+)?\.bbox_pred": ClassRows(per_class=4),
            r"mask_head\.predictor": ClassRows(),
            r"head\.cls_score": ClassRows(per_class=None, interleaved=True),  # RetinaNet's anchors
            r"sem_seg_head\.predictor": ClassRows(names="stuff_names"),
        }
    )

    optimizer: str = "SGD"
    undecayed_names: Optional[tuple[str, ...]] = None
    fit: Callable[[nn.Module, CfgNode], None] = _nothing

    crop_scheme: str = "before_resize"
    rerun_parts: tuple[str, ...] = ("backbone",)
    auxiliary: bool = False
    needs_masks: bool = False
    semantic_target: Callable[[CfgNode], bool] = _never

    class_agnostic: Callable[[CfgNode], bool] = _never
    panoptic: Callable[[CfgNode], bool] = _never

    authors_names: Mapping[str, Callable[[StateDict], StateDict]] = field(default_factory=dict)
    exportable: Optional[Callable[[nn.Module], nn.Module]] = None

    auto: Optional[AutoRecipe] = None
    publication: Optional[Publication] = None


@dataclass(frozen=True)
class MaskHead:
    """
    The record of a mask head for Detectron2's ROI heads.

    Attributes:
        name: its name in MODEL.ROI_MASK_HEAD.NAME.
        values: the keys of MODEL.ROI_MASK_HEAD that allow only one value, with that value.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


_METHODS: dict[str, Method] = {}
_MASK_HEADS: dict[str, MaskHead] = {}


def _register(records: dict, names: tuple[str, ...], record) -> None:
    taken = [name for name in names if name in records]
    if taken:
        raise ValueError(f"{taken[0]} is already registered.")
    records.update(dict.fromkeys(names, record))


def register_method(method: Method) -> Method:
    """
    Register a method under its names and return it.

    Raises:
        ValueError: a name is already registered.
    """
    _register(_METHODS, (method.name, *method.aliases), method)
    return method


def register_mask_head(head: MaskHead) -> MaskHead:
    """The same as `register_method`, for a mask head."""
    _register(_MASK_HEADS, (head.name,), head)
    return head


def methods() -> tuple[Method, ...]:
    """All records of methods, each once."""
    return tuple({id(method): method for method in _METHODS.values()}.values())


def method_of(cfg: CfgNode) -> Method:
    """The record of MODEL.META_ARCHITECTURE; a default record for models from outside this package."""
    name = cfg.MODEL.META_ARCHITECTURE
    return _METHODS.get(name) or Method(name)


def mask_head_of(cfg: CfgNode) -> MaskHead:
    """The record of MODEL.ROI_MASK_HEAD.NAME; a default record for heads from outside this package."""
    name = cfg.MODEL.ROI_MASK_HEAD.NAME
    return _MASK_HEADS.get(name) or MaskHead(name)
