"""Files in one file that a person carries: a plain tar, which `tar tf` lists, read strictly.

    write_parcel(path, {"blobs/3f9a...": b"..."})      Parcel.open(path).read("blobs/3f9a...", 10)

What is in it proves itself (TUF metadata, digests, signatures) or is nothing; the reader only sees
to it that a hostile stick costs a bounded sum. Of tar's many extensions it knows none: regular
files with plain names, each once, nothing compressed, nothing behind the end. Names are never
made into paths, content is read where it lies and written nowhere.

Not here: what the names mean. That is `server.sneakernet` and `client.sneakernet`.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from wildflower.ota.errors import FormatError
from wildflower.ota.release.files import sync_directory
from wildflower.ota.release.manifest import MAX_FILE

BLOCK: Final = tarfile.BLOCKSIZE
PIECE: Final = 1 << 16  # bytes read at a time
MAX_ENTRIES: Final = 20_000
"""Ten thousand summaries and reports, and room; each entry costs the reader some 200 bytes."""
SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,180}"
NAME: Final = re.compile(rf"{SEGMENT}(?:/{SEGMENT}){{0,5}}")
MAX_NAME: Final = 240  # characters; ustar holds 100 behind a slash and 155 before it

Content = bytes | Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry's content lies in the file: its first byte and its length, both in bytes."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """A parcel on disk, its table of contents in memory.

    Attributes:
        path: The file.
        places: Where each entry lies, by name.
    """

    path: Path
    places: Mapping[str, Place]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the table of contents of a parcel from outside.

        Raises:
            FormatError: No parcel, cut short, or against one of the limits.
            OSError: The file cannot be read.
        """
        with path.open("rb") as file:
            return cls(path, _contents(file, os.fstat(file.fileno()).st_size))

    def pieces(self, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield an entry's content from a byte of it on.

        Raises:
            FormatError: There is no such entry, or the file has shrunk since it was opened.
            OSError: The file cannot be read.
        """
        place = self._place(name)
        left = max(0, place.length - start)
        with self.path.open("rb") as file:
            file.seek(place.start + start)
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise FormatError(f"parcel: {name} ends early")
                left -= len(piece)
                yield piece

    def read(self, name: str, limit: int) -> bytes:
        """Return an entry's content.

        Args:
            name: Which entry.
            limit: How many bytes it may have.

        Raises:
            FormatError: There is no such entry, or it is longer.
            OSError: The file cannot be read.
        """
        if (found := self._place(name).length) > limit:
            raise FormatError(f"parcel: {name} has {found} bytes, at most {limit} are read")
        return b"".join(self.pieces(name))

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise FormatError(f"parcel: there is no {name[:100]!r} in it")
        return self.places[name]


def write_parcel(path: Path, contents: Mapping[str, Content]) -> int:
    """Write a parcel atomically and durably, the same bytes for the same contents.

    Args:
        path: Where; what lies there is replaced.
        contents: Bytes, or the file that holds them, by name.

    Returns:
        Its size in bytes.

    Raises:
        FormatError: A name or a size that no reader would take.
        OSError: A file cannot be read, or the disk is full or read-only.
    """
    if len(contents) > MAX_ENTRIES:
        raise FormatError(f"a parcel has at most {MAX_ENTRIES} entries, found {len(contents)}")
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            for name, content in contents.items():
                _write_entry(file, name, content)
            file.write(bytes(2 * BLOCK))
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return size


def _write_entry(file: BinaryIO, name: str, content: Content) -> None:
    length = len(content) if isinstance(content, bytes) else content.stat().st_size
    _check(name, length)
    header = tarfile.TarInfo(name)
    header.size = length
    try:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
    except ValueError as error:  # no slash where ustar needs one
        raise FormatError(f"parcel: {name!r} does not fit into a header") from error
    written = 0
    for piece in [content] if isinstance(content, bytes) else _file_pieces(content):
        written += file.write(piece)
    if written != length:
        raise FormatError(f"parcel: {name} changed while it was read")
    file.write(bytes(-length % BLOCK))


def _file_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _contents(file: BinaryIO, size: int) -> dict[str, Place]:
    places: dict[str, Place] = {}
    at = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise FormatError("parcel: cut short" if at else "not a parcel: too short")
        if not any(block):
            _check_end(file)
            return places
        name, length = _header(block)
        if name in places or len(places) == MAX_ENTRIES:
            raise FormatError(f"parcel: {name} twice, or more than {MAX_ENTRIES} entries")
        places[name] = Place(at + BLOCK, length)
        at += BLOCK + length + -length % BLOCK
        if at > size:
            raise FormatError(f"parcel: cut short in {name}")


def _check_end(file: BinaryIO) -> None:
    """Require one more empty block and nothing behind it; tar's own padding is 20 blocks long."""
    rest = file.read(20 * BLOCK + 1)
    if len(rest) < BLOCK or len(rest) > 20 * BLOCK or any(rest):
        raise FormatError("parcel: cut short at its end, or something lies behind it")


def _header(block: bytes) -> tuple[str, int]:
    try:
        header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise FormatError(f"not a parcel, or damaged: {error}") from error
    if header.type != tarfile.REGTYPE or header.linkname:
        raise FormatError(f"parcel: {header.name[:100]!r} is no regular file")
    _check(header.name, header.size)
    return header.name, header.size


def _check(name: str, length: int) -> None:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise FormatError(f"parcel: {name[:100]!r} is no plain name")
    if not 0 <= length <= MAX_FILE:
        raise FormatError(f"parcel: {name} of {length} bytes, at most {MAX_FILE}")
