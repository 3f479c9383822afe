"""Imports httpx without its command line, which an agent has no use for.

httpx imports click, pygments and rich for `python -m httpx` wherever they are installed, as they
are beside our own commands: 100 modules and 6 MB in every idle agent. It goes without where click
is missing, so click is missing for as long as httpx is being imported. To be imported before
anything else that imports httpx; where httpx or click is loaded already, nothing is done.
"""

import importlib
import sys
from typing import Final

HIDDEN: Final = "click"


def import_lean(package: str, hidden: str) -> None:
    """Import a package while another one seems not to be installed.

    Args:
        package: What to import.
        hidden: What it shall not find, unless it is loaded already.
    """
    if package in sys.modules or hidden in sys.modules:
        return
    absent: dict[str, None] = {hidden: None}
    sys.modules.update(absent)  # type: ignore[arg-type]  # how the import system marks absence
    try:
        importlib.import_module(package)
    finally:
        del sys.modules[hidden]


import_lean("httpx", HIDDEN)
