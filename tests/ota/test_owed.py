"""The list of what a device owes: a law, its limits, and noise."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.device import owed
from wildflower.ota.device.owed import Owed
from wildflower.ota.errors import FormatError

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ONE = Owed("ab" * 32, "cd" * 16, ((1, "ef" * 32), (7, "01" * 32)), ((3, "23" * 32),), NOON)


def items() -> st.SearchStrategy[tuple[tuple[int, str], ...]]:
    digest = st.binary(min_size=32, max_size=32).map(bytes.hex)
    found = st.dictionaries(st.integers(1, owed.MAX_SEQUENCE), digest, max_size=5)
    return found.map(lambda entries: tuple(sorted(entries.items())))


@given(
    st.builds(
        Owed,
        device_id=st.binary(min_size=32, max_size=32).map(bytes.hex),
        stream=st.binary(min_size=16, max_size=16).map(bytes.hex),
        reports=items(),
        summaries=items(),
        at=st.datetimes(timezones=st.just(UTC)),
    )
)
def test_what_is_written_is_read(one: Owed) -> None:
    assert Owed.from_bytes(one.to_bytes()) == one


def test_the_largest_list_is_a_document_that_is_read() -> None:
    many = tuple((owed.MAX_SEQUENCE - 5000 + n, "ef" * 32) for n in range(5000))
    one = Owed("ab" * 32, "cd" * 16, many[: owed.MAX_REPORTS], many[: owed.MAX_SUMMARIES], NOON)
    assert Owed.from_bytes(one.to_bytes()) == one


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device_id", "AB" * 32),
        ("device_id", 7),
        ("stream", "cd"),
        ("stream", "x" * 32),
        ("reports", {}),
        ("reports", [[2, "ef" * 32], [1, "ef" * 32]]),
        ("reports", [[1, "ef" * 32], [1, "ef" * 32]]),
        ("reports", [[0, "ef" * 32]]),
        ("reports", [[True, "ef" * 32]]),
        ("reports", [[1, "../up"]]),
        ("reports", [[1]]),
        ("summaries", [[n + 1, "ef" * 32] for n in range(owed.MAX_SUMMARIES + 1)]),
        ("at", "yesterday"),
        ("more", 1),
    ],
)
def test_what_lies_outside_its_range_is_refused(key: str, value: Any) -> None:
    document = json.loads(ONE.to_bytes()) | {key: value}
    with pytest.raises(FormatError):
        Owed.from_bytes(canonical.to_bytes(document))


def test_a_missing_field_is_refused() -> None:
    document = json.loads(ONE.to_bytes())
    del document["stream"]
    with pytest.raises(FormatError, match="stream"):
        Owed.from_bytes(canonical.to_bytes(document))


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Owed.from_bytes(data)
