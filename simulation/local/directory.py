"""The directory of a local fleet: a marker says that it is ours, a lock that it is in use.

DIR/.wildflower      the marker; without it nothing in DIR is ever removed
DIR/.lock            held by the command that works in DIR
DIR/server/          a server's directory
DIR/devices/NAME/    a device's directory each
DIR/data/            examples, split over the devices
DIR/logs/            what each process printed
DIR/processes.json   which processes run
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wildflower.simulation.errors import DirectoryError

MARKER: Final = ".wildflower"
MARK: Final = {"kind": "local", "format": 1}


def is_ours(directory: Path) -> bool:
    """Whether a directory carries the marker of a local fleet."""
    try:
        mark = json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return bool(mark == MARK)


def check(directory: Path) -> None:
    """Check that the directory may be used: it is empty, missing, or one of ours.

    Raises:
        DirectoryError: It holds something and does not carry our marker.
    """
    if _content(directory) and not is_ours(directory):
        raise DirectoryError(
            f"{directory} is not empty and is no local fleet",
            hint="Choose another --dir; only a directory with our marker is ever emptied.",
        )


def prepare(directory: Path) -> None:
    """Make the directory, or empty it if it is one of ours; the lock file stays.

    Raises:
        DirectoryError: It holds something and does not carry our marker.
    """
    check(directory)
    for path in _content(directory):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).write_text(json.dumps(MARK))
    for name in ("devices", "data", "logs"):
        (directory / name).mkdir()


def _content(directory: Path) -> list[Path]:
    found = directory.iterdir() if directory.is_dir() else ()
    return [path for path in found if path.name != ".lock"]


def remove(directory: Path) -> None:
    """Remove a local fleet's directory.

    Raises:
        DirectoryError: It is none.
    """
    require(directory)
    shutil.rmtree(directory)


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold the directory for one command.

    Raises:
        DirectoryError: Another command holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DirectoryError(
                f"another command is at work in {directory}",
                hint="Wait for it to end, or choose another --dir.",
            ) from error
        yield


def require(directory: Path) -> None:
    """Check that a local fleet lies here.

    Raises:
        DirectoryError: It does not.
    """
    if not is_ours(directory):
        raise DirectoryError(
            f"there is no local fleet in {directory}", hint="Start one: wildflower local up"
        )
