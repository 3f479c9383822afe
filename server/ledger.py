"""The privacy ledger of this server's population, in its store.

The thin shell of `strategies.ledger`: it refuses before a round starts, and writes before noise is
released. The two are one under a lock, so that two rounds cannot both take the last of a budget.

    ledger.require(entry, budget)   # BudgetError before anything is asked of a device
    ledger.record(entry, budget)    # before the noised sum is used; again is no harm
"""

import threading
from dataclasses import dataclass, field

from wildflower.server.errors import StoreError
from wildflower.server.records import PrivacyEntry
from wildflower.server.store import Store
from wildflower.strategies.dp import events
from wildflower.strategies.dp.events import Relation
from wildflower.strategies.errors import StoredStateError
from wildflower.strategies.ledger import Budget, Entry, Ledger, Purpose, Total, Unit


@dataclass(frozen=True, slots=True)
class StoredLedger:
    """Everything that this server's population has given up.

    Attributes:
        store: Where the entries are.
    """

    store: Store
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self) -> Ledger:
        """Return the ledger.

        Raises:
            StoreError: An entry is none of ours.
        """
        return Ledger(tuple(map(_entry, self.store.all(PrivacyEntry))))

    def require(self, entry: Entry, budget: Budget | None) -> None:
        """Allow a release, before its round starts.

        Args:
            entry: The release as it is planned; it is not recorded.
            budget: What it is paid from; None for no limit.

        Raises:
            BudgetError: It would overspend.
        """
        if budget is not None:
            self.read().require(entry, budget)

    def record(self, entry: Entry, budget: Budget | None = None) -> None:
        """Write a release down, durably, before its noise is released.

        A round that resumes records the same entry again, which changes nothing.

        Args:
            entry: The release with the noise and the cohort that it really has.
            budget: What it is paid from; None for no limit.

        Raises:
            BudgetError: Another release has this id, or it overspends: then it must not happen.
        """
        with self._turn:
            before = self.read()
            if before.record(entry) == before:
                return
            if budget is not None:
                before.require(entry, budget)
            self.store.put(_record(entry))


def _record(entry: Entry) -> PrivacyEntry:
    return PrivacyEntry(
        entry_id=entry.entry_id,
        purpose=entry.purpose.value,
        unit=entry.total.unit.value,
        relation=entry.total.relation.value,
        delta=entry.total.delta,
        event=events.to_fields(entry.event),
        cohort=entry.cohort,
        population=entry.population,
        subject=entry.subject,
        at=entry.at,
    )


def _entry(record: PrivacyEntry) -> Entry:
    try:
        return Entry(
            entry_id=record.entry_id,
            purpose=Purpose(record.purpose),
            total=Total(Unit(record.unit), Relation(record.relation), record.delta),
            event=events.from_fields(record.event),
            cohort=record.cohort,
            population=record.population,
            subject=record.subject,
            at=record.at,
        )
    except (ValueError, StoredStateError) as error:
        raise StoreError(
            f"the privacy ledger's entry {record.entry_id!r} cannot be read: {error}",
            hint="What was spent is unknown, so nothing more is spent: restore a backup.",
        ) from error
