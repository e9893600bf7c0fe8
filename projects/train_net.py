#!/usr/bin/env python3
"""Train or evaluate a method: the same as ``instseg train``."""

import signal
import sys

INSTSEG_COMMAND = True  # the package imports PyTorch when it has read the arguments

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until run_script handles it: no traceback during imports
    from instseg_d2.commands import run

    sys.exit(run("train"))
