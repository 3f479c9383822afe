"""What a device without a network owes its server, as one signed list: reports and summaries.

The list names what lies beside it by number and digest, and the device's signature over the list
covers all of it. A report is signed by itself as well, so that it can be shown to others later.

    Owed.from_bytes(owed.to_bytes()) == owed
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import HEX_DIGEST

KIND: Final = "wildflower.owed"
LIST: Final = "owed.json"
SIGNATURE: Final = "owed.sig"
MAX_REPORTS: Final = 2000
MAX_SUMMARIES: Final = 5000
"""More wait for the next time; the list stays far below what a document may have."""
MAX_SIGNATURE: Final = 80  # bytes; ECDSA on P-256 in DER has at most 72
MAX_SEQUENCE: Final = 2**53 - 1  # the largest number that JSON keeps exactly

Item = tuple[int, str]
"""Sequence, and the SHA-256 of its bytes in hex."""


@dataclass(frozen=True, slots=True)
class Owed:
    """The list.

    Attributes:
        device_id: Who owes it.
        stream: Name of the spool that the summaries come from, 32 hex digits.
        reports: The reports, by rising sequence.
        summaries: The summaries, by rising sequence.
        at: When it was made, by the device's clock.
    """

    device_id: str
    stream: str
    reports: tuple[Item, ...]
    summaries: tuple[Item, ...]
    at: datetime

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that the device signs."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "device_id": self.device_id,
                "stream": self.stream,
                "reports": [list(item) for item in self.reports],
                "summaries": [list(item) for item in self.summaries],
                "at": canonical.to_time(self.at),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a list from outside.

        Raises:
            FormatError: No such list, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            owed = cls(
                device_id=document["device_id"],
                stream=document["stream"],
                reports=_items(document["reports"], MAX_REPORTS),
                summaries=_items(document["summaries"], MAX_SUMMARIES),
                at=canonical.from_time(document["at"]),
            )
            is_named = (
                HEX_DIGEST.fullmatch(owed.device_id) and len(bytes.fromhex(owed.stream)) == 16
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{KIND}: {error!r}") from error
        if not is_named or owed.to_bytes() != data:
            raise FormatError(f"{KIND}: a name or a field that it should not have")
        return owed


def report_name(sequence: int) -> str:
    """Return where a report's document lies in a parcel."""
    return f"reports/{sequence}.json"


def signature_name(sequence: int) -> str:
    """Return where a report's signature lies."""
    return f"reports/{sequence}.sig"


def summary_name(sequence: int) -> str:
    """Return where a summary lies."""
    return f"summaries/{sequence}"


def _items(found: object, limit: int) -> tuple[Item, ...]:
    if not isinstance(found, list) or len(found) > limit:
        raise ValueError(f"not a list of at most {limit}")
    items = tuple(_item(entry) for entry in found)
    sequences = [sequence for sequence, _ in items]
    if sequences != sorted(set(sequences)):
        raise ValueError("sequences that do not rise")
    return items


def _item(found: object) -> Item:
    match found:
        case [int(sequence), str(digest)] if 1 <= sequence <= MAX_SEQUENCE:
            if HEX_DIGEST.fullmatch(digest) and not isinstance(sequence, bool):
                return sequence, digest
    raise ValueError(f"not a sequence and a digest: {found!r:.80}")
