"""A device that looks once for releases and dies, as in a power cut, of a file that grows too long.

python tests/delta_child.py DIRECTORY BYTES
"""

import resource
import signal
import sys
from pathlib import Path

from tests.update_fakes import Kit

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would make an error of it
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    Kit(Path(sys.argv[1])).look()
