"""The line to the service manager, against a socket of the test's own."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from wildflower.client.daemon import watched_stop, watched_wait
from wildflower.client.notify import Notifier


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as found:
        found.bind(str(tmp_path / "notify"))
        found.setblocking(False)
        yield found


def told(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_the_manager_is_told_in_the_words_of_systemd(manager: socket.socket) -> None:
    line = Notifier(manager.getsockname(), 40.0, Clock())
    line.ready()
    line.status("idle,\n runs  ab")
    line.stopping()
    assert told(manager) == ["READY=1", "WATCHDOG=1", "STATUS=idle, runs ab", "STOPPING=1"]


def test_the_watchdog_is_fed_four_times_in_its_period_and_no_more(manager: socket.socket) -> None:
    clock = Clock()
    line = Notifier(manager.getsockname(), 40.0, clock)
    assert line.longest_wait_s == 10.0
    for _ in range(40):
        line.beat()
        clock.at += 1.0
    assert told(manager) == ["WATCHDOG=1"] * 4


def test_a_status_is_told_once_and_in_a_line(manager: socket.socket) -> None:
    line = Notifier(manager.getsockname())
    for text in ("a", "a", "b" * 500, "a"):
        line.status(text)
    assert told(manager) == ["STATUS=a", f"STATUS={'b' * 200}", "STATUS=a"]


def test_an_abstract_socket_is_found(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(f"\0wildflower-test-{tmp_path.name}-{id(manager)}")
        manager.settimeout(10)
        Notifier("@" + manager.getsockname()[1:].decode()).ready()
        assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    for line in (Notifier(), Notifier(str(tmp_path / "gone"), 1.0)):
        line.ready()
        line.beat()
        line.status("idle")
        line.stopping()


@pytest.mark.parametrize(
    ("environment", "wait_s"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "8000000"}, 2.0),
        ({"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "7"}, 2.0),
        ({"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "8"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(
    manager: socket.socket, environment: dict[str, str], wait_s: float
) -> None:
    environment = environment | {"NOTIFY_SOCKET": manager.getsockname()}
    line = Notifier.from_environment(environment, 7)
    assert line.longest_wait_s == wait_s
    line.beat()
    assert told(manager) == ([] if math.isinf(wait_s) else ["WATCHDOG=1"])


def test_a_manager_that_does_not_read_stops_nobody(manager: socket.socket) -> None:
    line = Notifier(manager.getsockname(), 1.0)
    for number in range(1000):
        line.status(str(number))
    assert told(manager)


def test_long_work_that_gets_ahead_feeds_the_watchdog(manager: socket.socket) -> None:
    clock, stop = Clock(), threading.Event()
    should_stop = watched_stop(stop, Notifier(manager.getsockname(), 40.0, clock))
    assert not should_stop()
    clock.at += 10
    stop.set()
    assert should_stop()
    assert told(manager) == ["WATCHDOG=1"] * 2


def test_a_wait_feeds_the_watchdog_and_ends_when_told_to(manager: socket.socket) -> None:
    stop = threading.Event()
    wait = watched_wait(stop, Notifier(manager.getsockname(), 0.1))
    assert not wait(0.12)
    assert told(manager).count("WATCHDOG=1") >= 2
    stop.set()
    assert wait(3600.0)
