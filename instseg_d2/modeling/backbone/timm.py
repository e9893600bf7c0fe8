"""Any timm network as a backbone. N images, C channels of a map, H x W pixels."""

import difflib
import re
from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from torch import nn

from ...layers import make_pools_exportable
from .fcos_fpn import build_fcos_fpn
from .timm_norms import BATCH_NORMS, fold_timm_norms, freeze_norms
from .timm_probe import Map, Probe, import_timm, maps_of, probe

NORMS = ("FrozenBN", "BN", "")


def strides_of(names: Sequence[str], prefixes: Sequence[str], shift: int, key: str) -> dict[str, int]:
    """
    Map feature names to strides. A name is a prefix and a level; its stride is 2 ** (level + shift).

    Raises:
        ValueError: a name has another form; the message names the config key ``key``.
    """
    pattern = re.compile(rf"(?:{'|'.join(prefixes)})(\d)")
    matches = [pattern.fullmatch(name) for name in names]
    if not names or None in matches:
        examples = ", ".join(f"{prefix}{level}" for prefix in prefixes for level in (2, 3, 4))
        raise ValueError(f"{key} is {list(names)}; it takes names like {examples}.")
    return {name: 2 ** (int(match[1]) + shift) for name, match in zip(names, matches)}


class TimmBackbone(Backbone):
    """
    The feature maps of a timm network, under the caller's names.

    Parameters have the names of timm's ``features_only`` model, with the prefix ``net.``.

    Args:
        name: timm's name of the network.
        strides: feature name -> stride in pixels. If several maps have this stride, the last one is used.
        norm: FrozenBN to freeze batch norms; BN or empty to keep the network's norms.
        pretrained: download and use timm's weights.
        freeze_at: freeze the layers up to the last map of stride 2 ** freeze_at; 0 trains all.
        arguments: passed to timm's ``create_model``.

    Raises:
        ImportError: timm is not installed.
        ValueError: there is no such network, map or norm, or the network only takes images of one size.
    """

    def __init__(
        self,
        name: str,
        strides: dict[str, int],
        *,
        norm: str = "FrozenBN",
        pretrained: bool = False,
        freeze_at: int = 0,
        **arguments,
    ):
        super().__init__()
        timm = import_timm()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)
            raise ValueError(f"timm has no network {name!r}; did you mean {near[0]}?")
        if norm not in NORMS:
            raise ValueError(f"the norm of a timm network must be FrozenBN, BN or empty, not {norm!r}.")
        strides = dict(sorted(strides.items(), key=lambda item: item[1]))
        found = probe(name, arguments)
        last = {m.stride: m for m in found.maps if m.stride}
        missing = [str(stride) for stride in strides.values() if stride not in last]
        if missing:
            known = ", ".join(map(str, sorted(last))) or "none that is the same for every image"
            raise ValueError(f"{name} of timm has no map of stride {', '.join(missing)}; its strides: {known}.")
        maps = [last[stride] for stride in strides.values()]
        self.net = timm.create_model(
            name,
            pretrained=pretrained,
            features_only=True,
            out_indices=[m.index for m in maps],
            **found.arguments,
        )
        self._out_features = list(strides)
        self._out_feature_strides = strides
        self._out_feature_channels = {key: m.channels for key, m in zip(strides, maps)}
        self._size_divisibility = found.size_divisibility
        if norm == "FrozenBN":
            for layer in self.net.modules():
                # timm starts some residual branches at zero, where a frozen norm would keep them.
                if isinstance(layer, BATCH_NORMS) and not pretrained:
                    nn.init.ones_(layer.weight)
            self.net = freeze_norms(self.net)
        make_pools_exportable(self.net)
        self._choose_trained(found, maps, freeze_at)

    def _choose_trained(self, found: Probe, maps: Sequence[Map], freeze_at: int) -> None:
        """Freeze the layers of the first maps, and unused layers, which would get no gradient."""
        used = frozenset().union(*(m.parameters for m in maps))
        early = [m for m in found.maps if m.stride and m.stride <= 2**freeze_at]
        frozen = early[-1].parameters if freeze_at > 0 and early else frozenset()
        if any(m.stride > 2**freeze_at and not frozen <= m.parameters for m in maps):
            raise ValueError(
                f"this timm network cannot be frozen up to stride {early[-1].stride}, because not all of these layers "
                "come before the next map; set MODEL.BACKBONE.FREEZE_AT to 0."
            )
        for owner_name, owner in list(self.net.named_modules()):
            for key, child in list(owner.named_children()):
                if isinstance(child, BATCH_NORMS) and f"{owner_name}.{key}.weight".lstrip(".") in frozen:
                    setattr(owner, key, freeze_norms(child))
        for key, parameter in self.net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and key in used - frozen)

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 for any size."""
        return self._size_divisibility

    def fold(self) -> None:
        """For inference only: fold batch norms into the convolutions before them."""
        fold_timm_norms(self.net)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """x (N, 3, H, W) -> name -> (N, C, H / stride, W / stride)."""
        return dict(zip(self._out_features, maps_of(self.net, x)))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """
    Build the timm network MODEL.TIMM.NAME. Its maps of strides 4, 8, ... are called res2, res3, ... or p2, p3, ..., so
    it can replace a ResNet, with or without an FPN.
    """
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        strides_of(node.OUT_FEATURES, ("res", "p"), 0, "MODEL.TIMM.OUT_FEATURES"),
        norm=node.NORM,
        pretrained=node.PRETRAINED and not cfg.MODEL.WEIGHTS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_fcos_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Build the FPN of FCOS, with MODEL.FCOS.TOP_LEVELS extra levels, on the timm network MODEL.TIMM.NAME.
    MODEL.FPN.IN_FEATURES must be among MODEL.TIMM.OUT_FEATURES, called res2, res3, ...

    Raises:
        ValueError: see `TimmBackbone`; or a map has the name of a map of the FPN.
    """
    names = cfg.MODEL.TIMM.OUT_FEATURES
    if any(name.startswith("p") for name in names):
        raise ValueError(
            f"MODEL.TIMM.OUT_FEATURES is {list(names)}, but p2, p3, ... are maps of the FPN; use res2, res3, ... here "
            "and in MODEL.FPN.IN_FEATURES."
        )
    return build_fcos_fpn(cfg, build_timm_backbone(cfg, input_shape))
