"""The references of the documents, which are generated from the code."""

import pytest
from detectron2.config import get_cfg as detectron2_cfg

from instseg_d2.commands import COMMANDS, parser_of
from instseg_d2.config import get_cfg
from instseg_d2.config.values import items
from projects.docs.reference import commands, config_keys, python_names


def test_every_key_of_this_package_has_a_meaning():
    groups = config_keys.config_keys()
    keys = {key.name: key for group in groups.values() for key in group}
    ours = {name for name, _ in items(get_cfg())} - {name for name, _ in items(detectron2_cfg())}
    assert set(keys) <= ours
    assert not {name for name in ours - set(keys) if not any(key.startswith(f"{name}.") for key in keys)}
    assert len(keys) == sum(map(len, groups.values()))  # none is listed twice
    key = keys["INPUT.CROP.CROP_INSTANCE"]  # its comment is above it
    assert (key.default, key.meaning) == (
        True,
        "With CROP before_resize: the window contains the centre of a random instance.",
    )
    assert key in groups["All methods"]
    assert keys["MODEL.ISTR.DROPOUT"].allowed == "from 0 to below 1"
    assert keys["MODEL.SPARSE_INST.DECODER.MASK.DIM"] in groups["SparseInst"]


def add_example_config(cfg):
    # Of all keys of the section.

    node = CfgNode()  # noqa: F821 (only read)
    node.FIRST = 1  # at its end
    node.SECOND = 2
    node.INNER = CfgNode()  # noqa: F821
    # Above it,
    # in two lines.
    node.INNER.THIRD = (
        3,
        4,
    )
    cfg.MODEL.EXAMPLE = node
    cfg.FOURTH = "#"  # after a sign


def test_comments_belong_to_the_key_beside_or_below_them():
    assert config_keys.meanings(add_example_config) == {
        "MODEL.EXAMPLE.FIRST": "at its end",
        "MODEL.EXAMPLE.SECOND": "",
        "MODEL.EXAMPLE.INNER.THIRD": "Above it, in two lines.",
        "FOURTH": "after a sign",
    }


def test_a_key_without_a_comment_is_an_error(monkeypatch):
    monkeypatch.setattr(config_keys, "get_cfg", lambda: (cfg := get_cfg()) and (cfg.update({"SILENT": 1}) or cfg))
    with pytest.raises(ValueError, match=r"without a comment in instseg_d2/config/: SILENT$"):
        config_keys.config_keys()


def test_every_option_of_every_command_is_listed():
    text = commands.render()
    for name in COMMANDS:
        section = text.split(f"## instseg {name}\n")[1].split("\n## ")[0]
        for action in parser_of(name)._actions:
            assert all(f"{option}" in section for option in action.option_strings if option not in ("-h", "--help"))
    assert "%(" not in text


def test_public_names_are_listed():
    text = python_names.render()
    assert "::: instseg_d2.runtime.model.Model\n" in text
    assert "::: instseg_d2.ops.blend_masks.blend_masks\n" in text
