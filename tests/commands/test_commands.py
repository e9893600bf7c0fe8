"""The program ``instseg``: its help, its errors, and the scripts of projects/ that call the same commands."""

import importlib
import os
import pkgutil
import runpy
import signal
import subprocess
import sys

import pytest

import instseg_d2
from instseg_d2 import commands
from instseg_d2.commands import COMMANDS, parse, run
from instseg_d2.errors import DatasetError
from tests.scripts import ROOT

SCRIPTS = {"train_net": "train", "demo": "predict", "export": "export", "compare": "compare"}
MISMATCH = "error: the installed packages do not fit together ({}): `instseg doctor` shows their versions.\n"
HELP = """
import contextlib, io, runpy, sys

def shown(main):
    for name in [name for name in sys.modules if name.startswith("instseg_d2")]:
        del sys.modules[name]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            assert end.code == 0, end.code
    loaded = {"torch", "detectron2", "cv2", "numpy"} & set(sys.modules)
    assert not loaded, (sys.argv, loaded)
    return out.getvalue()

def instseg():
    from instseg_d2.commands import main
    main()

sys.argv = ["bin/instseg", "--help"]
text = shown(instseg)
from instseg_d2.commands import COMMANDS
for name, line in COMMANDS.items():
    assert f"  {name:<8}  {line}\\n" in text, text
    sys.argv[1:] = [name, "--help"]
    assert shown(instseg).startswith(f"usage: instseg {name} ")
for script in sys.stdin.read().split():
    sys.argv = [script, "--help"]
    text = shown(lambda: runpy.run_path(script, run_name="__main__"))
    assert text.startswith(f"usage: {script.split('/')[-1]} "), text
"""


def test_help_comes_before_pytorch(tmp_path):
    """For every command and script; sys.modules tells."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/instseg").touch()
    scripts = "\n".join(str(ROOT / f"projects/{name}.py") for name in SCRIPTS)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, cwd=tmp_path, env=env, input=scripts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("program", "later"), [("instseg", True), ("instseg.py", False), ("folder/instseg", False)])
def test_only_the_program_registers_later(tmp_path, monkeypatch, program, later):
    """A user's script or folder of that name finds everything registered."""
    path = tmp_path / program
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if path.parent.name == "folder" else path.touch()
    monkeypatch.setattr(sys, "argv", [str(path)])
    assert instseg_d2._registers_later() is later


def test_every_command_is_listed_and_complete():
    assert set(COMMANDS) == {module.name for module in pkgutil.iter_modules(commands.__path__)}
    for name in COMMANDS:
        module = importlib.import_module(f"instseg_d2.commands.{name}")
        assert module.__doc__.strip().endswith(".")
        assert all(hasattr(module, part) for part in ("EPILOG", "add_arguments", "main"))


def test_scripts_call_their_commands(monkeypatch):
    called = []
    monkeypatch.setattr(commands, "run", lambda *args: called.append(args) or 7)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    for script, name in SCRIPTS.items():
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / f"projects/{script}.py"), run_name="__main__")
        assert end.value.code == 7
        assert called.pop() == (name,)


def test_explain_is_predict_with_pictures():
    words = ["--weights", "a.pth", "--input", "b.jpg", "--output", "c", "MODEL.DEVICE", "cpu"]
    plain, explained = vars(parse("predict", words)), vars(parse("explain", words))
    assert (plain.pop("explain"), explained.pop("explain")) == (False, True)
    assert plain == explained


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            ModuleNotFoundError("instseg_d2 needs Detectron2: get it.", name="detectron2"),
            "error: instseg_d2 needs Detectron2: get it.\n",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "error: No module named 'torch': `instseg doctor` shows what is missing.\n",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            MISMATCH.format("operator torchvision::nms does not exist"),
        ),
        (OSError("libcudart.so: undefined symbol: x"), MISMATCH.format("libcudart.so: undefined symbol: x")),
        (AttributeError("module has no\nattribute"), MISMATCH.format("module has no attribute")),
        (DatasetError("train.json is broken."), "error: train.json is broken.\n"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_sentence(monkeypatch, capsys, missing, message):
    def register():
        raise missing

    monkeypatch.setattr(commands, "register", register)
    assert run("zoo", []) == 2
    assert capsys.readouterr().err == message


def test_wrong_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["instseg", "trian", "--config", "x"])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "a.json"], "--json needs --images as well"),
        (["--images", "a"], "--images needs --json as well"),
        (["--json", "a.json", "--images", "a", "--data", "b"], "give one of them"),
    ],
)
def test_evaluate_needs_one_data_set(capsys, words, message):
    assert run("evaluate", ["--weights", "absent.pth", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_zoo_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("zoo", ["--copy", "FCOS/R_50_1x"]) == 0
    assert capsys.readouterr().out == "wrote R_50_1x.yaml\n"
    assert run("zoo", ["--copy", "FCOS/R_50_1x", "--to", "mine/fcos.yaml"]) == 0
    assert (tmp_path / "mine/fcos.yaml").read_text() == (tmp_path / "R_50_1x.yaml").read_text()
    capsys.readouterr()
    for words, message in (
        (["--copy", "FCOS/R_50_1x"], "R_50_1x.yaml exists"),
        (["--copy", "FCOS/R_50_2x"], "there is no recipe FCOS/R_50_2x. Did you mean FCOS/R_50_1x"),
        (["--to", "x.yaml"], "--copy RECIPE"),
    ):
        assert run("zoo", words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
