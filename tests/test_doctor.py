"""The doctor in a complete and in a bare environment."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from instseg_d2 import doctor

ROOT = Path(__file__).parents[1]


def test_here_nothing_needed_is_missing(capsys):
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "Python", "torch", "torchvision", "Detectron2", "fvcore", "pycocotools", "OpenCV", "NumPy", "SciPy",
        "Jinja2", "tqdm", "safetensors", "instseg_d2", "CUDA", "Extension", "INSTSEG_DATASETS",
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


def test_advice_in_a_checkout_and_beside_the_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert doctor._opencv().advice.startswith("run `make setup`")
    monkeypatch.setattr(doctor, "_REQUIREMENTS", "absent.txt")
    assert doctor._opencv().advice == "pip install opencv-python"


@pytest.mark.parametrize("library", ["libGL.so.1", "libgthread-2.0.so.0"])
def test_opencv_without_a_system_library(monkeypatch, tmp_path, library):
    message = f"{library}: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({message!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    row = doctor._opencv()
    assert library in row.found
    assert "libgl1 and libglib2.0-0, or opencv-python-headless" in row.advice


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


def test_a_package_that_cannot_be_imported(tmp_path):
    """Everything is installed, but pycocotools is broken: the doctor reports it, and that this package is unusable."""
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools" / "__init__.py").write_text("raise ImportError('libgomp.so: cannot open')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "instseg_d2.doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    failed = [line.split("  ")[0] for line in done.stdout.splitlines() if "libgomp.so: cannot open" in line]
    assert failed == ["pycocotools", "instseg_d2"]


def test_without_any_package(tmp_path):
    """A bare Python: the doctor still runs, and importing the package says in one sentence what it needs."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}

    def run(*arguments):
        return subprocess.run([python, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run("-m", "instseg_d2.doctor")
    assert (done.returncode, done.stderr) == (1, "")
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "Detectron2 not installed run `python -m instseg_d2.get_detectron2`" in rows
    assert "instseg_d2 needs detectron2 fix what it names, see the rows above" in rows
    done = run("-c", "import instseg_d2")
    assert done.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: instseg_d2 needs Detectron2, which is not installed: run `python -m instseg_d2.get_"
    )
    done = run("-m", "instseg_d2.get_detectron2")  # it starts, and here lacks pip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip download failed, see above; Detectron2 was not installed.")
    done = run("-m", "instseg_d2", "train")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: instseg_d2 needs Detectron2" in done.stderr
