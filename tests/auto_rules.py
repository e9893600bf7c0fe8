"""What the rules of automatic recipes decide for imagined data."""

from instseg_d2.config import load_config
from instseg_d2.data.fingerprint import fingerprint_of
from instseg_d2.engine.auto import Machine, shared_rules
from instseg_d2.methods import method_of, methods
from tests.fingerprints import record

LAPTOP, GPU = Machine(gpu=False, memory=8.0), Machine(gpu=True, memory=80.0, cores=16)
RECIPES = {method.name: method.auto for method in methods() if method.auto and method.auto.small}


def several(images, size, objects, side, classes=1):
    """``images`` of a size with so many square objects each, of the classes in turn."""
    boxes = [(0, 0, side, side) for _ in range(objects)]
    return [record(*size, [(*box, (i + j) % classes) for j, box in enumerate(boxes)]) for i in range(images)]


def decided(records, classes=1, name="BlendMask", machine=LAPTOP, base=None, given=None):
    """The values of all rules, with values given."""
    data = fingerprint_of(records, [f"class {i}" for i in range(classes)])
    cfg = load_config(base or RECIPES[name].small)
    small = cfg.SOLVER.IMS_PER_BATCH < 8
    given = given or {}
    found = dict(shared_rules(cfg, data, machine, small, given))
    for key, (value, _) in found.items():
        cfg.merge_from_list([key, value])
    unit = given.get("SOLVER.IMS_PER_BATCH", machine.processes)
    found |= method_of(cfg).auto.rules(cfg, data, small, unit, given)
    assert all(reason for _, reason in found.values())
    return {key: value for key, (value, _) in found.items()}
