"""Writing files so that a power cut leaves the old one or the new one, never a torn one."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file atomically; when this returns, it survives a power cut.

    The bytes go into a file beside it, are synced, take the name by rename, and the directory is
    synced. Missing directories are made. One writer at a time per path.

    Raises:
        OSError: The disk is full or the directory cannot be written.
    """
    make_directory(path.parent)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)  # its mode may be another's
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, whose names survive a power cut.

    Raises:
        OSError: The disk is full or a directory cannot be written.
    """
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
