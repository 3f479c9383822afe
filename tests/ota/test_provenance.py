"""The record of a round: it comes back as it was, or is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.provenance import RoundRecord

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
RECORD = RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {"accuracy": 0.9, "loss": 0.25}, NOON)
EXACT = 2.0**53 - 1  # beyond it, up to 1e21, RFC 8785 writes floats as integers that are not read


def changed(**changes: Any) -> bytes:
    return canonical.to_bytes(json.loads(RECORD.to_bytes()) | changes)


@given(
    st.text(),
    st.integers(1, 10**6),
    st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.booleans(),
    st.dictionaries(st.text(), st.floats(-EXACT, EXACT), max_size=4),
    st.datetimes(timezones=st.just(UTC)),
)
def test_a_record_comes_back_as_it_was(
    training: str,
    number: int,
    devices: tuple[int, int],
    secure: bool,
    metrics: dict[str, float],
    at: datetime,
) -> None:
    record = RoundRecord(training, number, "ab" * 32, *devices, secure, metrics, at)
    assert RoundRecord.from_bytes(record.to_bytes()) == record


def test_a_record_is_named_by_its_bytes() -> None:
    assert RECORD.digest == canonical.digest(RECORD.to_bytes())
    assert RECORD.digest != replace(RECORD, number=4).digest


def test_a_whole_cohort_may_survive_and_one_device_is_enough() -> None:
    for cohort, survivors in ((8, 8), (8, 1), (1, 1)):
        record = replace(RECORD, cohort=cohort, survivors=survivors)
        assert RoundRecord.from_bytes(record.to_bytes()) == record


WRONG: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "wildflower.release"},
    "another format": {"format": 2},
    "round nought": {"round": 0},
    "nobody survived": {"survivors": 0},
    "more survived than were invited": {"survivors": 9},
    "a round that is a text": {"round": "3"},
    "a round with a fraction": {"round": 3.5},
    "a model that is none": {"model": None},
    "a truth that is a number": {"secure": 1},
    "a metric that is a text": {"metrics": {"accuracy": "0.9"}},
    "a metric that is a word": {"metrics": {"accuracy": "high"}},
    "a metric that is a truth": {"metrics": {"accuracy": True}},
    "a metric without end": {"metrics": {"accuracy": "inf"}},
    "a metric that is none": {"metrics": {"accuracy": None}},
    "metrics that are a list": {"metrics": [0.9]},
    "a time without a zone": {"at": "2026-11-24T12:00:00.000000"},
    "a time in another form": {"at": "2026-11-24T12:00:00Z"},
    "a field too many": {"devices": ["d1"]},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_what_is_no_round_record_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        RoundRecord.from_bytes(changed(**changes))


@pytest.mark.parametrize("key", sorted(json.loads(RECORD.to_bytes())))
def test_a_record_that_lacks_a_key_is_none(key: str) -> None:
    document = json.loads(RECORD.to_bytes())
    del document[key]
    with pytest.raises(FormatError):
        RoundRecord.from_bytes(canonical.to_bytes(document))


WHOLE = RECORD.to_bytes()
EDITS: dict[str, Callable[[int, bytes], bytes]] = {
    "overwritten": lambda at, noise: WHOLE[:at] + noise + WHOLE[at + len(noise) :],
    "inserted": lambda at, noise: WHOLE[:at] + noise + WHOLE[at:],
    "cut off": lambda at, noise: WHOLE[:at],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@given(st.integers(0, len(WHOLE)), st.binary(max_size=20))
def test_damaged_bytes_never_give_the_same_record(
    edit: Callable[[int, bytes], bytes], at: int, noise: bytes
) -> None:
    data = edit(at, noise)
    try:
        found = RoundRecord.from_bytes(data)
    except FormatError:
        return
    assert found.to_bytes() == data
    assert (found == RECORD) is (data == WHOLE)
