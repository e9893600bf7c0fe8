"""Install Detectron2 0.6 unless one can be imported. Needs only the standard library and pip.

Detectron2 is on no package index under its own name. The PyPI package LabGym 3.1.2 contains its Python source
(Apache-2.0, git master of 2023) as ``LabGym/detectron2``, unmodified except for renamed absolute imports. This script
extracts that folder, restores the import name and installs it as the wheel ``detectron2 0.6+pypi`` with Detectron2's
own requirements. If you prefer another Detectron2 (its master, or one with the compiled operators), install it first:
this script then changes nothing.
"""

import base64
import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = "LabGym==3.1.2"
SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
PREFIX = "LabGym/detectron2/"
NAME, VERSION = "detectron2", "0.6+pypi"
REQUIREMENTS = (
    "setuptools<81",  # the model zoo imports pkg_resources, which later releases dropped
    "numpy", "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
    "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<=0.1.10",
    "omegaconf>=2.1,<2.4", "hydra-core>=1.1", "black", "packaging",
)  # fmt: skip
METADATA = f"""Metadata-Version: 2.1
Name: {NAME}
Version: {VERSION}
Summary: Detectron2's Python source as carried by {SOURCE} on PyPI, import name restored
License: Apache-2.0
Home-page: https://github.com/facebookresearch/detectron2
""" + "".join(f"Requires-Dist: {r}\n" for r in REQUIREMENTS)
NOTICE = f"""Detectron2, Copyright (c) Facebook, Inc. and its affiliates, Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0). Source: the folder {PREFIX} of the PyPI wheel {SOURCE}
(SHA-256 {SHA256}). The only change: the import name LabGym.detectron2 is detectron2 again.
"""


def pip(*args):
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *args], check=False)
    if done.returncode:
        raise SystemExit(f"{sys.executable} -m pip {args[0]} failed, see above; Detectron2 was not installed.")


def download(folder: Path) -> bytes:
    """Download the source wheel and check its SHA-256; returns its bytes."""
    pip("download", "-q", "--no-deps", "--ignore-requires-python", "--only-binary=:all:", "-d", str(folder), SOURCE)
    (wheel,) = folder.glob("*.whl")
    data = wheel.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{wheel.name}: SHA-256 is {digest}, expected {SHA256}; nothing was installed.")
    return data


def repack(data: bytes, target: Path) -> None:
    """Write a wheel of Detectron2 to ``target``, from the bytes of the source wheel."""
    info = f"{NAME}-{VERSION}.dist-info"
    files = {}
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        for entry in source.namelist():
            if entry.startswith(PREFIX) and not entry.endswith("/"):
                content = source.read(entry)
                if entry.endswith(".py"):
                    content = re.sub(rb"\bLabGym\.detectron2\b", b"detectron2", content)
                files[f"{NAME}/{entry[len(PREFIX) :]}"] = content
    if f"{NAME}/__init__.py" not in files:
        raise SystemExit(f"{SOURCE} has no {PREFIX}__init__.py; nothing was installed.")
    files[f"{info}/METADATA"] = METADATA.encode()
    files[f"{info}/NOTICE"] = NOTICE.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: get_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def main():
    spec = importlib.util.find_spec(NAME)
    if spec is not None and spec.origin is not None:
        print(f"Detectron2 is already installed: {Path(spec.origin).parent}")
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{NAME}-{VERSION}-py3-none-any.whl"
        repack(download(Path(folder)), target)
        pip("install", "-q", str(target))
    print(f"Installed Detectron2 {VERSION} (Python source, no compiled operators).")


if __name__ == "__main__":
    main()
