"""The models of the page: found in the chosen folders, loaded when first used."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Optional

from ...errors import ConfigError
from ...export import ExportedPredictor
from ...inference.image_predictor import ImagePredictor
from ...inference.predictor import Predictor
from ...inference.tiles import in_tiles
from ..results import shown_name
from .files import EXPORTED, find_models

__all__ = ["Models"]


class Models:
    """
    The models that a visitor may choose. The last one stays in memory; the network runs for one visitor at a time.

    Args:
        folders: where to look.
        weights: a checkpoint, or model: an exported file; offered first.
        trust: load .pt2 files.
        config_file: the config of ``weights``; opts: overrides for every checkpoint.
    """

    def __init__(
        self,
        folders: Sequence[str] = (),
        weights: Optional[str] = None,
        model: Optional[str] = None,
        trust: bool = False,
        config_file: str = "",
        opts: Sequence = (),
    ):
        self.folders, self.trust = list(folders), trust
        self._weights, self._model, self._config_file, self._opts = weights, model, config_file, list(opts)
        self._paths: dict[str, str] = {}  # as last listed
        self._lock = threading.RLock()
        self._loaded: tuple = (None, None)  # path and time of the file; predictor

    def paths(self) -> dict[str, str]:
        """{name: path} of the models to choose from, the one of the command line first."""
        found, given = find_models(self.folders), self._weights or self._model
        self._paths = self._with_first(found, given) if given else found
        return self._paths

    @staticmethod
    def _with_first(found: dict[str, str], given: str) -> dict[str, str]:
        real = os.path.realpath(given)
        same = next((name for name, path in found.items() if os.path.realpath(path) == real), shown_name(given))
        return {same: given, **{name: path for name, path in found.items() if name != same}}

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[ImagePredictor]:
        """
        The predictor of a model, loaded if necessary, for this visitor alone.

        Raises:
            ConfigError: the name is not offered; other errors as in ``instseg predict``.
        """
        path = self._paths.get(name) or self.paths().get(name)
        if path is None:
            raise ConfigError(f"{name} is no model of the chosen folders." if name else "Choose a model first.")
        with self._lock:
            state = (path, os.path.getmtime(path) if os.path.exists(path) else None)
            if self._loaded[0] != state:
                self._loaded = (None, None)  # frees the memory before the next one is loaded
                self._loaded = (state, self._load(path))
            yield self._loaded[1]

    def finish(self, seconds: float) -> bool:
        """
        Wait until no visitor uses a model, and let none use one from now on. False if one still does after this time.

        A process that ends while a thread is in PyTorch may abort.
        """
        return self._lock.acquire(timeout=seconds)  # for good

    def _load(self, path: str) -> ImagePredictor:
        if path == self._model or (path != self._weights and path.endswith(EXPORTED)):
            return in_tiles(ExportedPredictor(path, self.trust))
        config_file = self._config_file if path == self._weights else ""
        return in_tiles(Predictor.from_checkpoint(path, config_file, self._opts))
