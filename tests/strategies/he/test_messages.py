"""Messages of homomorphic sessions: what is written is read, and nothing else is."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.he_fakes import IDENTITY, SESSION, encoding

from wildflower.server.gateway import MAX_CALL
from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.he.messages import (
    LATEST,
    MAX_CIPHERTEXT,
    MAX_HEADER,
    Encrypted,
    Invitation,
    RunKey,
    SumRequest,
    cut,
    digest_of,
    join,
)
from wildflower.strategies.he.packing import MAX_CHUNKS, MAX_LENGTH, PER_CHUNK

KEY = RunKey("t1", b"context", 3, 1_900_000_000, IDENTITY.public_der, b"signed")
INVITED = Invitation(SESSION, 1, KEY, encoding())
SENT = Encrypted(SESSION, "ab" * 32, (b"one", b"two"), b"certificate", b"signature")
SUM = SumRequest("t1", 1, bytes(32), 3, PER_CHUNK + 1, (b"one", b"two"))


def test_what_flower_carries_is_read_as_it_was_written() -> None:
    assert RunKey.from_fields(KEY.to_fields()) == KEY
    assert Invitation.from_fields(INVITED.to_fields()) == INVITED
    assert Encrypted.from_fields(SENT.to_fields()) == SENT


def test_what_is_stored_or_sent_is_read_as_it_was_written() -> None:
    assert RunKey.from_bytes(KEY.to_bytes()) == KEY
    assert SumRequest.from_bytes(SUM.to_bytes()) == SUM


def test_every_part_of_a_message_changes_its_digest() -> None:
    invited = [
        INVITED,
        replace(INVITED, session=bytes(32)),
        replace(INVITED, round=2),
        replace(INVITED, key=replace(KEY, context=b"other")),
        replace(INVITED, key=replace(KEY, min_cohort=4)),
        replace(INVITED, encoding=encoding(clients=4)),
    ]
    sums = [
        SUM,
        replace(SUM, run="t2"),
        replace(SUM, round=2),
        replace(SUM, key=b"\1" * 32),
        replace(SUM, addends=4),
        replace(SUM, ciphertexts=(b"two", b"one")),
        replace(SUM, ciphertexts=(b"onet", b"wo")),
    ]
    assert len({each.digest for each in invited}) == len(invited)
    assert len({each.digest for each in sums}) == len(sums)
    assert digest_of((b"ab", b"c")) != digest_of((b"a", b"bc"))


def test_ciphertexts_and_keys_stay_out_of_reprs() -> None:
    assert "one" not in repr(SENT) + repr(SUM)
    assert "context'" not in repr(KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": ""},
        {"run": "x" * 233},
        {"context": b""},
        {"min_cohort": 2},
        {"min_cohort": 128},
        {"expires": -1},
        {"expires": LATEST + 1},
        {"identity": b"short"},
        {"signature": b""},
        {"signature": bytes(100)},
    ],
)
def test_a_key_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|allowed|identity"):
        replace(KEY, **wrong)
    with pytest.raises(ProtocolError):
        RunKey.from_fields({**KEY.to_fields(), **wrong})


def wide() -> Encoding:
    return Encoding.for_cohort(size=5, clip=1.0, max_weight=100.0, clients=3, bits=32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"session": bytes(31)},
        {"round": -1},
        {"encoding": encoding(clients=2)},
        {"encoding": encoding(clients=128)},
        {"encoding": encoding(size=MAX_LENGTH)},
        {"encoding": wide()},
    ],
)
def test_an_invitation_to_what_a_sum_cannot_hold_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|homomorphic sum"):
        replace(INVITED, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"clients": 200}, {"round": -1}, {"bits": 32}, {"encoding": "unknown"}, {"more": 1}]
)
def test_an_invitation_from_outside_is_checked_alike(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Invitation.from_fields({**INVITED.to_fields(), **wrong})


def test_an_invitation_whose_sums_do_not_fit_is_refused() -> None:
    with pytest.raises(CapacityError):
        Invitation.from_fields({**INVITED.to_fields(), "clients": 10_000})


@pytest.mark.parametrize(
    "wrong",
    [
        {"ciphertexts": []},
        {"ciphertexts": b"one"},
        {"ciphertexts": [bytes(MAX_CIPHERTEXT + 1)]},
        {"ciphertexts": ["one"]},
        {"ciphertexts": [b"x"] * (MAX_CHUNKS + 1)},
        {"device": bytes(31)},
        {"certificate": bytes(5000)},
        {"signature": b""},
    ],
)
def test_an_update_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="encrypted:"):
        Encrypted.from_fields({**SENT.to_fields(), **wrong})


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"length": 0}, (b"one", b"two")),
        ({"length": MAX_LENGTH + 1}, (b"one", b"two")),
        ({"length": PER_CHUNK}, (b"one", b"two")),
        ({"key": bytes(31)}, (b"one", b"two")),
        ({"run": ""}, (b"one", b"two")),
        ({"addends": "3"}, (b"one", b"two")),
        ({}, (b"one",)),
        ({}, (b"one", b"two", b"three")),
    ],
)
def test_a_request_that_is_none_is_refused(wrong: dict[str, Any], parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ProtocolError):
        SumRequest.from_bytes(join({**SUM._header(), **wrong}, parts))


def test_a_key_with_further_parts_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no further parts"):
        RunKey.from_bytes(join(KEY.to_fields(), (b"more",)))


def test_pieces_longer_than_allowed_are_refused() -> None:
    with pytest.raises(ProtocolError, match="allowed are 1 to 100000"):
        cut(join({}, (bytes(MAX_CIPHERTEXT + 1),)))
    with pytest.raises(ProtocolError, match=f"allowed are 1 to {MAX_HEADER}"):
        cut(join({"a": "x" * MAX_HEADER}, ()))


def test_the_largest_update_passes_the_gateway() -> None:
    assert MAX_CHUNKS * 88_700 < MAX_CALL  # a ciphertext has 88,600 bytes


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
def test_parts_are_cut_where_they_were_joined(parts: list[bytes]) -> None:
    assert cut(join({"a": 1}, parts)) == ({"a": 1}, tuple(parts))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.integers(0, 60).map(lambda n: SUM.to_bytes()[: -n or 1]))
)
def test_no_bytes_from_outside_do_more_than_be_refused(data: bytes) -> None:
    for parse in (SumRequest.from_bytes, RunKey.from_bytes):
        with pytest.raises(ProtocolError):
            parse(data)


VALUES = st.one_of(
    st.integers(-2, 200),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=40),
    st.lists(st.binary(max_size=4), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([KEY.to_fields(), INVITED.to_fields(), SENT.to_fields()]),
    st.data(),
)
def test_fields_from_outside_are_read_or_refused(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*fields, "other"]))
    changed = {**fields, name: data.draw(VALUES)}
    for parse in (RunKey.from_fields, Invitation.from_fields, Encrypted.from_fields):
        try:
            found = parse(changed)
        except (ProtocolError, CapacityError):
            continue
        assert parse(found.to_fields()) == found
