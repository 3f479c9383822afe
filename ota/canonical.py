"""One byte form for every document that is signed, stored or named by its digest.

Documents are JSON objects in the canonical form of RFC 8785. A value that becomes a document and
comes back is the same value; two documents are equal exactly if their bytes are.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import rfc8785

from wildflower.ota.errors import FormatError

MAX_DOCUMENT = 1_000_000  # bytes; the largest document we write is a baseline of about 30 kB


def to_bytes(document: dict[str, Any]) -> bytes:
    """Return the canonical bytes of a document.

    Example:
        >>> to_bytes({"b": 1, "a": [True, "x"]})
        b'{"a":[true,"x"],"b":1}'
    """
    return rfc8785.dumps(document)


def from_bytes(
    data: bytes, *, kind: str, version: int = 1, limit: int = MAX_DOCUMENT
) -> dict[str, Any]:
    """Parse a document that came from outside.

    Args:
        data: The bytes, at most `limit` of them.
        kind: The value its "kind" must have.
        version: The value its "format" must have.
        limit: How many bytes are read.

    Raises:
        FormatError: Too long, not canonical JSON, not an object, or of another kind or version.
    """
    if len(data) > limit:
        raise FormatError(f"{kind}: {len(data)} bytes, at most {limit} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{kind}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{kind}: expected an object, found {type(document).__name__}")
    found = (document.get("kind"), document.get("format"))
    if found != (kind, version):
        raise FormatError(f"expected {kind} of format {version}, found {found[0]} of {found[1]}")
    try:
        canonical = to_bytes(document)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise FormatError(f"{kind}: {error}") from error
    if canonical != data:
        raise FormatError(f"{kind}: not in canonical form (RFC 8785)")
    return document


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hex: how everything here is named."""
    return hashlib.sha256(data).hexdigest()


def to_time(moment: datetime) -> str:
    """Return a moment in UTC as RFC 3339 with microseconds, the one form that documents use."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_time(text: str) -> datetime:
    """Parse what `to_time` wrote.

    Raises:
        FormatError: Not a moment with a time zone.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:  # the last day of 9999, west of here
        raise FormatError(f"not a time: {text!r}") from error
    raise FormatError(f"not a time with a zone: {text!r}")
