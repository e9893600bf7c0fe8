"""The records of the methods: complete, consistent, and the only way in which shared code knows about methods."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY

import instseg_d2
from instseg_d2 import methods
from instseg_d2.config import get_cfg, get_value, load_config
from instseg_d2.methods import Method, mask_head_of, method_of, register_method

PACKAGE = Path(instseg_d2.__file__).parent
ROOMS = ("blendmask", "embedmask", "instancefcn", "istr", "sparseinst")
OWN = [f"modeling/{room}/" for room in ROOMS] + [f"config/{room}.py" for room in ROOMS]
# Names of the methods, of their rooms and of their config sections.
NAMED = re.compile(
    r"BlendMask|EmbedMask|InstanceFCN|(?<![A-Z])ISTR(?![A-Z])|SparseInst"
    rf"|\b(?:{'|'.join(ROOMS)})\b"
    r"|\b(?:BLENDMASK|BASIS_MODULE|EMBED_MASK|INSTANCE_FCN|SPARSE_INST|BLEND_MASK_HEAD|ASSEMBLE_MASK_HEAD)\b"
)
# Shared files that may name a method.
MAY_NAME = {
    "modeling/__init__.py": "the one import of each room",
    "modeling/backbone/fcos_fpn.py": "gives the maps below the pyramid where MODEL.BASIS_MODULE.IN_FEATURES wants them",
    "layers/assemble_boxes.py": "cites the paper",
    "ops/assemble_instances.py": "cites the paper",
    "ops/blend_masks.py": "cites the paper",
    "ops/mask_prob.py": "cites the paper",
}


RECIPE = "BlendMask/R_50_1x"  # the example in help texts of how a recipe is named


def shared_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(tuple(OWN)):
            yield name, path.read_text(encoding="utf-8").replace(RECIPE, "")


def test_a_method_is_named_in_its_own_files():
    """What shared code must know about a method belongs in its record; files that no longer name one leave the list."""
    assert {name for name, text in shared_files() if NAMED.search(text)} == set(MAY_NAME)


def test_papers_are_cited_in_docstrings_alone():
    """If a file may only cite a paper, no code and no comment in it names a method."""
    for name, reason in MAY_NAME.items():
        if reason == "cites the paper":
            tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                    node.body[0].value = ast.Constant("")
            assert not NAMED.search(ast.unparse(tree)), name


def of_this_package(registry):
    return {name for name, entry in registry if entry.__module__.startswith("instseg_d2.")}


def test_everything_registered_has_a_record():
    names = {name for method in methods.methods() for name in (method.name, *method.aliases)}
    assert names - {"GeneralizedRCNN", "PanopticFPN"} == of_this_package(META_ARCH_REGISTRY)
    cfg = get_cfg()
    for name in of_this_package(ROI_MASK_HEAD_REGISTRY):
        cfg.MODEL.ROI_MASK_HEAD.NAME = name
        assert mask_head_of(cfg).values, name
        for key in mask_head_of(cfg).values:
            assert key in cfg.MODEL.ROI_MASK_HEAD


def test_keys_and_schemes_exist():
    cfg = get_cfg()
    starts = []
    for method in methods.methods():
        for key, extra in method.class_count_keys.items():
            assert get_value(cfg, key) == 80 + extra
        assert method.crop_scheme in ("before_resize", "detr")
        assert method.optimizer in ("SGD", "ADAMW", "MUON")
        starts += method.authors_names
    assert len(starts) == len(set(starts)) >= 5
    assert not any(a != b and a.startswith(b) for a in starts for b in starts)  # no file has two converters


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("GeneralizedRCNN", {"export"}),
        ("PanopticFPN", {"panoptic", "export"}),
        ("FCOSDetector", {"keys", "export"}),
        ("OneStageDetector", {"keys", "export"}),
        ("BlendMask", {"keys", "semantic", "panoptic", "export"}),
        ("EmbedMask", {"keys", "background", "export"}),
        ("InstanceFCN", {"agnostic", "export"}),
        ("ISTR", {"keys", "AdamW", "DETR", "masks", "fit", "export"}),
        ("SparseInst", {"keys", "AdamW", "DETR", "masks", "names", "export"}),
    ],
)
def test_facts(name, facts):
    """As in the methods' papers and releases, with all options on."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.BASIS_MODULE.LOSS_ON = cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = True
    method, default = method_of(cfg), Method(name)
    found = {
        "keys": method.class_count_keys != default.class_count_keys,
        "background": 1 in method.class_count_keys.values(),
        "AdamW": method.optimizer == "ADAMW",
        "names": method.undecayed_names is not None,
        "fit": method.fit is not default.fit,
        "DETR": method.crop_scheme == "detr",
        "masks": method.needs_masks,
        "semantic": method.semantic_target(cfg),
        "agnostic": method.class_agnostic(cfg),
        "panoptic": method.panoptic(cfg),
        "export": method.exportable is not None,
    }
    assert {fact for fact, holds in found.items() if holds} == set(facts)


def test_options_turn_facts_off():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "InstanceFCN", "MODEL.INSTANCE_FCN.CLASSIFY", "True"])
    assert not method_of(cfg).class_agnostic(cfg)
    cfg.MODEL.META_ARCHITECTURE = "BlendMask"
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    assert not method_of(cfg).panoptic(cfg)
    assert not method_of(cfg).semantic_target(cfg)


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    with pytest.raises(ValueError, match=r"^BlendMask is already registered\.$"):
        register_method(Method("Another", aliases=("BlendMask",)))
    register_method(Method("Another", aliases=("More",)))
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "More"
    assert method_of(cfg) == replace(Method("Another"), aliases=("More",))


def test_the_registry_is_the_lowest_layer():
    tree = ast.parse((PACKAGE / "methods.py").read_text(encoding="utf-8"))
    assert not [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
