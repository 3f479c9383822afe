"""The wire: every message comes back, and nothing else gets in."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg_fakes import fleet, make_params

from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.messages import (
    SEALED,
    SHARE,
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)


class Message(Protocol):
    def to_fields(self) -> dict[str, Any]: ...

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self: ...


SESSION = b"s" * 32
IDS = tuple(sorted(device.device_id for device in fleet()[1][:4]))


def advertisement(device: str) -> Advertisement:
    return Advertisement(SESSION, device, b"a" * 32, b"b" * 32, b"c" * 32, b"cert", b"signature")


SEALED_SHARES = {device: device[:1].encode() * SEALED for device in IDS}
MESSAGES: dict[str, Message] = {
    "params": make_params(8, session=SESSION),
    "advertisement": advertisement(IDS[0]),
    "roster": Roster(SESSION, tuple(map(advertisement, IDS))),
    "nobody's roster": Roster(SESSION, ()),
    "shares": Shares(SESSION, SEALED_SHARES),
    "no shares": Shares(SESSION, {}),
    "delivery": Delivery(SESSION, SEALED_SHARES),
    "masked": Masked(SESSION, bytes(range(8))),
    "request": UnmaskRequest(SESSION, IDS[:3], IDS[3:]),
    "request, nobody gone": UnmaskRequest(SESSION, IDS, ()),
    "reveal": Reveal(SESSION, dict.fromkeys(IDS[:3], b"s" * SHARE), {IDS[3]: b"k" * SHARE}),
    "reveal, nobody gone": Reveal(SESSION, dict.fromkeys(IDS, b"s" * SHARE), {}),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_every_message_comes_back(message: Message) -> None:
    fields = message.to_fields()
    assert type(message).from_fields(fields) == message
    assert flat.from_bytes(flat.to_bytes(fields)) == fields


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_fields_are_what_a_flower_record_carries(message: Message) -> None:
    for value in message.to_fields().values():
        items = value if isinstance(value, list) else [value]
        assert all(type(item) in {int, float, str, bytes} for item in items)


def test_equal_messages_have_equal_bytes() -> None:
    shuffled = Shares(SESSION, dict(reversed(SEALED_SHARES.items())))
    assert flat.to_bytes(shuffled.to_fields()) == flat.to_bytes(MESSAGES["shares"].to_fields())


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=100),
    st.lists(st.binary(max_size=40), max_size=5),
)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
@settings(max_examples=300, deadline=None)
def test_a_message_with_a_wrong_field_is_refused_or_another_message(
    name: str, data: st.DataObject
) -> None:
    message = MESSAGES[name]
    fields = message.to_fields()
    key = data.draw(st.sampled_from([*fields, "extra"]))
    fields[key] = data.draw(JUNK)
    try:
        found = type(message).from_fields(fields)
    except (ProtocolError, CapacityError):
        return
    assert found.to_fields() == fields


@given(st.dictionaries(st.text(max_size=12), JUNK, max_size=6), st.sampled_from(sorted(MESSAGES)))
@settings(max_examples=100)
def test_arbitrary_fields_are_no_message(fields: dict[str, object], name: str) -> None:
    with pytest.raises(ProtocolError):
        type(MESSAGES[name]).from_fields(fields)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_another_kind_or_version_is_refused(name: str) -> None:
    message = MESSAGES[name]
    for change in ({"kind": "other"}, {"version": 2}, {"version": True}):
        with pytest.raises(ProtocolError, match=r"expected .* of version 1"):
            type(message).from_fields({**message.to_fields(), **change})


def test_a_missing_field_is_named() -> None:
    fields = MESSAGES["roster"].to_fields()
    del fields["signatures"]
    with pytest.raises(ProtocolError, match=r"roster: fields must be .*'signatures'"):
        Roster.from_fields(fields)


CHANGES: dict[str, tuple[str, dict[str, object], str]] = {
    "unsorted ids": ("request", {"alive": b"b" * 32 + b"a" * 32}, "sorted and distinct"),
    "an id twice": ("request", {"alive": b"a" * 64}, "sorted and distinct"),
    "half an id": ("request", {"dead": b"a" * 33}, "times 32 bytes"),
    "ten thousand and one": ("request", {"dead": bytes(32 * 10_001)}, "up to 10000 times"),
    "a share too few": ("reveal", {"seeds": b"s" * SHARE}, "3 times 33 bytes"),
    "a certificate too few": ("roster", {"certificates": [b"c"] * 3}, "a list of 4"),
    "an empty signature": ("roster", {"signatures": [b"s", b"", b"s", b"s"]}, "1 to 72 bytes"),
    "a huge certificate": ("advertisement", {"certificate": bytes(4097)}, "1 to 4096 bytes"),
    "a text for bytes": ("advertisement", {"signature": "sig"}, "1 to 72 bytes"),
    "two devices": ("advertisement", {"device": bytes(64)}, "1 times 32 bytes"),
    "a short session": ("masked", {"session": bytes(31)}, "times 32 bytes"),
    "a text for a number": ("params", {"round": "1"}, "a whole number"),
    "no training": ("params", {"training": ""}, "1 to 200 characters"),
    "a long training": ("params", {"training": "t" * 201}, "1 to 200 characters"),
    "a threshold below the majority": ("params", {"threshold": 4}, "allowed are 5 to 8"),
    "a threshold above everyone": ("params", {"threshold": 9}, "allowed are 5 to 8"),
    "a degree above everyone": ("params", {"degree": 8}, "8 clients of degree 8"),
    "a degree below two": ("params", {"degree": 1}, "8 clients of degree 1"),
    "an odd ring": ("params", {"degree": 5}, "a ring's degree is even"),
    "a weak ring": ("params", {"degree": 4, "threshold": 2}, "allowed are 3 to 5"),
    "two clients": ("params", {"clients": 2}, "at least 3 are needed"),
    "a negative round": ("params", {"round": -1}, "round >= 0"),
    "no encoding": ("params", {"clip": -1.0}, "not an encoding"),
}


@pytest.mark.parametrize(("name", "change", "reason"), CHANGES.values(), ids=CHANGES)
def test_a_refusal_says_what_was_expected(
    name: str, change: dict[str, object], reason: str
) -> None:
    message = MESSAGES[name]
    with pytest.raises(ProtocolError, match=reason):
        type(message).from_fields({**message.to_fields(), **change})


def test_a_cohort_too_large_for_the_residues_is_refused() -> None:
    with pytest.raises(CapacityError):
        SessionParams.from_fields({**MESSAGES["params"].to_fields(), "max_weight": 1e10})


def test_the_limits_themselves_are_allowed() -> None:
    smallest = make_params(3, session=SESSION)
    longest = replace(smallest, training="t" * 200, round=0)
    for params in (smallest, longest, make_params(8, session=SESSION, threshold=8)):
        assert SessionParams.from_fields(params.to_fields()) == params
    with pytest.raises(ValueError, match="training <= 200"):
        replace(smallest, training="t" * 201)


DIFFERENT: list[Callable[[], SessionParams]] = [
    lambda: make_params(8, session=b"t" * 32),
    lambda: make_params(8, session=SESSION, threshold=6),
    lambda: make_params(8, session=SESSION, size=6),
    lambda: SessionParams(SESSION, "t2", 1, 5, 7, Encoding(5, 1.0, 100.0, 8)),
]


def test_the_digest_depends_on_every_parameter() -> None:
    found = {make().digest for make in DIFFERENT} | {make_params(8, session=SESSION).digest}
    assert len(found) == len(DIFFERENT) + 1


def test_payloads_do_not_show_in_a_repr() -> None:
    shown = repr(MESSAGES["reveal"]) + repr(MESSAGES["shares"]) + repr(MESSAGES["masked"])
    assert IDS[0] not in shown
    assert "x07" not in shown


@given(st.binary(max_size=60))
@settings(max_examples=60)
def test_bytes_that_are_no_stored_message_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a stored message"):
        flat.from_bytes(data)


@pytest.mark.parametrize("data", [b"[]", b'{"a":{"x":"zz"}}', b"[" * 100_000], ids=["", "hex", "["])
def test_json_that_is_no_stored_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a stored message"):
        flat.from_bytes(data)
