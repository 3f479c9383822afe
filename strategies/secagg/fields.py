"""The flat form of messages: how it is written, read without trust, stored and digested.

A message is a mapping of names to int, float, str, bytes or list[bytes]. Things of one length (ids,
keys, shares) are joined into one `bytes` field, because an empty list does not survive every
transport. Each message names its kind, the protocol's version and the session.

    from_bytes(to_bytes(fields)) == fields    equal fields have equal bytes
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wildflower.strategies.errors import ProtocolError

VERSION: Final = 1
SESSION: Final = 32  # bytes of a session's id
DEVICE: Final = 32  # bytes of a device id, which is 64 hex digits elsewhere
HEADER: Final = ("version", "kind", "session")
MAX_ITEMS: Final = 10_000  # of one list: a roster of everyone

Fields = Mapping[str, object]
"""The flat form of a message as it arrives."""


def header(kind: str, session: bytes) -> dict[str, Any]:
    """Return the fields that every message begins with."""
    return {"version": VERSION, "kind": kind, "session": session}


def join_ids(devices: Iterable[str]) -> bytes:
    """Return device ids as one field."""
    return b"".join(map(bytes.fromhex, devices))


def split(data: bytes, length: int) -> tuple[bytes, ...]:
    """Cut `data` into parts of `length` bytes."""
    return tuple([data[start : start + length] for start in range(0, len(data), length)])


@dataclass(frozen=True, slots=True)
class Reader:
    """Takes a message apart; whatever is not as it should be is a `ProtocolError`.

    Attributes:
        kind: The kind the message must have.
        fields: Its flat form.
        names: The fields it must have besides the header: these and no others.
    """

    kind: str
    fields: Fields
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the header and the names."""
        found = self.fields.get("version"), self.fields.get("kind")
        if found != (VERSION, self.kind) or type(found[0]) is not int:
            raise ProtocolError(f"expected {self.kind} of version {VERSION}, found {found!r:.80}")
        if set(self.fields) != {*HEADER, *self.names}:
            raise self.error("fields", f"{sorted(self.names)}", sorted(map(str, self.fields)))

    def error(self, name: str, expected: str, found: object) -> ProtocolError:
        """Return the error for a wrong field."""
        return ProtocolError(f"{self.kind}: {name} must be {expected}, found {found!r:.80}")

    @property
    def session(self) -> bytes:
        """The session's id."""
        return self.parts("session", SESSION, exactly=1)[0]

    def integer(self, name: str) -> int:
        """Return a whole number."""
        value = self.fields[name]
        if type(value) is not int:
            raise self.error(name, "a whole number", value)
        return value

    def text(self, name: str, longest: int) -> str:
        """Return a text of 1 to `longest` characters."""
        value = self.fields[name]
        if type(value) is not str or not 1 <= len(value) <= longest:
            raise self.error(name, f"1 to {longest} characters", value)
        return value

    def octets(self, name: str, longest: int) -> bytes:
        """Return 1 to `longest` bytes."""
        return self._octets(name, self.fields[name], longest)

    def _octets(self, name: str, value: object, longest: int) -> bytes:
        if type(value) is not bytes or not 1 <= len(value) <= longest:
            raise self.error(name, f"1 to {longest} bytes", value)
        return value

    def octet_lists(self, name: str, count: int, longest: int) -> tuple[bytes, ...]:
        """Return `count` items of 1 to `longest` bytes each."""
        value = self.fields[name]
        if not isinstance(value, list) or len(value) != count:
            raise self.error(name, f"a list of {count}", value)
        return tuple(self._octets(name, item, longest) for item in value)

    def parts(self, name: str, length: int, *, exactly: int | None = None) -> tuple[bytes, ...]:
        """Return parts of `length` bytes each, at most `MAX_ITEMS`."""
        value = self.fields[name]
        if type(value) is not bytes or len(value) % length or len(value) > length * MAX_ITEMS:
            raise self.error(name, f"up to {MAX_ITEMS} times {length} bytes", value)
        found = split(value, length)
        if exactly is not None and len(found) != exactly:
            raise self.error(name, f"{exactly} times {length} bytes", value)
        return found

    def ids(self, name: str) -> tuple[str, ...]:
        """Return device ids, which must be sorted and distinct."""
        found = self.parts(name, DEVICE)
        if list(found) != sorted(set(found)):
            raise self.error(name, "sorted and distinct ids", found)
        return tuple(map(bytes.hex, found))


def to_bytes(fields: Fields) -> bytes:
    """Return the stored form: JSON with sorted names, bytes as hex digits after "x"."""
    plain = {name: _plain(value) for name, value in fields.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes) -> dict[str, Any]:
    """Parse what `to_bytes` wrote.

    Raises:
        ProtocolError: Not a message's stored form.
    """
    try:
        plain = json.loads(data)
        return {name: _rich(value) for name, value in plain.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ProtocolError(f"not a stored message: {error}") from error


def digest(fields: Fields) -> bytes:
    """Return the SHA-256 of the stored form, 32 bytes."""
    return hashlib.sha256(to_bytes(fields)).digest()


def _plain(value: object) -> object:
    match value:
        case bytes():
            return {"x": value.hex()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _rich(value: Any) -> Any:
    match value:
        case {"x": str(digits)}:
            return bytes.fromhex(digits)
        case list():
            return [_rich(item) for item in value]
        case _:
            return value
