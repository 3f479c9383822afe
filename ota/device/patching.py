"""Makes a release's file out of the one in the running slot and a delta, on disk.

Atomic and idempotent: after a power cut the target is there and right, or not there at all, and
doing it again ends the same. Both inputs are mapped and not read, so a model larger than memory can
be patched. What fails leaves nothing behind; whether the whole file is fetched then is the caller's
policy (`ota.delta.plan.may_fall_back`).
"""

import contextlib
import mmap
import os
from pathlib import Path

from wildflower.ota.delta.decode import decode
from wildflower.ota.device.slots import check_file, storage_error
from wildflower.ota.errors import DeltaError, RefusedError
from wildflower.ota.release.files import sync_directory
from wildflower.ota.release.manifest import FileEntry


def patch(base: Path, delta: Path, target: Path, entry: FileEntry) -> None:
    """Write a release's file; when this returns, it survives a power cut.

    Args:
        base: The file of the committed slot; never written to.
        delta: The fetched delta, in which nothing is trusted.
        target: Where the new file belongs; a right one is left as it is.
        entry: What the new file must be, as signed.

    Raises:
        DeltaError: The delta is damaged, hostile, or for other files.
        StorageError: The disk is full, read-only or broken.
    """
    if _is_right(target, entry):
        return
    part = target.with_name(f".{target.name}.patched")
    try:
        with part.open("wb") as file:
            old, change = _mapped(base), _mapped(delta)
            decode(old, change, file.write, target=entry.digest, size=entry.length)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        raise storage_error(error, target.parent) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _is_right(target: Path, entry: FileEntry) -> bool:
    if not target.exists():
        return False
    try:
        check_file(target, entry)
    except RefusedError:
        return False  # left by another release of this name, or damaged: made anew
    return True


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes without reading them; they are unmapped when nobody looks any more."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError) as error:  # mmap has no empty maps
        raise DeltaError(f"{path.name}: there is no such file, or nothing in it") from error
