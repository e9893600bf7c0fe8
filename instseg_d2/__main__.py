"""``python -m instseg_d2``: the program ``instseg``, also for ``torchrun -m``."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
