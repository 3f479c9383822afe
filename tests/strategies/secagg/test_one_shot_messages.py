"""The wire of one-shot sessions: every message comes back, and nothing else gets in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.one_shot_fakes import OneShotPlay, make_helpers, make_one_shot_params

from wildflower.strategies.errors import CapacityError, ProtocolError
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.one_shot_messages import (
    HelperCard,
    OneShotAnswer,
    OneShotParams,
    SumRequest,
)


class Message(Protocol):
    def to_fields(self) -> dict[str, Any]: ...

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self: ...


HELPERS = make_helpers(2)
PLAY = OneShotPlay(make_one_shot_params(HELPERS, 4), HELPERS)
MESSAGES: dict[str, Message] = {
    "card": HELPERS[0].card,
    "params": PLAY.params,
    "16-bit params": make_one_shot_params(HELPERS[:1], bits=16),
    "answer": next(iter(PLAY.answers.values())),
    "request": PLAY.request(PLAY.answers),
    "request of one": PLAY.request(sorted(PLAY.answers)[:1]),
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


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=100),
    st.lists(st.binary(max_size=40), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2).map(flat.to_bytes),
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
@settings(max_examples=100, deadline=None)
def test_arbitrary_fields_are_no_message(fields: dict[str, object], name: str) -> None:
    with pytest.raises(ProtocolError):
        type(MESSAGES[name]).from_fields(fields)


def card(**changes: object) -> bytes:
    return flat.to_bytes({**HELPERS[0].card.to_fields(), **changes})


CHANGES: dict[str, tuple[str, dict[str, object], str]] = {
    "a short identity": ("card", {"identity": bytes(90)}, "an identity has 91 bytes"),
    "a short key": ("card", {"sealing_key": bytes(31)}, "a sealing key 32"),
    "a card of a session": ("card", {"session": b"s" * 32}, "session must be zeros"),
    "a cohort of two": ("card", {"min_cohort": 2}, "min_cohort is 2, allowed are 3 to"),
    "no helpers": ("params", {"helpers": []}, "a list of 1 to 8 cards"),
    "nine helpers": ("params", {"helpers": [b"c"] * 9}, "a list of 1 to 8 cards"),
    "a text for helpers": ("params", {"helpers": "cards"}, "a list of 1 to 8 cards"),
    "a helper twice": ("params", {"helpers": [card(), card()]}, "sorted and distinct"),
    "another thing for a card": ("params", {"helpers": [b"{}"]}, "expected helper-card"),
    "a negative round": ("params", {"round": -1}, "round is -1"),
    "no training": ("params", {"training": ""}, "1 to 200 characters"),
    "sums of an unknown kind": ("params", {"sums": b'{"encoding":"x"}'}, "not an encoding"),
    "sums that are no JSON": ("params", {"sums": b"{"}, "not a stored message"),
    "a demand of two": ("answer", {"smallest": 2}, "3 to 1000000"),
    "half a seal": ("answer", {"sealed": bytes(61)}, "times 60 bytes"),
    "a seal too few": ("request", {"sealed": bytes(360)}, "4 times 120 bytes"),
    "another session": ("request", {"session": b"s" * 32}, "another session"),
    "devices out of order": ("request", {"devices": b"b" * 32 + b"a" * 32}, "sorted"),
}


@pytest.mark.parametrize(("name", "changes", "why"), CHANGES.values(), ids=CHANGES)
def test_what_is_wrong_is_named(name: str, changes: dict[str, object], why: str) -> None:
    message = MESSAGES[name]
    with pytest.raises(ProtocolError, match=why):
        type(message).from_fields({**message.to_fields(), **changes})


BAD_PARAMS: dict[str, tuple[dict[str, object], str]] = {
    "session": ({"session": bytes(31)}, "a session of 32 bytes"),
    "clients": ({"encoding": replace(PLAY.params.encoding, clients=2)}, "2 devices"),  # type: ignore[type-var]  # the fixed-point encoding is a dataclass
    "no helpers": ({"helpers": ()}, "1 to 8 helpers"),
    "unsorted helpers": ({"helpers": PLAY.params.helpers[::-1]}, "sorted"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_what_makes_no_session_cannot_be_built(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(PLAY.params, **changes)


def test_secrets_and_payloads_do_not_show_in_a_repr() -> None:
    answer = next(iter(PLAY.answers.values()))
    request = PLAY.request(PLAY.answers)
    for message in (answer, request, HELPERS[0]):
        text = repr(message)
        for hidden in (answer.masked.residues, *answer.seeds.sealed, HELPERS[0].private):
            assert repr(hidden)[2:-1] not in text


def test_the_kinds_are_told_apart() -> None:
    kinds: dict[type[Message], str] = {
        HelperCard: "card",
        OneShotParams: "params",
        OneShotAnswer: "answer",
    }
    for kind, name in kinds.items():
        with pytest.raises(ProtocolError, match="of version 1"):
            kind.from_fields(MESSAGES["request"].to_fields())
        with pytest.raises(ProtocolError, match="of version 1"):
            SumRequest.from_fields(MESSAGES[name].to_fields())
