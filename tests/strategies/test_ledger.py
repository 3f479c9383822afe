"""The privacy ledger: equal units compose, nothing is forgotten, nothing overspends."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies import ledger as module
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import (
    Event,
    Gaussian,
    Relation,
    Sampling,
    Scheme,
    Skellam,
    Tree,
)
from wildflower.strategies.errors import BudgetError, StoredStateError
from wildflower.strategies.ledger import (
    Budget,
    Entry,
    Ledger,
    Purpose,
    Total,
    Unit,
    describe,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DEVICES = Total(Unit.DEVICE, Relation.ADD_REMOVE, 1e-5)
EXAMPLES = replace(DEVICES, unit=Unit.EXAMPLE)
ROUND = Gaussian(10.0)


def entry(
    number: int = 1, event: Event = ROUND, total: Total = DEVICES, **changes: object
) -> Entry:
    made = Entry(f"tr1/{number}", Purpose.TRAINING, total, event, 50, 100, "tr1", NOW)
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's own values


def ledger(*entries: Entry) -> Ledger:
    found = Ledger()
    for each in entries:
        found = found.record(each)
    return found


def test_rounds_of_one_unit_compose_whatever_they_were_for() -> None:
    found = ledger(
        entry(1), entry(2, purpose=Purpose.TELEMETRY), entry(3, purpose=Purpose.CALIBRATION)
    )
    assert found.spent(DEVICES) == epsilon_of([Gaussian(10.0, 3)], delta=1e-5)


@pytest.mark.parametrize(
    "other",
    [EXAMPLES, replace(DEVICES, relation=Relation.REPLACE), replace(DEVICES, delta=1e-6)],
)
def test_different_totals_stay_apart(other: Total) -> None:
    found = ledger(entry(1), entry(2, total=other), entry(3, total=other))
    assert found.totals() == (DEVICES, other)
    for total, rounds in ((DEVICES, 1), (other, 2)):
        alone = [Gaussian(10.0, rounds)]
        expected = epsilon_of(alone, delta=total.delta, relation=total.relation)
        assert found.compose()[total] == pytest.approx(expected)


def test_one_subject_can_be_told_alone() -> None:
    found = ledger(entry(1), entry(2, subject="tr2"), entry(3, subject="tr2"))
    assert found.spent(DEVICES, subject="tr1") == epsilon_of([ROUND], delta=1e-5)
    assert found.spent(DEVICES, subject="tr2") < found.spent(DEVICES)
    assert found.spent(DEVICES, subject="nobody") == 0.0


def test_a_round_that_resumes_is_written_once() -> None:
    found = ledger(entry(1), entry(1, at=NOW + timedelta(hours=1)))
    assert found == ledger(entry(1))


@pytest.mark.parametrize(
    "changes", [{"event": Gaussian(9.0)}, {"cohort": 51}, {"total": EXAMPLES}, {"subject": "x"}]
)
def test_another_release_under_a_known_id_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BudgetError, match="another release under 'tr1/1'"):
        ledger(entry(1)).record(replace(entry(1), **changes))  # type: ignore[arg-type]  # a test's own values


def test_a_round_that_would_overspend_does_not_start() -> None:
    budget = Budget(DEVICES, epsilon_of([Gaussian(10.0, 3)], delta=1e-5) * (1 + 1e-9))
    found = Ledger()
    for number in (1, 2, 3):
        assert found.require(entry(number), budget) <= budget.epsilon
        found = found.record(entry(number))
    with pytest.raises(
        BudgetError, match=r"tr1/4 would bring epsilon per device to .*spent: "
    ) as e:
        found.require(entry(4), budget)
    assert "privacy plan" in e.value.hint
    assert found.require(entry(3), budget) == found.spent(DEVICES)  # what resumes was paid


@pytest.mark.parametrize(
    "other",
    [EXAMPLES, replace(DEVICES, relation=Relation.REPLACE), replace(DEVICES, delta=1e-6)],
)
def test_a_budget_pays_for_its_own_total_only(other: Total) -> None:
    with pytest.raises(BudgetError, match="do not compose") as caught:
        Ledger().require(entry(1, total=other), Budget(DEVICES, 100.0))
    assert describe(other) in str(caught.value)


events = st.one_of(
    st.builds(Gaussian, st.floats(0.1, 100), st.integers(0, 1000)),
    st.just(Gaussian(1.0, 3, Sampling(Scheme.POISSON, 10, 100))),
    st.just(Skellam(1.0, 100.0, 1e5, 2)),
    st.builds(Tree, st.floats(0.1, 100), st.integers(1, 64), st.integers(0, 9)),
)
entries = st.builds(
    Entry,
    st.text("abc/é1", min_size=1, max_size=9),
    st.sampled_from(Purpose),
    st.builds(Total, st.sampled_from(Unit), st.sampled_from(Relation), st.floats(1e-9, 0.1)),
    events,
    st.integers(1, 10),
    st.integers(10, 1000),
    st.just("tr1"),
    st.integers(0, 10**6).map(lambda minutes: NOW + timedelta(minutes=minutes)),
)


@given(st.lists(entries, max_size=4, unique_by=lambda each: each.entry_id))
def test_a_ledger_is_read_back_as_it_was(made: list[Entry]) -> None:
    found = ledger(*made)
    assert Ledger.from_bytes(found.to_bytes()) == found


@given(st.binary(max_size=200), st.integers(0, 500))
def test_altered_bytes_are_no_other_ledger(data: bytes, at: int) -> None:
    good = ledger(entry(1), entry(2)).to_bytes()
    for altered in (data, good[:at], good[:at] + data + good[at:]):
        try:
            found = Ledger.from_bytes(altered)
        except StoredStateError:
            continue
        assert found.to_bytes() == altered


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"unit":"device"', b'"unit":"person"'),
        (b'"delta":1e-05', b'"delta":1'),
        (b'"cohort":50', b'"cohort":500'),
        (b'"cohort":50', b'"cohort":true'),
        (b'"purpose":"training"', b'"purpose":"fun"'),
        (b'"at":"2026', b'"at":"x026'),
        (b"+00:00", b""),
        (b'"kind":"privacy-ledger"', b'"kind":"ledger"'),
        (b'"format":1', b'"format":2'),
        (b'"entries":', b'"entriez":'),
        (b'"subject":"tr1"', b'"subject":""'),
        (b'"subject":"tr1"', b'"subject":7'),
        (b'"subject":"tr1"', b'"more":1,"subject":"tr1"'),
        (b"{", b"{ "),
    ],
)
def test_a_damaged_ledger_is_told(old: bytes, new: bytes) -> None:
    good = ledger(entry(1)).to_bytes()
    assert old in good
    with pytest.raises(StoredStateError):
        Ledger.from_bytes(good.replace(old, new, 1))


def test_a_ledger_beyond_every_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LEDGER", 10)
    with pytest.raises(StoredStateError, match="at most 10 bytes"):
        Ledger.from_bytes(ledger(entry(1)).to_bytes())


def test_moments_are_utc_in_the_bytes() -> None:
    east = entry(at=NOW.astimezone(timezone(timedelta(hours=5))))
    assert ledger(east).to_bytes() == ledger(entry()).to_bytes()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"entry_id": ""}, "entry_id"),
        ({"subject": "a\nb"}, "subject"),
        ({"cohort": 0}, "cohort"),
        ({"cohort": 101}, "cohort"),
        ({"population": 0}, "population"),
        ({"at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001  what is refused
    ],
)
def test_what_is_no_entry_is_refused_by_name(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(entry(), **changes)  # type: ignore[arg-type]  # a test's own values


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_absurd_deltas_and_budgets_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        Total(Unit.DEVICE, Relation.ADD_REMOVE, delta)
    with pytest.raises(ValueError, match="epsilon"):
        Budget(DEVICES, min(delta, 0.0))
