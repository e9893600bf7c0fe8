"""The doctor in a sound and in a bare environment."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

from instseg_d2 import doctor

ROOT = Path(__file__).parents[1]


def test_here_nothing_needed_is_missing(capsys):
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "Python", "torch", "torchvision", "Detectron2", "fvcore", "pycocotools", "OpenCV", "NumPy", "CUDA",
        "Extension", "INSTSEG_DATASETS",
    ]  # fmt: skip
    assert all(line.endswith("OK") for line in lines if line.split()[0] not in ("Extension", "INSTSEG_DATASETS"))


def test_detectron2_is_located():
    import detectron2

    assert os.path.dirname(detectron2.__file__) in doctor._detectron2().found


def test_missing_and_broken_packages(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise OSError('libfoo.so: cannot open\\nshared object file')")
    (tmp_path / "needy_package.py").write_text("import package_that_is_absent")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [doctor._package("X", name) for name in ("absent_package", "needy_package", "broken_package")]
    assert [row.found for row in rows] == [
        "not installed",
        "needs package_that_is_absent",
        "broken: OSError: libfoo.so: cannot open shared object file",
    ]
    assert all(row.failed for row in rows)


@pytest.mark.parametrize(("version", "advice"), [("2.3.1", "install torch 2.4 or newer"), ("2.10.0+cu130", "")])
def test_old_torch(monkeypatch, version, advice):
    monkeypatch.setattr("torch.__version__", version)
    assert doctor._torch().advice == advice


def test_data_sets(monkeypatch, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "train.json").touch()
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("INSTSEG_DATASETS", str(tmp_path))
    assert doctor._datasets().found == f"{tmp_path}: cells"
    monkeypatch.setenv("INSTSEG_DATASETS", str(tmp_path / "none"))
    assert doctor._datasets().advice
    assert not doctor._datasets().failed


def test_without_any_package(tmp_path):
    """A bare Python: the doctor still runs, the package says in one sentence what it needs."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}

    def run(*arguments):
        return subprocess.run([python, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run("-m", "instseg_d2.doctor")
    assert (done.returncode, done.stderr) == (1, "")
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "Detectron2 not installed run `python projects/get_detectron2.py`" in rows
    done = run("-c", "import instseg_d2")
    assert done.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: instseg_d2 needs Detectron2, which is not installed: run `python projects/get_detectron2"
    )
