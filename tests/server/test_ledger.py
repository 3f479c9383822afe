"""The stored ledger: written before noise is released, once per round, and a budget holds."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wildflower.server.errors import StoreError
from wildflower.server.ledger import StoredLedger
from wildflower.server.memory import MemoryStore
from wildflower.server.records import PrivacyEntry
from wildflower.server.sql import SqlStore
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import Gaussian, Relation, Sampling, Scheme, Skellam, Tree
from wildflower.strategies.errors import BudgetError
from wildflower.strategies.ledger import Budget, Entry, Purpose, Total, Unit

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOTAL = Total(Unit.DEVICE, Relation.ADD_REMOVE, 1e-5)
BUDGET = Budget(TOTAL, epsilon_of([Gaussian(10.0, 3)], delta=1e-5) * (1 + 1e-9))


def entry(number: int = 1, **changes: object) -> Entry:
    made = Entry(
        *(f"tr1/{number}", Purpose.TRAINING, TOTAL, Gaussian(10.0), 50, 100, "tr1", NOW),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's own values


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(1.5, 2, Sampling(Scheme.POISSON, 10, 100)),
        Skellam(1.0, 123.5, 1e5),
        Tree(2.0, 16, 3),
    ],
)
def test_a_restart_keeps_every_entry_and_epsilon(tmp_path: Path, event: Gaussian) -> None:
    url = f"sqlite:///{tmp_path}/wild.db"
    with SqlStore.open(url) as store:
        StoredLedger(store).record(entry(1, event=event))
        StoredLedger(store).record(entry(2, event=event))
    with SqlStore.open(url) as store:
        found = StoredLedger(store).read()
    assert found.entries == (entry(1, event=event), entry(2, event=event))
    assert found.spent(TOTAL) == epsilon_of([event, event], delta=1e-5)


def test_a_round_that_resumes_is_recorded_once() -> None:
    ledger = StoredLedger(MemoryStore())
    ledger.record(entry(1), BUDGET)
    ledger.record(entry(1, at=NOW + timedelta(minutes=5)), BUDGET)
    assert ledger.read().entries == (entry(1),)
    with pytest.raises(BudgetError, match="another release"):
        ledger.record(entry(1, event=Gaussian(9.0)))


def test_the_budget_stops_a_round_before_it_starts_and_no_release_slips_by() -> None:
    ledger = StoredLedger(MemoryStore())
    for number in (1, 2, 3):
        ledger.require(entry(number), BUDGET)
        ledger.record(entry(number), BUDGET)
    for refused in (ledger.require, ledger.record):
        with pytest.raises(BudgetError, match="the budget is"):
            refused(entry(4), BUDGET)
    assert len(ledger.read().entries) == 3
    ledger.require(entry(4), None)
    ledger.record(entry(3), BUDGET)  # what was paid stays paid


def test_two_rounds_do_not_both_take_the_last_of_a_budget() -> None:
    ledger = StoredLedger(MemoryStore())
    ledger.record(entry(1))
    ledger.record(entry(2))
    outcomes: list[bool] = []

    def take(number: int) -> None:
        try:
            ledger.record(entry(number), BUDGET)
            outcomes.append(True)
        except BudgetError:
            outcomes.append(False)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 5 + [True]


@pytest.mark.parametrize(
    "changes",
    [{"unit": "person"}, {"event": {"mechanism": "magic"}}, {"delta": 2.0}, {"cohort": 0}],
)
def test_an_entry_that_cannot_be_read_stops_all_spending(changes: dict[str, object]) -> None:
    store = MemoryStore()
    ledger = StoredLedger(store)
    ledger.record(entry(1))
    store.change(PrivacyEntry, "tr1/1", **changes)  # type: ignore[arg-type]  # fields of a record
    with pytest.raises(StoreError, match="tr1/1"):
        ledger.record(entry(2))
