"""Makes a recipe for a data set and this machine: a base recipe, and decisions with their reasons."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...checkpoint import check_named
from ...config import check_config, get_value, load_config, merge_overrides
from ...config.detectron2_files import find_config_file
from ...data.coco import require_registered
from ...data.fingerprint import Fingerprint, take_fingerprint
from ...data.split import write_split
from ...errors import CheckpointError, ConfigError
from ...files import write_bytes
from ...methods import AutoRecipe, method_of, methods
from ..setup import kept_schedule, register_files, register_own_data
from .machine import Machine, this_machine
from .rules import Decisions, shared_rules
from .writing import nested, recipe_text

__all__ = ["Plan", "make_plan", "output_folder", "overrides", "without_data"]

MUCH = 1000  # images, from which a GPU is worth a recipe of the authors
PHOTOS = 0.8  # share of photos, from which ImageNet's weights help
AUTHORS_BATCH = 8  # recipes with such batches are for GPUs


def overrides(opts) -> dict:
    """{key: value as written} of the overrides on the command line."""
    return dict(zip(opts[::2], opts[1::2]))


def _given(opts) -> dict:
    """{key: value} of the same, with the types of their keys."""
    values = load_config("", opts)
    return {key: get_value(values, key) for key in overrides(opts)}


def without_data(opts) -> tuple:
    """The overrides without the data sets."""
    pairs = overrides(opts).items()
    return tuple(word for key, value in pairs if not key.startswith("DATASETS.T") for word in (key, value))


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        base: name or file of the recipe that this one is based on; reason: why this one.
        data: the fingerprint.
        decisions: config key -> (value, reason).
        opts: alternating keys and values from the command line, which come last.
    """

    base: str
    reason: str
    data: Fingerprint
    decisions: Decisions
    opts: tuple = ()

    def all_decisions(self) -> Decisions:
        """Also those of the command line."""
        given = {key: (value, "given on the command line") for key, value in _given(self.opts).items()}
        return {**self.decisions, **given}

    def text(self) -> str:
        """The recipe: a YAML file."""
        decisions = self.all_decisions()
        tree = CfgNode.load_yaml_with_base(find_config_file(self.base), allow_unsafe=False)
        tree = _merged(tree, nested({key: value for key, (value, _) in decisions.items()}))
        head = [
            f"Made by `instseg recipe` from {self.base}: {self.reason}. Values without a comment are from there.",
            *self.data.lines(),
        ]
        return recipe_text(head, tree, {key: reason for key, (_, reason) in decisions.items()})

    def write(self, file: str) -> None:
        """Write the recipe, whole or not at all."""
        write_bytes(file, self.text().encode())

    def table(self) -> str:
        """The fingerprint, and key, value and reason of each decision."""
        rows = [(key, str(value), reason) for key, (value, reason) in self.all_decisions().items()]
        widths = [min(max(len(row[column]) for row in rows), 48) for column in range(2)]
        lines = [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {reason}" for key, value, reason in rows]
        return "\n".join([*self.data.lines(), "", f"Based on {self.base}: {self.reason}.", "", *lines])


def _merged(tree: dict, other: Mapping) -> dict:
    for name, value in other.items():
        inner = tree.get(name)
        tree[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return tree


def _auto_of(name: str) -> AutoRecipe:
    known = {method.name.lower(): method for method in methods() if method.auto and method.auto.small}
    if (name or "").lower() not in known:
        names = ", ".join(sorted(method.name for method in known.values()))
        given = f"there is no method {name}" if name else "a recipe needs a method to start from, or a --config-file"
        raise ConfigError(f"{given}: --method takes {names}.")
    return known[name.lower()].auto


def _missing_weights(recipe: str) -> str:
    """Why the weights of a recipe cannot be used; empty if they can."""
    try:
        check_named(load_config(recipe).MODEL.WEIGHTS)
    except CheckpointError as error:
        return str(error).rstrip(".")
    return ""


def _base(auto: AutoRecipe, data: Fingerprint, machine: Machine) -> tuple[str, str]:
    """The recipe to build on, and why."""
    if machine.gpu and data.num_images >= MUCH:
        return auto.large, f"the authors' recipe, for a GPU and {data.num_images} images"
    where = f"a small network, for {data.num_images} images" if machine.gpu else "a small network, for CPUs"
    if data.photos >= PHOTOS:
        why = "these are photos in colour"
    elif auto.all_as_photos:
        why = "queries learn faster from them, whatever the images show"
    else:
        why = ""
    if not auto.photos or not why:
        return auto.small, f"{where}, trained from scratch"
    missing = _missing_weights(auto.photos)
    if missing:
        return auto.small, f"{where}, from scratch, although ImageNet's weights would help, since {why}: {missing}"
    return auto.photos, f"{where}, which starts from ImageNet's weights since {why}"


def _own_sets(cfg: CfgNode, file: str, divide: bool) -> Decisions:
    """The data sets, with a validation set: registers them, and splits one off if there is none and ``divide``."""
    node = cfg.DATASETS
    if not node.TRAIN:
        raise ConfigError("a recipe needs data: give --train-json and --train-images, or DATASETS.TRAIN '(\"NAME\",)'.")
    reasons = {"TRAIN": "as given", "TEST": "as given" if node.TEST else "none was given, and none can be split off"}
    name = node.TRAIN[0]
    require_registered(name)
    metadata, files, lacking = MetadataCatalog.get(name), (), []
    if divide and not node.TEST and len(node.TRAIN) == 1 and metadata.get("evaluator_type") == "coco":
        share, files, lacking = write_split(name, f"{os.path.splitext(file)[0]}_split")
    if files:
        source = os.path.basename(node.TRAIN_FILES[0]) if node.TRAIN_FILES else name
        node.TRAIN, node.TEST = ("custom_train",), ("custom_val",)
        node.TRAIN_FILES, node.TEST_FILES = ((path, metadata.image_root) for path in files)
        drawn = f"{share:.2g} of the images of {source}, at random, the same share of each class"
        without = f", without the classes: {', '.join(lacking)}" if lacking else ""
        reasons = {"TRAIN": f"the other images of {source}{without}", "TEST": drawn}
        register_files(cfg)
    decisions = {f"DATASETS.{key}": (node[key], reason) for key, reason in reasons.items()}
    for key in ("TRAIN_FILES", "TEST_FILES"):
        if node[key]:
            decisions[f"DATASETS.{key}"] = (node[key], "annotations, folder of the images")
    return decisions


def output_folder(args) -> str:
    """OUTPUT_DIR of the command line, or a folder named after the method or the base recipe."""
    base = os.path.splitext(os.path.basename(args.method or args.config_file or ""))[0]
    return overrides(args.opts).get("OUTPUT_DIR", os.path.join("output", f"{base.lower()}_auto"))


def make_plan(args, file: str) -> Plan:
    """
    Decide everything but the schedule for --minutes.

    Args:
        args: of `arguments.add_training`; a --config-file is the base, otherwise --method chooses it.
        file: where the recipe will be. A validation set that is split off is written beside it.

    Raises:
        ConfigError, DatasetError: the method or the data is unknown, or an override is wrong.
    """
    if args.method and args.config_file:
        raise ConfigError("a recipe is made from --config-file FILE, or for --method NAME: leave one of them out.")
    auto = None if args.config_file else _auto_of(args.method)
    cfg, written = load_config("", args.opts), overrides(args.opts)
    if "DATASETS.TRAIN" not in written:
        cfg.DATASETS.TRAIN = ()
    test = cfg.DATASETS.TEST
    register_own_data(cfg, args)
    keep_test = "DATASETS.TEST" in written and not args.val_json
    if keep_test:
        cfg.DATASETS.TEST = test
        register_files(cfg)
    sets = _own_sets(cfg, file, divide=not keep_test)
    opts = without_data(args.opts)  # the decisions have them, and a split replaces them
    data = take_fingerprint(cfg.DATASETS.TRAIN)
    gpus = 0 if cfg.MODEL.DEVICE == "cpu" else args.num_gpus
    machine = this_machine(gpus, args.num_processes, args.num_machines)
    base, reason = _base(auto, data, machine) if auto else (args.config_file, "as given")

    cfg = load_config(base)
    method, small = method_of(cfg), cfg.SOLVER.IMS_PER_BATCH < AUTHORS_BATCH
    decisions = {**sets, "OUTPUT_DIR": (output_folder(args), "checkpoints, log and results")}
    given = _given(opts)
    if kept_schedule(args):
        given["SOLVER.FREEZE_BACKBONE_ITER"] = args.freeze_backbone
        decisions["SOLVER.FREEZE_BACKBONE_ITER"] = (args.freeze_backbone, "--freeze-backbone")
    decisions |= shared_rules(cfg, data, machine, small, given)
    _merge_values(cfg, decisions, opts)
    if method.auto:
        unit = given.get("SOLVER.IMS_PER_BATCH", machine.processes)  # a given batch is not divided
        decisions |= method.auto.rules(cfg, data, small, unit, given)
        _merge_values(cfg, decisions, opts)
    check_config(cfg)
    return Plan(base, reason, data, decisions, opts)


def _merge_values(cfg: CfgNode, decisions: Decisions, opts) -> None:
    merge_overrides(cfg, [*itertools.chain(*((key, value) for key, (value, _) in decisions.items())), *opts])
