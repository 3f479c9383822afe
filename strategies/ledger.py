"""One ledger of what a population has given up of its privacy: what was released, and for what.

    total of (unit, relation, delta) = epsilon at that delta of all events of that unit and relation

Entries compose only if they protect the same thing: releases that hide a device and releases that
hide an example are two totals, and so are those under different neighbouring relations or deltas.
Training, telemetry and calibration of one population go into the same total: who looks at all of
them learns from all of them.

An entry is written before its noise is released, and once per release: the same entry again (a
round that resumes) changes nothing, another one under the same id is refused.

    ledger.require(entry, Budget(unit, relation, delta, epsilon))   # before the round starts
    ledger = ledger.record(entry)                                   # before its noise is released

`Ledger.from_bytes(ledger.to_bytes()) == ledger`; equal ledgers are equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, unique
from typing import Any, Final, Self

from wildflower.strategies.dp import events, limits
from wildflower.strategies.dp.accounting import Method, epsilon_of
from wildflower.strategies.dp.events import Event, Relation
from wildflower.strategies.errors import BudgetError, StoredStateError

KIND: Final = "privacy-ledger"
FORMAT: Final = 1
MAX_ID: Final = 200  # characters
MAX_LEDGER: Final = 64_000_000  # bytes; about 150,000 rounds


@unique
class Unit(StrEnum):
    """What a release hides."""

    DEVICE = "device"
    EXAMPLE = "example"


@unique
class Purpose(StrEnum):
    """What a release was for."""

    TRAINING = "training"
    TELEMETRY = "telemetry"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Total:
    """What entries must share to compose.

    Attributes:
        unit: What is hidden.
        relation: Which data sets are neighbours.
        delta: At which epsilon is told.
    """

    unit: Unit
    relation: Relation
    delta: float

    def __post_init__(self) -> None:
        limits.number("delta", self.delta, 1e-15, 0.5)


@dataclass(frozen=True, slots=True)
class Budget:
    """The largest epsilon that a total may reach.

    Attributes:
        total: Which total.
        epsilon: The largest; above 0.
    """

    total: Total
    epsilon: float

    def __post_init__(self) -> None:
        limits.number("epsilon", self.epsilon, 1e-6, 1e6)


@dataclass(frozen=True, slots=True)
class Entry:
    """One release.

    Attributes:
        entry_id: Of the release: for a round "<training id>/<number>"; the same release is the
            same id.
        purpose: What it was for.
        total: What it adds to.
        event: What was released, with the noise that was really added.
        cohort: How many took part, at least 1.
        population: How many could have.
        subject: What it belongs to, such as a training's id.
        at: When it was written, UTC.
    """

    entry_id: str
    purpose: Purpose
    total: Total
    event: Event
    cohort: int
    population: int
    subject: str
    at: datetime

    def __post_init__(self) -> None:
        """Refuse what is no entry."""
        for key, text in (("entry_id", self.entry_id), ("subject", self.subject)):
            if not 1 <= len(text) <= MAX_ID or not text.isprintable():
                raise ValueError(f"{key} is {text[:40]!r}, allowed are 1 to {MAX_ID} characters")
        limits.whole("population", self.population, 1, limits.MAX_POPULATION)
        limits.whole("cohort", self.cohort, 1, self.population)
        if self.at.tzinfo is None:
            raise ValueError("at has no time zone")

    def is_same_release(self, other: "Entry") -> bool:
        """Tell whether two entries speak of one release; when they were written does not matter."""
        mine, theirs = (_to_fields(each) | {"at": ""} for each in (self, other))
        return mine == theirs


@dataclass(frozen=True, slots=True)
class Ledger:
    """All entries of a population, in the order in which they were written; a value."""

    entries: tuple[Entry, ...] = ()

    def record(self, entry: Entry) -> "Ledger":
        """Return the ledger with one more entry; an entry that it holds is held once.

        Raises:
            BudgetError: Another release has this id.
        """
        known = next((each for each in self.entries if each.entry_id == entry.entry_id), None)
        if known is None:
            return Ledger((*self.entries, entry))
        if not known.is_same_release(entry):
            raise BudgetError(
                f"the ledger holds another release under {entry.entry_id!r}",
                hint="What was released stays written down; give the new release an id of its own.",
            )
        return self

    def totals(self) -> tuple[Total, ...]:
        """Return every total that has an entry, in order of appearance."""
        return tuple(dict.fromkeys(entry.total for entry in self.entries))

    def events(self, total: Total, *, subject: str = "") -> tuple[Event, ...]:
        """Return what adds to a total: of everything, or of one subject alone."""
        return tuple(
            each.event
            for each in self.entries
            if each.total == total and subject in ("", each.subject)
        )

    def spent(self, total: Total, *, subject: str = "", method: Method | str = Method.PLD) -> float:
        """Return the epsilon of a total: of everything, or of one subject alone."""
        events_ = self.events(total, subject=subject)
        return epsilon_of(events_, delta=total.delta, relation=total.relation, method=method)

    def compose(self, method: Method | str = Method.PLD) -> Mapping[Total, float]:
        """Return the epsilon of every total that has an entry."""
        return {total: self.spent(total, method=method) for total in self.totals()}

    def would_spend(self, entry: Entry) -> float:
        """Return the epsilon of an entry's total once it is recorded."""
        if any(each.entry_id == entry.entry_id for each in self.entries):
            return self.spent(entry.total)
        released = (*self.events(entry.total), entry.event)
        return epsilon_of(released, delta=entry.total.delta, relation=entry.total.relation)

    def require(self, entry: Entry, budget: Budget) -> float:
        """Allow a release that its budget can pay; return what the total will be.

        Raises:
            BudgetError: It would overspend, or it protects something else than the budget does.
        """
        if entry.total != budget.total:
            raise BudgetError(
                f"the budget is for {describe(budget.total)}, the round gives"
                f" {describe(entry.total)}: they do not compose",
                hint="Set a budget for the unit, relation and delta that the rounds have.",
            )
        found = self.would_spend(entry)
        if found > budget.epsilon:
            raise BudgetError(
                f"{entry.entry_id} would bring epsilon per {entry.total.unit} to {found:.4g},"
                f" the budget is {budget.epsilon:.4g} (spent: {self.spent(entry.total):.4g})",
                hint="More noise, fewer rounds, or a larger budget: wildflower privacy plan.",
            )
        return found

    def to_bytes(self) -> bytes:
        """Return the one form of this ledger; see the module for the law."""
        entries = [_to_fields(entry) for entry in self.entries]
        document = {"kind": KIND, "format": FORMAT, "entries": entries}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            StoredStateError: Not a ledger of ours.
        """
        if len(data) > MAX_LEDGER:
            raise StoredStateError(f"a ledger has at most {MAX_LEDGER} bytes, found {len(data)}")
        try:
            stored = json.loads(data)
            if (stored["kind"], stored["format"]) != (KIND, FORMAT):
                raise StoredStateError(f"not a ledger of format {FORMAT}")
            found = cls(tuple(map(_from_fields, stored["entries"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoredStateError(f"not a privacy ledger: {error}") from error
        if found.to_bytes() != data:
            raise StoredStateError("not a privacy ledger in its one form")
        return found


def describe(total: Total) -> str:
    """Return a total in words."""
    return f"unit {total.unit}, relation {total.relation}, delta {total.delta:g}"


def _to_fields(entry: Entry) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "purpose": str(entry.purpose),
        "unit": str(entry.total.unit),
        "relation": str(entry.total.relation),
        "delta": entry.total.delta,
        "event": events.to_fields(entry.event),
        "cohort": entry.cohort,
        "population": entry.population,
        "subject": entry.subject,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
    }


def _from_fields(stored: Mapping[str, Any]) -> Entry:
    values = dict(stored)
    try:
        total = Total(
            Unit(values.pop("unit")), Relation(values.pop("relation")), values.pop("delta")
        )
        values["purpose"] = Purpose(values["purpose"])
        values["event"] = events.from_fields(values["event"])
        values["at"] = datetime.fromisoformat(values["at"])
        return Entry(total=total, **values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoredStateError(f"not an entry of a privacy ledger: {error}") from error
