"""setup.py: what it builds, and what it says where it builds nothing. Uses a copy of the sources it needs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "instseg_d2" / "__init__.py").read_text()).group(1)
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or sysconfig.get_config_var("INCLUDEPY") is None, reason="no C++ compiler"
)


@pytest.fixture
def sources(tmp_path):
    """The package with one subpackage, one recipe and, of csrc, the module alone: it compiles in a moment."""
    for name in (
        "setup.py",
        "pyproject.toml",
        "instseg_d2/__init__.py",
        "instseg_d2/ops/__init__.py",
        "configs/FCOS/R_50_1x.yaml",
        "csrc/library.cpp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup_py(sources, *command, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("INSTSEG_NO_EXT", "FORCE_CUDA", "CXX")}
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=sources,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def notices(done):
    return [line for line in done.stderr.splitlines() if line.startswith("instseg_d2: ")]


def test_metadata_needs_no_torch(sources):
    (sources / "without" / "torch").mkdir(parents=True)
    (sources / "without" / "torch" / "__init__.py").write_text('raise ImportError("no torch here")')
    done = setup_py(sources, "--name", "--version", PYTHONPATH=str(sources / "without"))
    assert done.returncode == 0
    assert done.stdout.split() == ["instseg_d2", VERSION]
    assert len(notices(done)) == 1
    assert "PyTorch is not installed" in notices(done)[0]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"INSTSEG_NO_EXT": "1"}, "INSTSEG_NO_EXT is set"), ({"PATH": "/nonexistent"}, "no C\\+\\+ compiler on the PATH")],
)
def test_pure_python_with_one_notice(sources, environment, reason):
    done = setup_py(sources, "bdist_wheel", **environment)
    assert done.returncode == 0, done.stderr
    assert len(notices(done)) == 1
    assert re.search(reason, notices(done)[0])
    assert [wheel.name for wheel in (sources / "dist").iterdir()] == [f"instseg_d2-{VERSION}-py3-none-any.whl"]


@needs_compiler
def test_compile_error_fails_the_build(sources):
    (sources / "csrc" / "library.cpp").write_text("#error not today\n")
    done = setup_py(sources, "build_ext", "--inplace")
    assert done.returncode != 0
    assert "not today" in done.stdout + done.stderr


@needs_compiler
def test_one_library_for_every_python(sources):
    done = setup_py(sources, "bdist_wheel")
    assert done.returncode == 0, done.stderr
    assert not notices(done)
    (wheel,) = (sources / "dist").iterdir()
    assert re.fullmatch(rf"instseg_d2-{VERSION}-cp39-abi3-.+\.whl", wheel.name)
    shutil.unpack_archive(wheel, sources / "unpacked", format="zip")
    assert (sources / "unpacked/instseg_d2/configs/FCOS/R_50_1x.yaml").exists()
    (library,) = (sources / "unpacked" / "instseg_d2").glob("_C*")
    assert library.name in ("_C.abi3.so", "_C.pyd")
    code = (
        "import importlib.util as u, torch, sys; spec = u.spec_from_file_location('_C', sys.argv[1]); "
        "module = u.module_from_spec(spec); spec.loader.exec_module(module); print(module.built_for)"
    )
    done = subprocess.run([sys.executable, "-c", code, library], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() in (["cpu"], ["cuda"])


def test_requirements_leave_torch_and_detectron2_to_the_user(sources):
    assert setup_py(sources, "egg_info", INSTSEG_NO_EXT="1").returncode == 0
    required, *extras = (sources / "instseg_d2.egg-info" / "requires.txt").read_text().split("\n[")
    assert sorted(required.split()) == [
        "fvcore",
        "jinja2",
        "numpy",
        "opencv-python",
        "pycocotools",
        "safetensors",
        "scipy",
        "tqdm",
    ]
    names = sorted(extra.split("]")[0] for extra in extras)
    assert names == ["eval", "export", "istr", "openvino", "pretrained", "ray", "timm", "track", "ui"]
    assert (sources / "instseg_d2.egg-info" / "top_level.txt").read_text().split() == ["instseg_d2"]
