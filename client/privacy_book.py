"""What a device's answers have cost in privacy, and what they may still cost this month.

    training/privacy.json    what was spent, by day; the digests of the answers that were paid

A spend is on disk before the answer it pays for leaves, so that no restart, and no server that
asks again, makes it forgotten. An answer that leaves a second time, byte for byte, costs nothing.
Spends of one day and kind are one entry with the moment of the last of them, and count until that
one is `MONTH` old: longer than they must, never shorter. Older ones stay, for the lifetime's total.

A book that cannot be read stops every answer that would have to be paid: an unknown spend is not
none. Only equal units compose: what examples cost and what the device costs are two sums.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from wildflower.client.errors import PolicyError
from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.files import write_durably
from wildflower.strategies.dp import events
from wildflower.strategies.dp.events import Event, times
from wildflower.strategies.dp.limits import MAX_ROUNDS
from wildflower.strategies.errors import StoredStateError

log = logging.getLogger(__name__)

FILE: Final = "privacy.json"
KIND: Final = "privacy-book"
MONTH: Final = timedelta(days=30)
ANSWERS: Final = 64
"""Digests that are remembered: a server asks again within one round, not after many."""
MAX_SPENDS: Final = 4000
UNITS: Final = ("device", "example")


@dataclass(frozen=True, slots=True)
class Spend:
    """What answers have released.

    Attributes:
        at: The moment of the last of them, UTC.
        unit: "device" (all data of the device) or "example".
        event: What they released together.
    """

    at: datetime
    unit: str
    event: Event


@dataclass(frozen=True, slots=True)
class Book:
    """Everything that a device has spent; a value.

    Attributes:
        spends: By day and kind.
        answers: Digests of the answers paid for, the latest last.
    """

    spends: tuple[Spend, ...] = ()
    answers: tuple[str, ...] = ()

    def events(self, unit: str, *, since: datetime | None = None) -> tuple[Event, ...]:
        """Return what was released of a unit, since a moment or ever.

        What a clock that has gone back puts into the future counts too.
        """
        return tuple(
            each.event
            for each in self.spends
            if each.unit == unit and (since is None or each.at > since)
        )

    def epsilon(self, unit: str, *, delta: float, since: datetime | None = None) -> float:
        """Return an upper bound of what was spent of a unit, since a moment or ever.

        By Rényi privacy: a device computes it within milliseconds.
        """
        return _epsilon(self.events(unit, since=since), delta, "rdp")

    def require(self, spend: Spend, *, delta: float, limit: float) -> None:
        """Allow a spend if the month that ends with it stays within its limit.

        The tighter bound by privacy loss distributions takes a second: it is asked for only when
        the quick one says no.

        Raises:
            PolicyError: It would be too much.
        """
        events = (*self.events(spend.unit, since=spend.at - MONTH), spend.event)
        if _epsilon(events, delta, "rdp") <= limit:
            return
        found = _epsilon(events, delta, "pld")
        if found > limit:
            raise PolicyError(
                f"this answer would bring the month's epsilon per {spend.unit} to {found:.3g},"
                f" allowed are {limit:.3g} (delta {delta:g})",
                hint="Wait, or change max_epsilon_per_month in policy.toml.",
            )

    def add(self, spend: Spend) -> "Book":
        """Return the book with one more spend.

        Raises:
            PolicyError: The month holds too many different ones; nothing more can be spent.
        """
        spends: list[Spend] = []
        for each in (*self.spends, spend):
            alike = next((at for at, one in enumerate(spends) if _alike(one, each, spend.at)), None)
            if alike is None:
                spends.append(each)
            else:
                spends[alike] = _together(spends[alike], each)
        return replace(self, spends=_within_limit(spends, spend.at))

    def paid(self, answer: str) -> "Book":
        """Return the book with one more answer that is paid for."""
        return replace(self, answers=(*self.answers, answer)[-ANSWERS:])

    def to_bytes(self) -> bytes:
        """Return the stored form; `from_bytes(to_bytes(b)) == b`."""
        spends = [
            {
                "at": canonical.to_time(each.at),
                "unit": each.unit,
                "event": events.to_fields(each.event),
            }
            for each in self.spends
        ]
        return canonical.to_bytes(
            {"kind": KIND, "format": 1, "spends": spends, "answers": list(self.answers)}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Book":
        """Parse what `to_bytes` wrote.

        Raises:
            StoredStateError: Not a book of ours.
        """
        try:
            document = canonical.from_bytes(data, kind=KIND)
            spends, answers = document["spends"], document["answers"]
            if len(spends) > MAX_SPENDS or len(answers) > ANSWERS:
                raise StoredStateError(f"a privacy book has at most {MAX_SPENDS} spends")
            return cls(tuple(map(_spend, spends)), tuple(map(_digest, answers)))
        except (FormatError, KeyError, TypeError, AttributeError) as error:
            raise StoredStateError(f"not a privacy book: {error}") from error


def _epsilon(events: Sequence[Event], delta: float, method: str) -> float:
    from wildflower.strategies.dp.accounting import epsilon_of

    return epsilon_of(events, delta=delta, method=method)


def _alike(one: Spend, other: Spend, now: datetime) -> bool:
    """Tell whether two spends can be one entry: one kind, and one day while days matter."""
    if one.unit != other.unit or times(one.event, 0) != times(other.event, 0):
        return False
    if one.event.rounds + other.event.rounds > MAX_ROUNDS:
        return False
    return one.at.date() == other.at.date() or max(one.at, other.at) <= now - MONTH


def _together(one: Spend, other: Spend) -> Spend:
    rounds = one.event.rounds + other.event.rounds
    return replace(one, at=max(one.at, other.at), event=replace(one.event, rounds=rounds))


def _within_limit(spends: list[Spend], now: datetime) -> tuple[Spend, ...]:
    """Return the spends without those of long ago that no longer fit in the file."""
    surplus = len(spends) - MAX_SPENDS
    past = [each for each in spends if each.at <= now - MONTH]
    if surplus > len(past):
        raise PolicyError(
            f"the privacy book holds {MAX_SPENDS} kinds of spends this month, and no more fit",
            hint="A server that asks for other noise in every round fills it: ask its operator.",
        )
    dropped = past[: max(surplus, 0)]
    return tuple(each for each in spends if each not in dropped)


def _spend(stored: Mapping[str, Any]) -> Spend:
    if set(stored) != {"at", "unit", "event"} or stored["unit"] not in UNITS:
        raise StoredStateError(f"not a spend: {sorted(stored)}")
    at = canonical.from_time(stored["at"]).astimezone(UTC)
    return Spend(at, stored["unit"], events.from_fields(stored["event"]))


def _digest(stored: object) -> str:
    if not isinstance(stored, str) or len(stored) != 64:
        raise StoredStateError("not the digest of an answer")
    return stored


@dataclass(frozen=True, slots=True)
class PrivacyBook:
    """A device's book in its file; one process at a time writes it.

    Attributes:
        path: The file.
        now: The present, with a time zone.
    """

    path: Path
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def read(self) -> Book:
        """Return the book; empty if nothing was ever spent.

        Raises:
            PolicyError: It cannot be read.
        """
        try:
            return Book.from_bytes(self.path.read_bytes())
        except FileNotFoundError:
            return Book()
        except (OSError, StoredStateError) as error:
            raise PolicyError(
                f"the privacy book {self.path} cannot be read: {error}",
                hint="What was spent is unknown: restore the file from a backup.",
            ) from error

    def record(self, spends: Iterable[tuple[str, Event]], *, answer: str = "") -> None:
        """Write down what was spent, and for which answer; durable when this returns.

        Args:
            spends: Unit and event, each.
            answer: Digest of the answer that they pay for; "" while it is not made yet.

        Raises:
            PolicyError: The book cannot be read or written; then nothing may leave.
        """
        book = self.read()
        for unit, event in spends:
            book = book.add(Spend(self.now(), unit, event))
        book = book.paid(answer) if answer else book
        try:
            write_durably(self.path, book.to_bytes(), mode=0o600)
        except OSError as error:
            raise PolicyError(
                f"the privacy book {self.path} cannot be written: {error}",
                hint="Is the disk full or read-only?",
            ) from error
