"""What every device channel does: one suite, run over gRPC with mutual TLS and over memory."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from tests.client_fakes import FakeServer, MemoryChannel, until
from tests.device_fakes import NOON, self_report

from wildflower.client.channel import Channel, CheckIn, GrpcChannel, Hint
from wildflower.client.errors import ChannelError
from wildflower.client.identity import Identity
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.wire import device_pb2 as wire

KINDS = {Hint.TRAINING: wire.Hint.KIND_TRAINING, Hint.RELEASE: wire.Hint.KIND_RELEASE}


class Stored(Protocol):
    """What a server has stored."""

    reports: list[DeviceReport]
    summaries: list[tuple[int, bytes]]
    check_ins: list[bytes]
    training: str


@dataclass
class Line:
    """A channel and the server at its other end."""

    channel: Channel
    server: Stored
    hint: Callable[[Hint], None]
    cut: Callable[[], None]
    mend: Callable[[], None]
    greeting: Sequence[Hint] = ()


@pytest.fixture(params=["grpc", "memory"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    if request.param == "memory":
        memory = MemoryChannel()
        yield Line(memory, memory, memory.hint, memory.go_away, memory.come_back)
        return
    with FakeServer(tmp_path / "server") as server:
        identity = Identity.load(server.enrol(tmp_path / "device"))
        channel = GrpcChannel(f"127.0.0.1:{server.channel_port}", identity, agent="1")

        def hint(kind: Hint) -> None:
            until(lambda: server.watchers > 0)
            server.hint(KINDS[kind])

        yield Line(channel, server, hint, server.stop_channel, server.start_channel, [Hint.RELEASE])
        channel.close()


def report(sequence: int) -> bytes:
    found = DeviceReport("ab" * 32, sequence, Outcome.COMMITTED, "r", "cd", "ef", "", NOON)
    return found.to_bytes()


def test_a_report_is_stored_once_however_often_it_is_sent(line: Line) -> None:
    assert [line.channel.report(report(number), b"s") for number in (1, 2, 1)] == [1, 2, 1]
    assert [one.sequence for one in line.server.reports] == [1, 2]


def test_summaries_are_acknowledged_up_to_the_last(line: Line) -> None:
    assert line.channel.upload(b"x" * 16, [(3, b"three"), (4, b"four")]) == 4
    assert line.server.summaries == [(3, b"three"), (4, b"four")]


def test_a_check_in_tells_and_is_told(line: Line) -> None:
    line.server.training = "t1"
    assert line.channel.check_in(self_report().to_bytes()) == CheckIn("t1", 1)
    assert line.server.check_ins == [self_report().to_bytes()]


def test_hints_arrive_in_order_while_one_watches(line: Line) -> None:
    sent = [Hint.TRAINING, Hint.RELEASE, Hint.TRAINING]
    watching = line.channel.watch()
    greeting = [next(watching) for _ in line.greeting]
    for hint in sent:
        line.hint(hint)
    assert greeting + [next(watching) for _ in sent] == [*line.greeting, *sent]


def test_closing_ends_the_watch_and_every_call_after_it(line: Line) -> None:
    seen: list[Hint] = []
    watcher = threading.Thread(target=lambda: seen.extend(line.channel.watch()))
    watcher.start()
    line.hint(Hint.TRAINING)
    until(lambda: Hint.TRAINING in seen)
    line.channel.close()
    watcher.join(5)
    assert not watcher.is_alive()
    with pytest.raises(ChannelError):
        line.channel.report(report(1), b"s")


def test_a_server_that_goes_away_ends_the_watch(line: Line) -> None:
    watching = line.channel.watch()
    line.hint(Hint.TRAINING) if not line.greeting else next(watching)
    line.cut()
    with contextlib.suppress(ChannelError):  # with an error or without: it had time for a word
        assert list(watching) == ([] if line.greeting else [Hint.TRAINING])
    line.mend()


def test_a_server_that_is_away_is_an_error_until_it_is_back(line: Line) -> None:
    assert line.channel.report(report(1), b"s") == 1
    line.cut()
    for call in (
        lambda: line.channel.report(report(2), b"s"),
        lambda: line.channel.upload(b"x" * 16, [(1, b"one")]),
        lambda: line.channel.check_in(b""),
        lambda: next(line.channel.watch()),
    ):
        with pytest.raises(ChannelError):
            call()
    line.mend()

    def is_back() -> bool:
        try:
            return line.channel.report(report(2), b"s") == 2
        except ChannelError:
            return False

    until(is_back)
    assert [one.sequence for one in line.server.reports] == [1, 2]


def test_threads_may_share_a_channel(line: Line) -> None:
    threads = [
        threading.Thread(target=line.channel.report, args=(report(number), b"s"))
        for number in range(1, 9)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one.sequence for one in line.server.reports) == list(range(1, 9))


def test_a_server_of_another_authority_gets_nothing(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "ours") as ours, FakeServer(tmp_path / "theirs") as theirs:
        identity = Identity.load(ours.enrol(tmp_path / "device"))
        channel = GrpcChannel(f"127.0.0.1:{theirs.channel_port}", identity, agent="1")
        with pytest.raises(ChannelError, match="unavailable"):
            channel.report(report(1), b"s")
        channel.close()
        assert theirs.reports == []
