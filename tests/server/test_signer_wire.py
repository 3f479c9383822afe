"""What publisher and release signer say to each other: whole, too long, cut off, or nonsense."""

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wildflower.ota.errors import FormatError
from wildflower.server.signer_wire import HEADER, MAX_MESSAGE, SignRequest, receive, send

REQUEST = SignRequest("manifest", "gate report", "round record", "metadata")
PARTS = tuple(asdict(REQUEST))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Line:
    """Both ends of a connection."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.far.settimeout(10)

    def arrives(self, sent: bytes) -> bytes:
        """Send bytes, hang up, and return the message that the other end makes of them."""
        self.near.sendall(sent)
        self.near.close()
        return receive(self.far)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def line() -> Iterator[Line]:
    one = Line()
    yield one
    one.close()


@pytest.mark.parametrize("length", [0, 1, 65_536, 65_537, 1_000_000, MAX_MESSAGE])
def test_a_message_up_to_the_limit_arrives_as_it_was_sent(line: Line, length: int) -> None:
    message = (b"0123456789abcdef!" * (length // 17 + 1))[:length]
    sender = threading.Thread(target=send, args=(line.near, message))
    sender.start()
    assert receive(line.far) == message
    sender.join()


def test_messages_do_not_run_into_each_other(line: Line) -> None:
    for message in (b"one", b"", b"three"):
        send(line.near, message)
    assert [receive(line.far) for _ in range(3)] == [b"one", b"", b"three"]


def test_a_message_that_arrives_byte_by_byte_is_one_message(line: Line) -> None:
    def drip() -> None:
        for byte in HEADER.pack(40) + bytes(range(40)):
            line.near.sendall(bytes([byte]))

    sender = threading.Thread(target=drip)
    sender.start()
    assert receive(line.far) == bytes(range(40))
    sender.join()


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 2**32 - 1])
def test_a_message_that_is_too_long_is_refused_before_it_is_read(line: Line, length: int) -> None:
    line.near.sendall(HEADER.pack(length))  # and stays open: a reader that waited would time out
    with pytest.raises(FormatError, match=f"{length} bytes, at most {MAX_MESSAGE}"):
        receive(line.far)


def test_a_peer_that_hangs_up_without_a_word_has_sent_nothing(line: Line) -> None:
    assert line.arrives(b"") == b""


CUT: dict[str, tuple[bytes, str]] = {
    "in its length": (b"\x00\x00\x00", "cut off in its length"),
    "after its length": (HEADER.pack(5), "cut off after 0 of 5"),
    "before its last byte": (HEADER.pack(5) + b"abcd", "cut off after 4 of 5"),
}


@pytest.mark.parametrize(("sent", "reason"), CUT.values(), ids=CUT)
def test_a_message_that_is_cut_off_says_where(line: Line, sent: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        line.arrives(sent)


@given(st.tuples(*[st.text()] * 4))
def test_a_request_comes_back_from_its_json(texts: tuple[str, str, str, str]) -> None:
    request = SignRequest(*texts)
    assert SignRequest.from_json(json.dumps(asdict(request)).encode()) == request


@given(st.permutations(PARTS))
def test_the_order_of_a_requests_parts_is_of_no_account(names: list[str]) -> None:
    parts = asdict(REQUEST)
    data = json.dumps({name: parts[name] for name in names}).encode()
    assert SignRequest.from_json(data) == REQUEST


@pytest.mark.parametrize("name", PARTS)
def test_a_request_without_one_of_its_parts_is_none(name: str) -> None:
    parts = {key: text for key, text in asdict(REQUEST).items() if key != name}
    with pytest.raises(FormatError, match="expected the texts manifest, gate_report"):
        SignRequest.from_json(json.dumps(parts).encode())


@pytest.mark.parametrize("name", PARTS)
@given(value=ANYTHING.filter(lambda value: not isinstance(value, str)))
def test_a_part_that_is_no_text_is_refused(name: str, value: object) -> None:
    parts = {**asdict(REQUEST), name: value}
    with pytest.raises(FormatError, match="expected the texts"):
        SignRequest.from_json(json.dumps(parts).encode())


def test_a_request_with_a_part_more_is_refused() -> None:
    parts = asdict(REQUEST) | {"role": "root"}
    with pytest.raises(FormatError, match="'role'"):
        SignRequest.from_json(json.dumps(parts).encode())


@pytest.mark.parametrize("name", PARTS)
def test_a_part_with_half_a_surrogate_pair_is_refused(name: str) -> None:
    """Python's JSON reads it, but it has no bytes: it ended the signer's process."""
    parts = asdict(REQUEST) | {name: "\ud800"}
    with pytest.raises(FormatError, match="not a text"):
        SignRequest.from_json(json.dumps(parts).encode())


@given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"1" * 10_000)
@example(b"\xff\xfe\x00")
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_a_request_or_a_named_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        SignRequest.from_json(data)


WHOLE = json.dumps(asdict(REQUEST)).encode()


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_one_text_at_most_or_is_refused(position: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[position] ^= change
    try:
        found = SignRequest.from_json(bytes(data))
    except FormatError:
        return
    assert sum(getattr(found, name) != getattr(REQUEST, name) for name in PARTS) <= 1
