"""A DetectionCheckpointer that reads safely, reports what it loaded and writes only complete files."""

import contextlib
import copy
import logging
import os
import re
from typing import Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from ..errors import CheckpointError
from .authors import convert_classifier, convert_state_dict, is_classifier
from .class_rows import carry_classes
from .formats import read_extra, read_weights
from .identify import require_file
from .layouts import plain_names, strip_owner
from .named import named_file
from .paths import check_sha256, split_query
from .report import log_report
from .writing import write_checkpoint_file

__all__ = ["InstSegCheckpointer"]

logger = logging.getLogger(__name__)

_FROM_SCRATCH = (
    'Set MODEL.WEIGHTS to a local file, or train from scratch: MODEL.WEIGHTS "", MODEL.BACKBONE.FREEZE_AT 0 and a '
    "trained norm (MODEL.RESNETS.NORM BN or GN)"
)

_TRAINING_ONLY = "training_only."  # prefix of the weights of `InstanceSegmenter.training_only`


def _without_training_only(state: dict) -> dict:
    """The weights that inference needs."""
    others = copy.copy(state)  # with the versions of the modules, which PyTorch keeps in an attribute
    for key in state:
        if key.startswith(_TRAINING_ONLY):
            del others[key]
    return others


class InstSegCheckpointer(DetectionCheckpointer):
    """
    Loads ``.pth``, ``.pkl`` and ``.safetensors`` files, including the authors' files, and saves ``.pth`` files.

    Every load logs how many weights were found, and which are missing, unexpected or of another shape. In training,
    missing and mismatched weights keep their initial values; at test time and when resuming they are an error. Training
    that starts from a model of other classes takes over the rows of those that have the same names. The weights of
    parts that only training has are not among those of the model: the trainer's state contains them.
    """

    def __init__(
        self,
        model,
        save_dir: str = "",
        *,
        for_test: bool = False,
        metadata: Optional[dict] = None,
        save_to_disk: Optional[bool] = None,
        **checkpointables,
    ):
        """
        Args:
            model: the module, which may be wrapped for distributed training.
            save_dir: folder of :meth:`save`.
            for_test: raise an error if weights are missing or of another shape.
            metadata: stored in every file, e.g. {"cfg": YAML text, "class_names": list of str}.
            save_to_disk: None: only on the main process.
            checkpointables: objects with state_dict and load_state_dict.
        """
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.for_test = for_test
        self.metadata = dict(metadata or {})
        self._strict = for_test
        self._source = ""
        self._heuristics = False
        self._resuming = False

    def load(self, path: str, checkpointables: Optional[list[str]] = None, *, strict: Optional[bool] = None) -> dict:
        """
        Load weights, and the named checkpointables (None: all).

        Args:
            path: file, URL (``detectron2://``, ``https://``) or name (see `named`). With ``?matching_heuristics=True``
                appended, names are matched by their endings; with ``?sha256=DIGEST``, the file's SHA-256 is checked.
                Empty: load nothing.
            strict: overrides ``for_test``.

        Returns:
            The other content of the file.

        Raises:
            CheckpointError: see :func:`read_weights`; or a download fails, the checkpoint is of another architecture,
                or, with ``strict``, weights are missing or of another shape.
        """
        if not path:
            level = logging.WARNING if self.for_test else logging.INFO
            logger.log(level, "MODEL.WEIGHTS is empty: the model keeps its random initial weights.")
            return {}
        self._strict = self.for_test if strict is None else strict
        self._source, options = split_query(path)
        self._heuristics = "matching_heuristics" in options
        local = self._local_path(self._source)
        if "sha256" in options:
            check_sha256(local, options["sha256"])
        # Detectron2's own load() parses the query, and keeps state after an error.
        return Checkpointer.load(self, local, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """
        Resume from the last checkpoint in ``save_dir`` if ``resume`` is set and there is one; otherwise load ``path``.

        Raises:
            CheckpointError: see :meth:`load`; or the last checkpoint lacks the state of a checkpointable.
        """
        if not resume or not self.has_checkpoint():
            return self.load(path, checkpointables=[])
        with self._as_resuming():
            return self.load(self.get_checkpoint_file(), strict=True)

    def read_last(self) -> dict:
        """
        The content, other than weights, of the checkpoint to resume from.

        Raises:
            CheckpointError: it cannot be read; the message names an earlier one.
        """
        with self._as_resuming(), self._with_remedy():
            return read_extra(self.get_checkpoint_file())

    @contextlib.contextmanager
    def _as_resuming(self):
        self._resuming = True
        try:
            yield
        finally:
            self._resuming = False

    @contextlib.contextmanager
    def _with_remedy(self, default: str = ""):
        """Append a remedy to errors about an unreadable file."""
        try:
            yield
        except CheckpointError as error:
            remedy = self._remedy() or default
            raise CheckpointError(f"{error} {remedy}." if remedy else str(error)) from error

    def _local_path(self, path: str) -> str:
        try:
            local = named_file(path) or self.path_manager.get_local_path(path)
        except CheckpointError:
            raise
        except Exception as error:
            reason = getattr(error, "reason", None) or error
            raise CheckpointError(f"{path} cannot be downloaded ({reason}). {_FROM_SCRATCH}.") from error
        if local == path and "://" in path:
            known = "imagenet, torchvision, timm, authors, detectron2, https"
            raise CheckpointError(f"{path}: such addresses are unknown; they begin with one of {known}.")
        with self._with_remedy(_FROM_SCRATCH):
            require_file(local)
        return local

    def _remedy(self) -> str:
        if self._resuming:
            last = os.path.basename(self.get_checkpoint_file())
            names = sorted(name for name in os.listdir(self.save_dir) if re.fullmatch(r"model_\d+\.pth", name))
            earlier = next((name for name in reversed(names) if name != last), None)
            if earlier:
                return f"To resume from {earlier}, write its name to {os.path.join(self.save_dir, 'last_checkpoint')}"
            return f"{self.save_dir} has no earlier checkpoint: start a new run without --resume"
        if "://" in self._source:
            return f"It was downloaded from {self._source}: delete it to download it again"
        return ""

    def _load_file(self, filename: str) -> dict:
        with self._with_remedy():
            data = read_weights(filename)
        lacking = [name for name in self.checkpointables if name not in data] if self._resuming else []
        if lacking:
            raise CheckpointError(
                f"{filename} has no state of the {lacking[0]}, so training cannot resume from it: start a new run from "
                "its weights with MODEL.WEIGHTS and without --resume."
            )
        known = self.model.state_dict().keys()
        state = plain_names(filename, data["model"], known)
        self._convert_ndarray_to_tensor(state)
        if is_classifier(state):
            data["model"] = convert_classifier(state)
            data["matching_heuristics"] = True
            return data
        data["model"] = convert_state_dict(state)
        if self._heuristics:
            data["matching_heuristics"] = True
        if not data.get("matching_heuristics"):
            data["model"] = strip_owner(data["model"], known)
        return data

    def _load_model(self, checkpoint: dict):
        count_in_file = len(checkpoint["model"])
        classes = [] if self._strict else carry_classes(checkpoint, self.model.state_dict(), self.metadata)
        try:
            found = super()._load_model(checkpoint)
        except ValueError as error:  # names are ambiguous, or a rule of Detectron2 matches none
            raise CheckpointError(f"{self._source} does not fit the model: {error}") from error
        state = self.model.state_dict(keep_vars=True)
        # num_batches_tracked has no effect unless momentum is None; a tensor with two names may be stored once.
        expected = [key for key in _without_training_only(state) if not key.endswith("num_batches_tracked")]
        mismatched = {key for key, *_ in found.incorrect_shapes}  # fvcore also lists them as missing
        absent = {*found.missing_keys, *mismatched}
        loaded = {id(state[key]) for key in expected if key not in absent}
        missing = [k for k in expected if k in absent and k not in mismatched and id(state[k]) not in loaded]
        matched = len(expected) - len(missing) - len(mismatched)
        diverged = [name for name, p in self.model.named_parameters() if not p.is_meta and not p.isfinite().all()]
        log_report(
            " ".join([f"{self._source}: {matched} of {len(expected)} weights loaded.", *classes]),
            missing=missing,
            mismatched=found.incorrect_shapes,
            unexpected=found.unexpected_keys,
            diverged=diverged,
        )
        if matched < 0.1 * min(len(expected), count_in_file):
            raise CheckpointError(
                f"{self._source} is a checkpoint of another architecture: use the config it was trained with (only "
                f"{matched} of its {count_in_file} weights fit {type(self.model).__name__}; its first other key: "
                f"{next(iter(found.unexpected_keys), '-')})."
            )
        if self._strict:
            if missing or found.incorrect_shapes:
                self._require_same_architecture(checkpoint)
            self._require_complete(missing, found.incorrect_shapes)
        return found

    def _require_same_architecture(self, checkpoint: dict) -> None:
        """Compare the architectures, using the config that is stored in checkpoints of this package."""
        config = checkpoint.get("cfg")
        named = re.search(r"^  META_ARCHITECTURE: (\w+)", config, re.M) if isinstance(config, str) else None
        built = type(self.model).__name__
        if named and named[1] != built:
            raise CheckpointError(
                f"{self._source} is a checkpoint of {named[1]}, but the config builds {built}: use the config it was "
                "trained with."
            )

    def _require_complete(self, missing: list[str], mismatched: list[tuple]) -> None:
        if mismatched:
            key, in_file, in_model = mismatched[0]
            raise CheckpointError(
                f"{self._source}: {len(mismatched)} weights do not have the model's shape, for instance {key}: "
                f"{tuple(in_file)} in the file, {tuple(in_model)} in the model; use the config it was trained with, "
                "with the same number of classes."
            )
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise CheckpointError(f"{self._source} lacks {len(missing)} weights of the model: {shown}.")

    def _log_incompatible_keys(self, incompatible) -> None:
        """Log nothing: the report lists them."""

    def save(self, name: str, *, model_only: bool = False, tag: bool = True, **extra) -> None:
        """
        Write ``save_dir/name.pth``: weights, checkpointables, metadata and ``extra``.

        Args:
            model_only: leave out the checkpointables.
            tag: make it the checkpoint to resume from.

        Raises:
            CheckpointError: the disk is full; earlier checkpoints are intact.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": _without_training_only(self.model.state_dict()), **self.metadata}
        if not model_only:
            data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(extra)
        path = os.path.join(self.save_dir, f"{name}.pth")
        write_checkpoint_file(path, lambda file: torch.save(data, file))
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")
        logger.info("Saved %s.", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Set the checkpoint to resume from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_checkpoint_file(path, lambda file: file.write(last_filename_basename.encode()))
