"""How an application tells the agent that a slot is not what was signed: by an empty file.

An application checks every byte before it loads a model; the agent checks at times (`scrub_s`).
What the one has seen the other looks at in its next turn, reports and mends. The file says nothing
that could be believed or not: it only makes the agent look, now instead of later.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

FILE: Final = "doubted"


def raise_doubt(device: Path) -> None:
    """Make the agent look at what is installed; where nothing can be written it looks in time."""
    with suppress(OSError):
        (device / FILE).touch()


def take_doubt(device: Path) -> bool:
    """Whether somebody has raised a doubt since the last call; a file that stays would be for ever.

    What cannot be removed is therefore none.
    """
    try:
        (device / FILE).unlink()
    except OSError:
        return False
    return True
