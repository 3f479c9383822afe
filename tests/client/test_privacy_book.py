"""The privacy book: what was spent is never forgotten, equal units compose, damage stops."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.client import privacy_book
from wildflower.client.errors import PolicyError
from wildflower.client.privacy_book import MONTH, Book, PrivacyBook, Spend
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import Event, Gaussian, Sampling, Scheme, Tree
from wildflower.strategies.dp.limits import MAX_ROUNDS
from wildflower.strategies.errors import StoredStateError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
STEPS = Gaussian(1.0, 10, Sampling(Scheme.POISSON, 1, 20))
ANSWER = Gaussian(20.0)
DELTA = 1e-5


def spent(*events: Event, at: datetime = NOW, unit: str = "device") -> Book:
    book = Book()
    for event in events:
        book = book.add(Spend(at, unit, event))
    return book


def test_rounds_add_up_as_one_long_training_would() -> None:
    book = spent(*[STEPS] * 5, unit="example")
    assert len(book.spends) == 1
    once = epsilon_of([replace(STEPS, rounds=50)], delta=DELTA, method="rdp")
    assert book.epsilon("example", delta=DELTA) == pytest.approx(once)


def test_only_equal_units_compose() -> None:
    book = spent(ANSWER).add(Spend(NOW, "example", STEPS))
    for unit, event in (("device", ANSWER), ("example", STEPS)):
        alone = epsilon_of([event], delta=DELTA, method="rdp")
        assert book.epsilon(unit, delta=DELTA) == alone


def test_a_spend_leaves_the_month_after_thirty_days_but_never_the_life() -> None:
    book, limit = spent(ANSWER), epsilon_of([ANSWER], delta=DELTA) * 1.2
    later = Spend(NOW + MONTH, "device", ANSWER)
    book.require(later, delta=DELTA, limit=limit)
    with pytest.raises(PolicyError):
        book.require(replace(later, at=later.at - timedelta(seconds=1)), delta=DELTA, limit=limit)
    assert book.add(later).events("device") == (ANSWER, ANSWER)


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    future = spent(ANSWER, at=NOW + timedelta(days=400))
    limit = epsilon_of([ANSWER], delta=DELTA) * 1.2
    with pytest.raises(PolicyError):
        future.require(Spend(NOW, "device", ANSWER), delta=DELTA, limit=limit)


def test_what_only_the_tighter_bound_allows_is_allowed() -> None:
    spend = Spend(NOW, "example", STEPS)
    tight, quick = (epsilon_of([STEPS], delta=DELTA, method=m) for m in ("pld", "rdp"))
    Book().require(spend, delta=DELTA, limit=(tight + quick) / 2)
    with pytest.raises(PolicyError):
        Book().require(spend, delta=DELTA, limit=tight * 0.99)


def test_the_budget_stops_the_answer_that_would_overspend() -> None:
    limit = epsilon_of([replace(ANSWER, rounds=3)], delta=DELTA)
    book = Book()
    for _ in range(3):
        book.require(Spend(NOW, "device", ANSWER), delta=DELTA, limit=limit * (1 + 1e-9))
        book = book.add(Spend(NOW, "device", ANSWER))
    with pytest.raises(PolicyError, match=r"epsilon per device to .* allowed are") as caught:
        book.require(Spend(NOW, "device", ANSWER), delta=DELTA, limit=limit * (1 + 1e-9))
    assert "max_epsilon_per_month" in caught.value.hint


def test_days_are_kept_apart_while_they_matter_and_put_together_after() -> None:
    book = Book()
    for day in range(40):
        book = book.add(Spend(NOW + timedelta(days=day), "device", ANSWER))
    assert sum(each.event.rounds for each in book.spends) == 40
    assert len(book.spends) == 31
    assert book.events("device", since=NOW + timedelta(days=39) - MONTH)[0].rounds == 1


def test_one_entry_never_holds_more_rounds_than_an_event_may() -> None:
    many = replace(ANSWER, rounds=MAX_ROUNDS)
    assert [each.event.rounds for each in spent(many, ANSWER, ANSWER).spends] == [MAX_ROUNDS, 2]


def test_a_full_book_forgets_what_is_long_past_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privacy_book, "MAX_SPENDS", 3)
    old = spent(Gaussian(1.0), at=NOW - 2 * MONTH)
    for noise in (2.0, 3.0, 4.0):
        old = old.add(Spend(NOW, "device", Gaussian(noise)))
    assert old.events("device") == (Gaussian(2.0), Gaussian(3.0), Gaussian(4.0))
    with pytest.raises(PolicyError, match="3 kinds of spends this month"):
        old.add(Spend(NOW, "device", Gaussian(5.0)))


events = st.one_of(
    st.builds(Gaussian, st.floats(0.1, 100), st.integers(0, 1000)),
    st.builds(Tree, st.floats(0.1, 100), st.integers(1, 64), st.integers(0, 9)),
    st.just(STEPS),
)
spends = st.builds(
    Spend,
    st.integers(-(10**5), 10**5).map(lambda hours: NOW + timedelta(hours=hours)),
    st.sampled_from(["device", "example"]),
    events,
)


@given(
    st.lists(spends, max_size=5), st.lists(st.text("0123456789abcdef", min_size=64, max_size=64))
)
def test_a_book_is_read_back_as_it_was(made: list[Spend], answers: list[str]) -> None:
    book = Book(tuple(made))
    for answer in answers:
        book = book.paid(answer)
    assert Book.from_bytes(book.to_bytes()) == book


@given(st.binary(max_size=300), st.integers(0, 400))
def test_altered_bytes_are_no_other_book(data: bytes, at: int) -> None:
    good = spent(ANSWER, STEPS).paid("0" * 64).to_bytes()
    for altered in (data, good[:at], good[:at] + data + good[at:]):
        try:
            found = Book.from_bytes(altered)
        except StoredStateError:
            continue
        assert found.to_bytes() == altered


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"unit":"device"', b'"unit":"person"'),
        (b'"mechanism":"gaussian"', b'"mechanism":"magic"'),
        (b'"noise_multiplier":20', b'"noise_multiplier":-2'),
        (b'"answers":["', b'"answers":["0'),
        (b'"answers":', b'"answerz":'),
        (b"2026-11-24", b"2026-13-24"),
    ],
)
def test_a_damaged_entry_is_told(old: bytes, new: bytes) -> None:
    good = spent(ANSWER).paid("0" * 64).to_bytes()
    assert old in good
    with pytest.raises(StoredStateError):
        Book.from_bytes(good.replace(old, new))


def clock(at: datetime = NOW) -> Callable[[], datetime]:
    return lambda: at


def test_what_was_spent_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "training" / "privacy.json"
    for _ in range(3):
        PrivacyBook(path, clock()).record([("example", STEPS)], answer="f" * 64)
    found = PrivacyBook(path, clock()).read()
    assert found.events("example") == (replace(STEPS, rounds=30),)
    assert found.answers == ("f" * 64,) * 3
    assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_book_lets_nothing_be_spent(tmp_path: Path) -> None:
    book = PrivacyBook(tmp_path / "privacy.json", clock())
    book.record([("device", ANSWER)])
    book.path.write_bytes(book.path.read_bytes()[:-5])
    with pytest.raises(PolicyError, match="cannot be read"):
        book.record([("device", ANSWER)])


def test_a_spend_that_cannot_be_written_down_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / ".privacy.json.new").mkdir()  # where the new file would be written first
    for path in (tmp_path / "file" / "privacy.json", tmp_path / "privacy.json"):
        with pytest.raises(PolicyError, match=r"cannot be (read|written)"):
            PrivacyBook(path, clock()).record([("device", ANSWER)])


def test_a_book_beyond_every_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = spent(Gaussian(1.0), Gaussian(2.0)).to_bytes()
    monkeypatch.setattr(privacy_book, "MAX_SPENDS", 1)
    with pytest.raises(StoredStateError, match="at most 1 spends"):
        Book.from_bytes(stored)
