from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

DOCUMENT = {"kind": "thing", "format": 1, "n": 3, "text": "é", "list": [True, None, "x"]}


def test_the_form_is_rfc_8785() -> None:
    # RFC 8785, section 3.2.3: keys sorted by UTF-16 code units, no white space, shortest numbers.
    assert canonical.to_bytes({"b": 1.0, "a": [1e21, "é"]}) == '{"a":[1e+21,"é"],"b":1}'.encode()


def test_a_document_comes_back_as_it_was() -> None:
    assert canonical.from_bytes(canonical.to_bytes(DOCUMENT), kind="thing") == DOCUMENT


BAD: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"kind":"\xff"}', "not JSON"),
    "a list": (b"[1]", "expected an object"),
    "another kind": (b'{"format":1,"kind":"other"}', "expected thing"),
    "another version": (b'{"format":2,"kind":"thing"}', "expected thing of format 1"),
    "no kind": (b"{}", "found None of None"),
    "white space": (b'{"format":1, "kind":"thing"}', "not in canonical form"),
    "unsorted": (b'{"kind":"thing","format":1}', "not in canonical form"),
    "a number that is none": (b'{"format":1,"kind":"thing","n":NaN}', "thing"),
    "a number too large": (b'{"format":1,"kind":"thing","n":' + b"9" * 30 + b"}", "thing"),
    "a lone surrogate": (rb'{"format":1,"kind":"thing","n":"\ud800"}', "thing"),
    "too deep": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not JSON|thing|expected"),
    "too long": (b" " * (canonical.MAX_DOCUMENT + 1), "at most"),
}


@pytest.mark.parametrize(("data", "told"), BAD.values(), ids=BAD)
def test_what_is_no_document_is_refused_with_a_reason(data: bytes, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        canonical.from_bytes(data, kind="thing")


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    with pytest.raises(FormatError):
        canonical.from_bytes(noise, kind="thing")


@given(st.integers(0, 40), st.integers(1, 255))
def test_a_changed_byte_never_gives_the_same_document(at: int, change: int) -> None:
    data = bytearray(canonical.to_bytes(DOCUMENT))
    data[at % len(data)] ^= change
    try:
        found: dict[str, Any] = canonical.from_bytes(bytes(data), kind="thing")
    except FormatError:
        return
    assert found != DOCUMENT


def test_a_digest_is_the_sha256_in_hex() -> None:
    assert canonical.digest(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a39617")


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_comes_back_as_it_was(moment: datetime) -> None:
    assert canonical.from_time(canonical.to_time(moment)) == moment


def test_moments_are_written_in_utc() -> None:
    there = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert canonical.to_time(there) == "2026-01-01T00:00:00.000000Z"


BEYOND = ["9999-12-31T23:59:59.999999-14:00", "0001-01-01T00:00:00.000000+14:00"]


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-01T00:00:00", 3, None, *BEYOND])
def test_what_is_no_moment_is_refused(text: Any) -> None:
    with pytest.raises(FormatError, match="not a time"):
        canonical.from_time(text)


def test_what_json_cannot_say_is_our_misuse() -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        canonical.to_bytes({"set": {1}})
