"""Files named by their SHA-256, in a directory: `<first two hex digits>/<digest>`.

A blob is written beside its place, synced and renamed, so that what has its name is whole. Putting
the same bytes again changes nothing. Any static file server can serve the directory.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from wildflower.ota.release.files import sync_directory
from wildflower.server.errors import BlobError, NotFoundError

PIECE: Final = 1 << 20  # bytes read at a time
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A content-addressed directory. Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest."""
        return self._write([data])

    def put_file(self, source: Path) -> str:
        """Store a copy of a file durably; return its digest."""
        with source.open("rb") as file:
            return self._write(_pieces(file))

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return bool(DIGEST.fullmatch(digest)) and self._place(digest).is_file()

    def path(self, digest: str) -> Path:
        """Return where the blob lies, to be read only.

        Raises:
            NotFoundError: It is not here, or `digest` is none.
        """
        if not self.has(digest):
            raise NotFoundError(f"there is no blob {digest[:64]}")
        return self._place(digest)

    @contextlib.contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Open the blob for reading, without checking it.

        Raises:
            NotFoundError: It is not here.
        """
        with self.path(digest).open("rb") as file:
            yield file

    def read(self, digest: str) -> bytes:
        """Return the blob's bytes, checked.

        Raises:
            NotFoundError: It is not here.
            BlobError: Its bytes are no longer what the digest says.
        """
        data = self.path(digest).read_bytes()
        _require(digest, hashlib.sha256(data).hexdigest())
        return data

    def check(self, digest: str) -> None:
        """Check a blob of any size piece by piece.

        Raises:
            NotFoundError: It is not here.
            BlobError: Its bytes are no longer what the digest says.
        """
        found = hashlib.sha256()
        with self.open(digest) as file:
            for piece in _pieces(file):
                found.update(piece)
        _require(digest, found.hexdigest())

    def _place(self, digest: str) -> Path:
        return self._root / digest[:2] / digest

    def _write(self, pieces: Iterable[bytes]) -> str:
        self._root.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self._root)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in pieces:
                    found.update(piece)
                    file.write(piece)
                file.flush()
                os.fchmod(handle, 0o444)
                os.fsync(handle)
            place = self._place(found.hexdigest())
            place.parent.mkdir(exist_ok=True)
            Path(name).rename(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(place.parent)
        sync_directory(self._root)
        return found.hexdigest()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _require(expected: str, found: str) -> None:
    if found != expected:
        raise BlobError(
            f"blob {expected} is damaged: its bytes have the digest {found}",
            hint="Restore it from a backup, or build it again.",
        )
