"""What a server's answer says in its headers: which bytes these are, and when to come back.

Headers are bytes from outside, from a server that is not trusted: what cannot be read counts as not
said, and nothing in them raises. Source: RFC 9110, sections 10.2.3 and 14.4.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Self

LONGEST_HEADER: Final = 200  # characters; real ones have at most 61
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Which bytes of a file an answer holds.

    Attributes:
        first: Index of the first one.
        last: Index of the last one, at least `first`.
        total: Bytes of the whole file; None if it is not said.
    """

    first: int
    last: int
    total: int | None

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Read a Content-Range; None if there is none that makes sense.

        Example:
            >>> ContentRange.of("bytes 5-9/10")
            ContentRange(first=5, last=9, total=10)
        """
        found = _CONTENT_RANGE.fullmatch(text)
        if found is None:
            return None
        first, last = int(found[1]), int(found[2])
        total = None if found[3] == "*" else int(found[3])
        is_sound = first <= last and (total is None or last < total)
        return cls(first, last, total) if is_sound else None

    def is_rest(self, have: int, length: int) -> bool:
        """Whether it is what is missing, or a part of it, after `have` bytes of `length`."""
        return self.first == have and self.last < length and self.total in (None, length)


def retry_after_s(text: str, now: datetime) -> float:
    """Return how many seconds a Retry-After asks to wait, at least 0; 0 if it makes no sense.

    Args:
        text: Seconds, or a date.
        now: The time that a date is compared with.

    Example:
        >>> retry_after_s("120", datetime(2026, 6, 1, tzinfo=UTC))
        120.0
    """
    if len(text) > LONGEST_HEADER:
        return 0.0
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):  # whatever the parser trips over
        return 0.0
    if moment.tzinfo is None:  # "-0000" says UTC, and that nobody knows where that was
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
