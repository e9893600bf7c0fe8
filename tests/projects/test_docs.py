"""The references of the documents, generated from the code, and the runner of their code blocks."""

import sys

import pytest
from detectron2.config import get_cfg as detectron2_cfg

from instseg_d2.commands import COMMANDS, parser_of
from instseg_d2.config import get_cfg
from instseg_d2.config.values import items
from projects.docs import run_blocks
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
    assert "::: instseg_d2.runtime.Model\n" in text
    assert "::: instseg_d2.ops.blend_masks\n" in text


def test_blocks_are_commands_and_python():
    text = """
```bash
first --option \\
    value  # why

# a comment
second | third
```
* In a list:
  ```python
  if x:
      y()
  ```
```text
no code
```
"""
    assert run_blocks.blocks(text) == [
        ("bash", "first --option value"),
        ("bash", "second | third"),
        ("python", "if x:\n    y()\n"),
    ]
    with pytest.raises(ValueError, match="a code block has the language ''"):
        run_blocks.blocks("```\nwhat\n```\n")


def test_short_forms():
    rules = [{"find": "^a ", "replace": ["x", "y z"], "append": "K (1,)"}, {"find": "a", "skip": "why"}]
    used = set()
    assert run_blocks.short_form(run_blocks.Step("bash", "a x"), rules, used) == ("a y z K '(1,)'", "")
    assert used == {"^a "}
    assert run_blocks.short_form(run_blocks.Step("bash", "b a"), rules, used) == ("b a", "why")
    assert run_blocks.short_form(run_blocks.Step("bash", "c"), rules, used) == ("c", "")
    with pytest.raises(ValueError, match="'x' is not in 'a b'"):
        run_blocks.short_form(run_blocks.Step("bash", "a b"), rules, used)


def test_every_entry_of_the_table_fits_a_block(monkeypatch):
    documents = run_blocks.plan()
    assert {"README.md", "projects/docs/pages/own_data.md", "projects/docs"} <= set(documents)
    monkeypatch.setattr(run_blocks.yaml, "safe_load", lambda text: [{"find": "no such command", "skip": ""}])
    with pytest.raises(ValueError, match="nothing fits no such command"):
        run_blocks.plan()


def test_failures_are_counted_and_shown(tmp_path, capsys):
    steps = [
        (run_blocks.Step("bash", "exit 3"), "echo reason; exit 3", ""),
        (run_blocks.Step("bash", "true"), "true", ""),
        (run_blocks.Step("bash", "false"), "false", "not here"),
        (run_blocks.Step("python", "1 / 0"), "1 / 0", ""),
    ]
    assert run_blocks.run_document("page.md", steps, tmp_path) == 2
    out = capsys.readouterr().out
    assert "page.md: exit 3\nas: echo reason; exit 3\nexit status 3\nreason" in out
    assert "left out  page.md: false\n          not here" in out
    assert "ZeroDivisionError" in out
    assert sys.executable not in out
