"""
The rules that all methods share: from the fingerprint of the data and the machine to values of config keys, each with
its reason. A method's own rules, in ``modeling/<method>/recipe.py``, come after these and may replace them.
"""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode

from ...config import get_cfg, get_value
from ...config.schedule import rest_of_schedule
from ...data.fingerprint import Fingerprint
from ...methods import method_of
from ...modeling.recipe_rules import ENLARGED, MARGIN, SMALL, TYPICAL, tiles
from .machine import Machine

__all__ = ["Decisions", "shared_rules"]

Decisions = dict[str, tuple[object, str]]  # config key -> (value, reason)

SMALLER, LARGER = 5 / 6, 7 / 6  # of the side, also used in training
SIDES = {False: (192, 384), True: (384, 800)}  # shorter side at the network's input, on CPUs and on GPUs
LARGEST_TEST = {False: 1536, True: 2400}  # shorter side of an image that is tested as a whole
BYTES_OF_PIXEL = {True: 1500, False: 3000}  # of a training step for each pixel, of small recipes and others
CHECKPOINTED = 0.6  # of the memory of a step, with activation checkpointing
EVALUATIONS = 10  # during a training, at most
RARE = 10  # classes are rare that are in so many times fewer images than the class of a typical object


def _in_32(pixels: float) -> int:
    """The nearest multiple of 32, the stride of the last map."""
    return max(32, 32 * round(pixels / 32))


def _up_to_32(pixels: float) -> int:
    return 32 * math.ceil(pixels / 32)


def _train_sizes(side: float) -> tuple:
    return tuple(sorted({_in_32(side * factor) for factor in (SMALLER, 1, LARGER)}))


def _stretch(data: Fingerprint, side: float, high: float) -> float:
    """Longer side / shorter side: that of almost all images, if these have at most the pixels of 3 : 1 at ``high``."""
    return min(max(data.image_aspect.q95, 4 / 3), 3 * max(high / side, 1) ** 2)


def _followed(decisions: Decisions, given: Mapping) -> Decisions:
    """The decisions, with the values given instead of those decided."""
    return decisions | {key: (given[key], "as given") for key in decisions if key in given}


def _sizes(cfg: CfgNode, data: Fingerprint, machine: Machine, given: Mapping) -> Decisions:
    """Input size and its range, and crops where the whole image would have to shrink too much, if allowed."""
    low, high = SIDES[machine.gpu]
    image = data.image_side.q50
    wanted = max(SMALL / data.relative_size.q25, TYPICAL / data.relative_size.q50)
    enlarged = ENLARGED * image / LARGER  # the largest of the three sizes is no larger
    side = _in_32(min(max(wanted, low), high, enlarged))
    shrunk = data.size.q25 * side / image  # a small object at this size
    scale = min(1.0, max(SMALL / data.size.q25, TYPICAL / data.size.q50))  # at which objects are large enough
    needed = given.get("INPUT.CROP.ENABLED", True) and shrunk < SMALL and side / scale < 0.75 * image
    if needed or _given_crops(given):
        return _crops(cfg, data, machine, side, scale, given)
    sizes = tuple(sorted(given.get("INPUT.MIN_SIZE_TRAIN", _train_sizes(side))))
    test = _in_32(min(max(image, sizes[-1]), max(1.3 * side, sizes[-1])))
    if given.get("TEST.TILE.SIZE"):
        test = _in_32(given["TEST.TILE.SIZE"] * side / image)
    test = given.get("INPUT.MIN_SIZE_TEST", test)
    stretch = _stretch(data, side, high)
    if enlarged <= min(max(wanted, low), high):
        why = f"images of about {image:g} pixels are enlarged at most {ENLARGED:g} times"
    elif wanted > high:
        why = f"at most {high} on {'a GPU' if machine.gpu else 'CPUs'}; objects would like {wanted:.0f}"
    else:
        why = f"three quarters of the objects then have over {SMALL} pixels, half over {TYPICAL}; at least {low}"
    whole = f"in whole images, three quarters of the objects are over {shrunk:.0f} pixels"
    if shrunk < SMALL:
        whole += "; crops would hardly show more"
    return {
        "INPUT.MIN_SIZE_TRAIN": (sizes, f"shorter side around {side}: {why}"),
        "INPUT.MAX_SIZE_TRAIN": (_up_to_32(sizes[-1] * stretch), f"95 % of the images are at most {stretch:.2g} : 1"),
        "INPUT.MIN_SIZE_TEST": (test, "up to 1.3 times the training's size, but no larger than the images need"),
        "INPUT.MAX_SIZE_TEST": (_up_to_32(test * stretch), "the same shape"),
        "INPUT.CROP.ENABLED": (False, whole),
    }


def _given_crops(given: Mapping) -> bool:
    """Whether crops of so many pixels are given."""
    fixed = given.get("INPUT.CROP.TYPE") == "absolute" and "INPUT.CROP.SIZE" in given
    return fixed and bool(given.get("INPUT.CROP.ENABLED"))


def _crops(cfg: CfgNode, data: Fingerprint, machine: Machine, side: int, scale: float, given: Mapping) -> Decisions:
    relative = given.get("INPUT.CROP.TYPE", "absolute") != "absolute"
    crop = given.get("INPUT.CROP.SIZE", (round(side / scale),) * 2)[0]
    sizes = tuple(sorted(given.get("INPUT.MIN_SIZE_TRAIN", _train_sizes(side))))
    side = sizes[len(sizes) // 2]
    scale = side / (crop * data.image_side.q50 if relative else crop)
    largest = LARGEST_TEST[machine.gpu]
    whole = _in_32(data.image_side.q95 * scale)
    tile = given.get("TEST.TILE.SIZE", 0)
    test = given.get("INPUT.MIN_SIZE_TEST", _in_32(tile * scale) if tile else min(whole, largest))
    shrunk = data.size.q25 * side / data.image_side.q50
    joined = not method_of(cfg).panoptic(cfg) and not cfg.MODEL.KEYPOINT_ON  # what tiles can find
    cut = tile or (test < whole and joined and "TEST.TILE.SIZE" not in given)
    return {
        "INPUT.CROP.ENABLED": (
            True,
            f"a quarter of the objects would be below {shrunk:.1f} pixels in whole images of {side}",
        ),
        "INPUT.CROP.SCHEME": ("before_resize", "windows of the original image"),
        "INPUT.CROP.TYPE": ("absolute", "in pixels of the original image"),
        "INPUT.CROP.SIZE": (
            (crop, crop),
            f"becomes {side}: {scale:.2g} times the size, three quarters of the objects have over {SMALL}",
        ),
        "INPUT.MIN_SIZE_TRAIN": (sizes, f"the crop's shorter side around {side}"),
        "INPUT.MAX_SIZE_TRAIN": (2 * sizes[-1], "crops of images that are smaller on one side"),
        "INPUT.MIN_SIZE_TEST": (
            test,
            "objects of the same size as in training" if test == whole or cut else f"at most {largest}",
        ),
        "INPUT.MAX_SIZE_TEST": (_up_to_32(test * _stretch(data, test, largest)), "the same shape"),
        **(tiles(data, tile or round(test / scale), "larger images would shrink") if cut else {}),
    }


def _resizing(cfg: CfgNode, given: Mapping) -> Decisions:
    """Training images get one of the sizes decided, also where the base resizes them in another way."""
    decisions = {}
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and "INPUT.MIN_SIZE_TRAIN" not in given:
        decisions["INPUT.MIN_SIZE_TRAIN_SAMPLING"] = ("choice", "one of INPUT.MIN_SIZE_TRAIN")
    if cfg.LSJ_AUG:
        decisions["LSJ_AUG"] = (False, "it has sizes of its own, whatever the data")
    return decisions


def _batch(cfg: CfgNode, machine: Machine, sizes: Decisions, small: bool, given: Mapping) -> Decisions:
    """
    Batch and learning rate: the batch given, or the base's if the memory allows; with activation checkpointing if
    necessary.
    """
    pixels = sizes["INPUT.MIN_SIZE_TRAIN"][0][-1] * sizes["INPUT.MAX_SIZE_TRAIN"][0]
    fitting = 0.7 * machine.memory * 2**30 / (pixels * BYTES_OF_PIXEL[small])  # images of a process
    base, count, key = cfg.SOLVER.IMS_PER_BATCH, machine.processes, "SOLVER.IMS_PER_BATCH"
    wanted = given.get(key, base)
    if fitting * count >= base and base % count == 0 and wanted == base:
        kept = "the base recipe's"
        return {key: (base, kept), "SOLVER.BASE_LR": (cfg.SOLVER.BASE_LR, kept)}
    decisions = {}
    if fitting * count < wanted:
        fitting /= CHECKPOINTED
        decisions["MODEL.ACTIVATION_CHECKPOINTING"] = (
            sorted({*method_of(cfg).rerun_parts, *cfg.MODEL.ACTIVATION_CHECKPOINTING}),
            f"{machine.memory:.1f} GiB are free for each process; a step takes less memory, and more time",
        )
    batch = base // 2 ** math.ceil(math.log2(max(base / count / max(fitting, 1), 1)))
    batch = given.get(key, max(batch // count, 1) * count)
    ratio = batch / base
    sgd = (cfg.SOLVER.OPTIMIZER or method_of(cfg).optimizer).upper() == "SGD"
    rate = float(f"{cfg.SOLVER.BASE_LR * (ratio if sgd else math.sqrt(ratio)):.3g}")
    factor = f"{ratio:.2g}" if sgd else f"the root of {ratio:.2g}"
    return {
        **decisions,
        key: (
            batch,
            f"{fitting:.1f} images fit into the memory of each of {count} processes; the base recipe has {base}",
        ),
        "SOLVER.BASE_LR": (rate, f"{cfg.SOLVER.BASE_LR:g} of the base recipe times {factor}, for the batch"),
    }


def _schedule(cfg: CfgNode, data: Fingerprint, batch: int, small: bool, given: Mapping) -> Decisions:
    """Iterations as given, or by the number of images; --minutes rescales them."""
    images = data.num_images - data.num_empty
    epochs = 12 if small else 24
    low, high = 600 if small else 3000, cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH // batch
    high = 4000 if small else high
    wanted = round(epochs * images / batch)
    iterations = given.get("SOLVER.MAX_ITER", min(max(wanted, low), max(high, low)))
    limit = f", at least {low}" if wanted < low else f", at most {high}" if wanted > high else ""
    warm_up, most = cfg.SOLVER.WARMUP_ITERS, iterations // 6
    rest = rest_of_schedule(cfg, iterations)
    if "TEST.EVAL_PERIOD" in rest:
        rest["TEST.EVAL_PERIOD"] = max(rest["TEST.EVAL_PERIOD"], math.ceil(iterations / EVALUATIONS))
    if cfg.SOLVER.MAX_ITER == get_cfg().SOLVER.MAX_ITER:  # the base has no schedule of its own
        rest = {key: value for key, value in rest.items() if key == "SOLVER.STEPS"}
    return {
        **{key: (value, "at the base recipe's share") for key, value in rest.items()},
        "SOLVER.MAX_ITER": (iterations, f"{epochs} times {images} images{limit}; --minutes fits it to a time"),
        "SOLVER.WARMUP_ITERS": (
            min(warm_up, most),
            "the base recipe's" if warm_up <= most else "at most a sixth of the iterations",
        ),
    }


def _classes(data: Fingerprint) -> Decisions:
    """Images of rare classes are drawn more often."""
    images = {name: count for name, count in data.class_images.items() if count}
    typical = sum(count * count for count in images.values()) / sum(images.values())  # of the class of a random label
    name = min(images, key=images.get)
    seen = f"{name} is in {images[name]} images, the class of a typical object in {typical:.0f}"
    rare = sum(count * RARE < typical for count in images.values())
    if not rare:
        return {"DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", f"no class is rare: {seen}")}
    threshold = float(f"{typical / RARE / (data.num_images - data.num_empty):.3g}")
    return {
        "DATALOADER.SAMPLER_TRAIN": ("RepeatFactorTrainingSampler", f"{rare} classes are rare: {seen}"),
        "DATALOADER.REPEAT_THRESHOLD": (
            threshold,
            f"classes in a smaller share of the images are rare, 1/{RARE} of that",
        ),
    }


def _augmentation(cfg: CfgNode, data: Fingerprint) -> Decisions:
    """Those for all methods. Stronger ones stay as the base recipe has them, if no rule of the method adds them."""
    decisions = {"INPUT.RANDOM_FLIP": ("horizontal", "a mirrored image is as likely; one upside down may not be")}
    for key in ("INPUT.COPY_PASTE", "INPUT.MOSAIC.PROB"):
        if data.semantic and get_value(cfg, key):
            decisions[key] = (0.0, "semantic labels are not mixed")
    return decisions


def _detections(data: Fingerprint) -> Decisions:
    cap = max(100, 50 * math.ceil(MARGIN * data.max_objects / 50))
    return {"TEST.DETECTIONS_PER_IMAGE": (cap, f"an image has up to {data.max_objects} objects")}


def _machine(cfg: CfgNode, machine: Machine) -> Decisions:
    workers = min(machine.cores, 8) if machine.gpu else 1
    decisions = {
        "DATALOADER.NUM_WORKERS": (workers, f"{machine.cores} cores for each process"),
        "SOLVER.AMP.ENABLED": (True, "float16" if machine.gpu else "bfloat16, if the CPU supports it"),
    }
    if not cfg.TEST.REPORT:
        decisions["TEST.REPORT"] = (True, "after the evaluation: what is confused and missed, and the worst images")
    if cfg.SEED < 0:
        decisions["SEED"] = (1, "so that the training can be repeated")
    return decisions


def _with_sides(given: Mapping, side: int) -> dict:
    """The values given, with this side instead of the 0 that leaves images as they are."""
    train, test = (f"INPUT.MIN_SIZE_{part}" for part in ("TRAIN", "TEST"))
    sides = {train: tuple(size or side for size in given.get(train, ())), test: given.get(test, 0) or side}
    return {key: sides.get(key, value) for key, value in given.items()}


def shared_rules(cfg: CfgNode, data: Fingerprint, machine: Machine, small: bool, given: Mapping) -> Decisions:
    """
    Args:
        cfg: the config of the recipe that everything is based on.
        small: it is for CPUs or small data, as those of ``quick/``, not one of the authors'.
        given: config key -> value that is not to be decided, but followed.
    """
    shown = _with_sides(given, round(data.image_side.q50))
    decisions = _followed({**_sizes(cfg, data, machine, shown), **_resizing(cfg, shown)}, shown)
    decisions |= _batch(cfg, machine, decisions, small, given)
    decisions |= _schedule(cfg, data, decisions["SOLVER.IMS_PER_BATCH"][0], small, given)
    decisions |= {**_classes(data), **_augmentation(cfg, data), **_detections(data), **_machine(cfg, machine)}
    return _followed(decisions, given)
