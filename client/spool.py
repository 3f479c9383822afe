"""A log of payloads that wait for the server: append, read, acknowledge.

    spool/<first sequence>.seg   records: <crc u32><sequence u64><length u32> payload
    spool/stream                 16 random bytes, made at the first start
    spool/ack                    everything up to this sequence is at the server
    spool/dropped                payloads given up since `take_dropped` last asked

Any number of processes append (the user's inference code) while one reads and acknowledges (the
agent's uploader); a lock file orders what they write. A record is on disk before `append` returns.
Damage stays small: a torn tail costs the record that was being written, a flipped byte the rest of
its segment, and neither keeps the spool from opening. Sequences rise strictly and are never used
twice, so that (stream, sequence) is a key for the server; they may have gaps. The last segments
stay for a while after they were acknowledged: who watches a release on probation looks at them.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

from wildflower.ota.release.files import make_directory, sync_directory

RECORD: Final = struct.Struct("<IQI")  # CRC-32 of what follows it, sequence, length
SEGMENT: Final = 64 * 1024  # bytes; what one flipped byte can cost at most
MAX_PAYLOAD: Final = 64 * 1024  # bytes; the largest summary on the wire
KEPT: Final = 3
"""Segments that stay although all of them is acknowledged, the one that is being filled among them:
some days of hourly summaries."""
QUOTA: Final = 8 * 1024 * 1024  # bytes; about a year of hourly summaries


class Spool:
    """Payloads in the order of their sequence, within a quota.

    When the quota is reached, the oldest segment gives way and its payloads are counted as
    dropped: what a fleet does now is worth more than what it did long ago.
    """

    def __init__(self, directory: Path, *, quota: int = QUOTA) -> None:
        """Open a spool, or make one.

        Args:
            directory: Where it lies.
            quota: Bytes it may take, at least four segments.

        Raises:
            OSError: The directory cannot be written.
            ValueError: The quota is too small.
        """
        if quota < 4 * SEGMENT:
            raise ValueError(f"a quota is at least {4 * SEGMENT} bytes, found {quota}")
        self._directory = directory
        self._quota = quota
        make_directory(directory)
        with self._locked():
            if not (directory / "stream").is_file():
                self._write("stream", os.urandom(16))
        self.stream: Final = (directory / "stream").read_bytes()

    @property
    def dropped(self) -> int:
        """Payloads given up for the quota since `take_dropped` last asked."""
        return self._number("dropped")

    def append(self, payload: bytes) -> int:
        """Store a payload durably and return its sequence.

        Raises:
            ValueError: The payload is larger than `MAX_PAYLOAD`.
            OSError: The disk is full or read-only; the payload is not stored.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"a payload has at most {MAX_PAYLOAD} bytes, found {len(payload)}")
        with self._locked():
            sequence = self._next()
            record = _record(sequence, payload)
            self._make_room(len(record))
            segment = self._tail(sequence)
            is_new = not segment.exists()
            with segment.open("ab") as file:
                file.write(record)
                file.flush()
                os.fdatasync(file.fileno())
            if is_new:
                sync_directory(self._directory)
        return sequence

    def pending(self, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` payloads that are not acknowledged, the oldest first."""
        acked = self._number("ack")
        waiting = (
            record
            for segment, following in self._spans(acked + 2)  # the last one is always looked into
            if following > acked + 1
            for record in _records(segment)
            if record[0] > acked
        )
        return list(islice(waiting, limit))

    def recent(self, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` of the last payloads, acknowledged or not, the oldest first."""
        found: list[tuple[int, bytes]] = []
        for segment in reversed(self._segments()):
            found = [*_records(segment), *found]
            if len(found) >= limit:
                break
        return found[-limit:]

    def ack(self, through: int) -> None:
        """Take it that every payload up to and including this sequence is at the server.

        None of them is pending any more; a lower sequence changes nothing.
        """
        with self._locked():
            top = self._next() - 1
            through = min(through, top)
            if through <= self._number("ack"):
                return
            spans = self._spans(top + 1)
            last = max((n for segment, _ in spans[-1:] for n, _ in _records(segment)), default=0)
            if through >= last:
                through = top  # nothing readable is left; what damage hides is given up
            self._write("ack", str(through).encode())
            done = [segment for segment, following in spans if following <= through + 1]
            for segment in done[:-KEPT]:
                segment.unlink()

    def take_dropped(self) -> int:
        """Return how many payloads were given up since the last call."""
        with self._locked():
            dropped = self._number("dropped")
            if dropped:
                self._write("dropped", b"0")
            return dropped

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released by the close, also by a kill
            yield

    def _segments(self) -> list[Path]:
        found = self._directory.glob("*.seg")
        return sorted(segment for segment in found if segment.stem.isdigit())

    def _spans(self, end: int) -> list[tuple[Path, int]]:
        """Return each segment with the first sequence behind it, `end` behind the last."""
        segments = self._segments()
        return [
            (segment, int(following.stem) if following else end)
            for segment, following in zip_longest(segments, segments[1:])
        ]

    def _next(self) -> int:
        """Return a sequence above every one that was ever given out.

        Behind damage nobody knows how many records there were; each took at least a header.
        """
        segments = self._segments()
        if not segments:
            return self._number("ack") + 1
        last, good = int(segments[-1].stem) - 1, 0
        for sequence, payload in _records(segments[-1]):
            last, good = sequence, good + RECORD.size + len(payload)
        lost = segments[-1].stat().st_size - good
        return max(last, self._number("ack")) + 1 + -(-lost // RECORD.size)

    def _tail(self, sequence: int) -> Path:
        """Return the segment that takes the next record: never one whose end is damaged."""
        segments = self._segments()
        if segments:
            size = segments[-1].stat().st_size
            good = sum(RECORD.size + len(payload) for _, payload in _records(segments[-1]))
            if size == good and size < SEGMENT:
                return segments[-1]
        return self._directory / f"{sequence:020d}.seg"

    def _make_room(self, size: int) -> None:
        segments = self._segments()
        used = sum(segment.stat().st_size for segment in segments)
        acked, dropped = self._number("ack"), 0
        while len(segments) > 1 and used + size > self._quota:
            oldest = segments.pop(0)
            dropped += sum(1 for sequence, _ in _records(oldest) if sequence > acked)
            used -= oldest.stat().st_size
            oldest.unlink()
        if dropped:
            self._write("dropped", str(self._number("dropped") + dropped).encode())

    def _number(self, name: str) -> int:
        """Return a counter; one that cannot be read counts from 0, and the server sorts it out."""
        try:
            found = int((self._directory / name).read_text())
        except (OSError, ValueError):
            return 0
        return found if 0 <= found < 2**63 else 0

    def _write(self, name: str, data: bytes) -> None:
        """Replace a small file atomically."""
        temporary = self._directory / f"{name}.new"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._directory / name)
        sync_directory(self._directory)


def _record(sequence: int, payload: bytes) -> bytes:
    head = RECORD.pack(0, sequence, len(payload))[4:]
    return struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + head + payload


def _records(segment: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a segment up to its end or its first damage."""
    try:
        data = segment.read_bytes()
    except FileNotFoundError:  # acknowledged or dropped by the other process meanwhile
        return
    at = 0
    while len(data) - at >= RECORD.size:
        _, sequence, length = RECORD.unpack_from(data, at)
        payload = data[at + RECORD.size : at + RECORD.size + length]
        if data[at : at + RECORD.size + length] != _record(sequence, payload):
            return
        yield sequence, payload
        at += RECORD.size + length
