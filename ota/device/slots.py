"""Slots: each release in a directory of its own, and two pointers that are flipped by rename.

    slots/<release digest>/   manifest.json and the files it names; never changed once complete
    slots/current             -> the release that runs
    slots/previous            -> the one before
    slots/factory             -> optional: what the device was delivered with; never removed

A slot is built in a directory that nobody looks at, made durable, and renamed into place; a
pointer is a relative symlink that is replaced by rename. Both are therefore old or new, never half.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from wildflower.ota import canonical
from wildflower.ota.device.decision import MANIFEST
from wildflower.ota.errors import FormatError, RefusedError, StorageError
from wildflower.ota.release.files import make_directory
from wildflower.ota.release.manifest import FileEntry, Release

CURRENT: Final = "current"
PREVIOUS: Final = "previous"
FACTORY: Final = "factory"
MARGIN: Final = 4_000_000  # bytes left free beyond what a release needs: the journal must go on
READ: Final = 1 << 20


class Slots:
    """The slots of one device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_directory(root)

    def path(self, release: str) -> Path:
        """Return where a release's slot is, or would be."""
        return self.root / release

    def running(self) -> str:
        """Return the digest of the release that `current` points to; "" for none."""
        return self._target(CURRENT)

    def before(self) -> str:
        """Return the digest of the release to go back to; "" for none.

        The one before, or what the device was delivered with if that is not what runs.
        """
        running = self.running()
        known = (self._target(PREVIOUS), self._target(FACTORY))
        able = (name for name in known if name not in ("", running) and self.path(name).is_dir())
        return next(able, "")

    def releases(self) -> list[Release]:
        """Return the manifests of all slots that can be read, sorted by order."""
        found = [self.manifest(path.name) for path in self.root.iterdir() if len(path.name) == 64]
        return sorted((one for one in found if one is not None), key=lambda one: one.order)

    def manifest(self, release: str) -> Release | None:
        """Return the manifest of a complete slot; None if there is none that can be read."""
        try:
            data = (self.path(release) / MANIFEST).read_bytes()
            return Release.from_bytes(data) if canonical.digest(data) == release else None
        except (OSError, FormatError):
            return None

    def require_space(self, needed: int) -> None:
        """Check that so many bytes fit on the disk, and a margin that the journal needs.

        Raises:
            StorageError: They do not; says how much is free and how much is needed.
        """
        free = shutil.disk_usage(self.root).free
        if free < needed + MARGIN:
            raise StorageError(
                f"{free} bytes are free in {self.root}, installing needs {needed + MARGIN}",
                hint="Free some space; the device tries again by itself.",
            )

    def stage(self, release: Release, files: Mapping[str, Path]) -> None:
        """Put a release's files into its slot; repeating it changes nothing.

        Args:
            release: The manifest.
            files: Where each file lies now, by its name in the manifest.

        Raises:
            RefusedError: A file is not what the manifest says.
            StorageError: The disk is full, read-only or broken.
        """
        target = self.path(release.digest)
        if self.is_complete(release):
            return
        partial = self.root / f".{release.digest}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for entry in release.files:
                check_file(files[entry.name], entry)
                shutil.copyfile(files[entry.name], partial / entry.name)
            (partial / MANIFEST).write_bytes(release.to_bytes())
            for path in partial.iterdir():
                path.chmod(0o444)
                _sync(path)
            _sync(partial)
            shutil.rmtree(target, ignore_errors=True)  # an incomplete one: is_complete said so
            partial.rename(target)
            _sync(self.root)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise storage_error(error, self.root) from error

    def is_complete(self, release: Release) -> bool:
        """Whether the slot holds every file of the release, byte for byte."""
        if self.manifest(release.digest) != release:
            return False
        return all(self.holds(release, entry) for entry in release.files)

    def holds(self, release: Release, entry: FileEntry) -> bool:
        """Whether the slot holds one file of the release, byte for byte."""
        try:
            check_file(self.path(release.digest) / entry.name, entry)
        except (RefusedError, OSError):
            return False
        return True

    def mend(self, release: Release, entry: FileEntry, fresh: Path) -> None:
        """Put a file in the place of a damaged one, by rename; repeating it changes nothing.

        Raises:
            RefusedError: `fresh` is not what the manifest says.
            StorageError: The disk is full, read-only or broken.
        """
        check_file(fresh, entry)
        target = self.path(release.digest) / entry.name
        beside = target.with_name(f".{entry.name}.new")
        try:
            shutil.copyfile(fresh, beside)
            beside.chmod(0o444)
            _sync(beside)
            beside.replace(target)
            _sync(target.parent)
        except OSError as error:
            raise storage_error(error, target.parent) from error

    def switch(self, release: str) -> None:
        """Make a complete slot the one that runs; repeating it changes nothing.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        running = self.running()
        if running == release:
            return
        try:
            if running:
                self._point(PREVIOUS, running)
            self._point(CURRENT, release)
        except OSError as error:
            raise storage_error(error, self.root) from error

    def go_back(self, release: str) -> str:
        """Make sure that `release` does not run; return what runs now.

        Repeating it changes nothing. Where there is nothing to go back to, what runs goes on: a
        device that is ordered back is never switched off.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        before = self.before()
        if self.running() == release and before:
            try:
                self._point(CURRENT, before)
            except OSError as error:
                raise storage_error(error, self.root) from error
        return self.running()

    def discard(self, release: str) -> None:
        """Remove a slot that no pointer names; repeating it changes nothing."""
        if release not in self._kept():
            shutil.rmtree(self.path(release), ignore_errors=True)

    def collect(self) -> list[str]:
        """Remove slots that no pointer names, and what an interrupted staging left."""
        kept = self._kept() | {CURRENT, PREVIOUS, FACTORY}
        removed = [path for path in self.root.iterdir() if path.name not in kept]
        for path in removed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # or a power cut brings them back
            _sync(self.root)
        return sorted(path.name for path in removed)

    def _kept(self) -> set[str]:
        return {self._target(pointer) for pointer in (CURRENT, PREVIOUS, FACTORY)}

    def _target(self, pointer: str) -> str:
        try:
            return (self.root / pointer).readlink().name
        except OSError:
            return ""

    def _point(self, pointer: str, release: str) -> None:
        fresh = self.root / f".{pointer}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(release)
        fresh.replace(self.root / pointer)
        _sync(self.root)


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with what is signed about it.

    Raises:
        RefusedError: Its length or digest differs, or it is missing.
    """
    found = hashlib.sha256()
    length = 0
    try:
        with path.open("rb") as file:
            while block := file.read(READ):
                found.update(block)
                length += len(block)
    except FileNotFoundError as error:
        raise RefusedError(f"{entry.name} is missing") from error
    if (length, found.hexdigest()) != (entry.length, entry.digest):
        raise RefusedError(
            f"{entry.name}: found {length} bytes of {found.hexdigest()[:12]}, "
            f"signed are {entry.length} of {entry.digest[:12]}"
        )


def storage_error(error: OSError, where: Path) -> StorageError:
    """Return the error that tells what a failed write means."""
    hint = {
        errno.ENOSPC: "The disk is full. Free some space; the device tries again by itself.",
        errno.EROFS: "The file system is read-only. What runs goes on running.",
        errno.EACCES: "The agent may not write there. Check the owner of its directory.",
    }.get(error.errno or 0, "")
    return StorageError(f"cannot write in {where}: {error.strerror or error}", hint=hint)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
