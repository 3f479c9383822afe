"""The audit trail: every signature that a key makes, in a file beside the key that only grows.

One line per signature, canonical JSON. Each line names the digest of the line before, so that
nothing can be changed, left out or put in between without every later line changing too:

    line 1   {..., "previous": "000...0"}
    line 2   {..., "previous": sha256(line 1)}

What a chain cannot show is that its end was cut off. `head` is the digest of the last line: whoever
notes it down elsewhere can later see that the trail still contains it (`follow(data, seen=head)`).

The line is on disk before the key is used. The trail may name a signature that a power cut
prevented; no signature is missing from it.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

from securesystemslib.signer import Key, SecretsHandler, Signature, Signer
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.files import sync_directory
from wildflower.ota.release.keys import RoleKeys

KIND: Final = "wildflower.signature"
FILE: Final = "audit.jsonl"
START: Final = "0" * 64
"""What the first line names as the one before."""
LONGEST: Final = 1_000  # bytes of a line; those that are written have about 400


@dataclass(frozen=True, slots=True)
class Record:
    """One use of a key.

    Attributes:
        number: Its place in the trail, from 1.
        at: When.
        key: Id of the key.
        what: What was signed, such as "targets 4"; "bytes" if it is nothing that TUF knows.
        payload: SHA-256 of the bytes that were signed.
        length: How many they were.
        previous: Digest of the line before.
    """

    number: int
    at: datetime
    key: str
    what: str
    payload: str
    length: int
    previous: str

    def to_line(self) -> bytes:
        """Return the line, with its end."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        document = fields | {"at": canonical.to_time(self.at), "kind": KIND, "format": 1}
        return canonical.to_bytes(document) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Record":
        """Parse a line without its end.

        Raises:
            FormatError: It is none of ours.
        """
        if len(line) > LONGEST:
            raise FormatError(f"audit trail: a line of {len(line)} bytes, at most {LONGEST}")
        document = canonical.from_bytes(line, kind=KIND)
        counts = [document.get(name) for name in ("number", "length")]
        texts = [document.get(name) for name in ("at", "key", "what", "payload", "previous")]
        if not (all(type(n) is int for n in counts) and all(isinstance(t, str) for t in texts)):
            raise FormatError("audit trail: a field is missing or of another type")
        fields = {name: document[name] for name in cls.__slots__ if name != "at"}
        record = cls(at=canonical.from_time(document["at"]), **fields)
        if record.to_line() != line + b"\n":
            raise FormatError("audit trail: fields that it should not have")
        return record


def follow(data: bytes, *, seen: str = "") -> tuple[Record, ...]:
    """Follow a trail from its first line.

    Args:
        data: The whole file. A last line without an end belongs to no signature and is left out.
        seen: A head that was noted down earlier; the trail must still contain it.

    Raises:
        FormatError: A line is malformed or does not follow the one before, or `seen` is missing;
            says which line.
    """
    records: list[Record] = []
    heads = [START]
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = Record.from_line(line)
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from error
        if (record.number, record.previous) != (number, heads[-1]):
            raise FormatError(
                f"line {number} does not follow line {number - 1}: found {record.number} after "
                f"{record.previous[:12]}, expected {number} after {heads[-1][:12]}",
                hint="Something before it was changed, taken out or put in.",
            )
        records.append(record)
        heads.append(canonical.digest(line))
    if seen and seen not in heads:
        raise FormatError(
            f"the trail of {len(records)} lines does not contain the head {seen[:12]}",
            hint="Its end was cut off, or it is another key's trail.",
        )
    return tuple(records)


def head(data: bytes) -> str:
    """Return the digest of a trail's last line; `START` for an empty one."""
    lines = data.split(b"\n")[:-1]
    return canonical.digest(lines[-1]) if lines else START


@dataclass(frozen=True, slots=True)
class Trail:
    """The file of a trail; several processes may append.

    Attributes:
        path: Where it is; made with mode 0600 if missing.
    """

    path: Path

    def append(self, key: str, payload: bytes, at: datetime) -> Record:
        """Write down that a key is about to sign; when this returns, it survives a power cut.

        Raises:
            SigningError: The file cannot be written, or its last line is none of ours.
        """
        try:
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                record = _next(_last_line(file), key, payload, at)
                file.write(record.to_line())
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_directory(self.path.parent)
        except OSError as error:
            raise SigningError(
                f"the audit trail {self.path} cannot be written: {error.strerror}",
                hint="Nothing was signed. Name a place for it that can be written.",
            ) from error
        except FormatError as error:
            raise SigningError(
                f"the audit trail {self.path} is damaged: {error}",
                hint="Nothing was signed. Keep the file, find out why, begin another.",
            ) from error
        return record


class AuditedSigner(Signer):
    """A signer that writes down each signature before it makes it.

    Args:
        signer: Who signs.
        trail: Where it is written down.
        now: The clock, UTC.
    """

    def __init__(self, signer: Signer, trail: Trail, now: Callable[[], datetime]) -> None:
        self._signer = signer
        self._trail = trail
        self._now = now

    @property
    def public_key(self) -> Key:
        """The key's public half."""
        return self._signer.public_key

    def sign(self, payload: bytes) -> Signature:
        """Write down, then sign.

        Raises:
            SigningError: It cannot be written down; nothing is signed.
        """
        self._trail.append(self.public_key.keyid, payload, self._now())
        return self._signer.sign(payload)

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> Signer:
        """Refuse: a signer that writes down what it signs is made around another."""
        raise NotImplementedError("make the inner signer from the URI")


def audited(
    keys: Mapping[str, RoleKeys], trail: Trail, now: Callable[[], datetime]
) -> Mapping[str, RoleKeys]:
    """Return the keys of roles with signers that write down what they sign."""
    return {
        role: RoleKeys(
            tuple(AuditedSigner(signer, trail, now) for signer in found.signers), found.threshold
        )
        for role, found in keys.items()
    }


def _next(last: bytes, key: str, payload: bytes, at: datetime) -> Record:
    return Record(
        number=Record.from_line(last).number + 1 if last else 1,
        at=at,
        key=key,
        what=_what(payload),
        payload=canonical.digest(payload),
        length=len(payload),
        previous=canonical.digest(last) if last else START,
    )


def _last_line(file: IO[bytes]) -> bytes:
    """Return the last whole line; drop what a power cut left of one that was never answered."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * LONGEST))
    whole, _, torn = file.read().rpartition(b"\n")
    if torn:
        file.truncate(size - len(torn))
        file.seek(0, os.SEEK_END)
    return whole.rpartition(b"\n")[2]


def _what(payload: bytes) -> str:
    """Return what bytes are, as far as they say: metadata of a delegated role has no name in it."""
    if payload.startswith(b"DSSEv1 "):
        return "DSSE"
    try:
        document = json.loads(payload)
        kind, version = document["_type"], document["version"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return "bytes"
    return f"{kind} {version}" if kind in TOP_LEVEL_ROLE_NAMES and type(version) is int else "bytes"
