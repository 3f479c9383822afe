"""Runs another module as a program that ends when the one who started it ends, however it ends.

python -m wildflower.simulation.local.tethered MODULE [ARGUMENT ...]
"""

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


def tether(parent: int) -> None:
    """Ask the kernel for SIGTERM when our parent ends.

    Args:
        parent: Who the parent should be: it may have ended before we could ask.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    tether(int(os.environ.pop("WILDFLOWER_TETHER")))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
