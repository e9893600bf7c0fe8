#!/usr/bin/env python3
"""Install Detectron2 where this package is not installed yet: the same as ``python -m instseg_d2.get_detectron2``."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "instseg_d2" / "get_detectron2.py"), run_name="__main__")
