"""Probation from end to end: real TLS, real slots, real checks, real restarts."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.client_fakes import FakeServer
from tests.device_fakes import Bundle, bundle
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.ota.device.machine import Phase
from wildflower.ota.device.slots import Slots
from wildflower.ota.rollout.document import Order

TRIAL = replace(bundle().release.trial, probation_s=600)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


@pytest.fixture
def first(kit: Kit, server: FakeServer) -> Bundle:
    """What runs for good."""
    one = offer(server, 1)
    kit.look()
    return one


@pytest.fixture
def second(kit: Kit, server: FakeServer, first: Bundle) -> Bundle:
    """What begins its probation of ten minutes."""
    one = offer(server, 2, trial=TRIAL)
    check(kit, "exit 0")
    kit.look()
    assert (kit.running, phase(kit)) == (one.digest, Phase.PROBATION)
    return one


def check(kit: Kit, script: str) -> None:
    path = kit.directory / "check"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    kit.changes = {"health_check": "check"}


def phase(kit: Kit) -> Phase:
    with kit.wired() as updates:
        return updates.journal.load().phase


def test_a_healthy_release_is_committed_after_its_time(
    kit: Kit, server: FakeServer, second: Bundle
) -> None:
    asked = blobs_asked(server)
    with kit.on() as updates:
        for _ in range(5):
            updates.look()
            assert (kit.running, len(kit.told())) == (second.digest, 1)
            kit.steady_s += 120
        assert updates.journal.highest_order(updates.group) == 1
        kit.steady_s += 60
        updates.look()
        assert updates.journal.highest_order(updates.group) == 2
    assert kit.told()[1:] == [("committed", "")]
    assert (phase(kit), blobs_asked(server)) == (Phase.IDLE, asked)


def test_a_device_that_does_badly_takes_the_release_before_and_never_this_one_again(
    kit: Kit, server: FakeServer, first: Bundle, second: Bundle
) -> None:
    check(kit, "echo the pump is off; exit 1")
    reason = "on probation: the health check ended with 1: the pump is off"
    kit.look()
    assert kit.running == first.digest
    assert kit.told()[1:] == [("rolled-back", reason)]
    kit.late = timedelta(hours=20)
    asked = blobs_asked(server)
    kit.look()
    assert (kit.running, blobs_asked(server)) == (first.digest, asked)
    assert not (kit.directory / "slots" / second.digest).exists()


def test_it_is_rolled_back_without_a_network_too(
    kit: Kit, server: FakeServer, first: Bundle, second: Bundle
) -> None:
    check(kit, "exit 1")
    kit.changes |= {"endpoints_device": "https://127.0.0.1:9"}
    with kit.on():  # what it owes is done before anything is asked of a server
        assert kit.running == first.digest


def test_crashes_on_probation_bring_the_release_before_back(
    kit: Kit, first: Bundle, second: Bundle
) -> None:
    for _ in range(5):  # the first begins after an end in good order
        assert kit.running == second.digest
        with kit.on(cleanly=False):
            pass
    assert kit.running == first.digest
    reason = "the agent went down on probation, 4 times without progress"
    assert kit.told()[1:] == [("rolled-back", reason)]


def test_ending_in_good_order_is_no_crash(kit: Kit, second: Bundle) -> None:
    for _ in range(8):
        kit.look()
    assert (kit.running, phase(kit)) == (second.digest, Phase.PROBATION)


def test_without_a_decision_by_the_deadline_the_release_before_comes_back(
    kit: Kit, first: Bundle, second: Bundle
) -> None:
    kit.late = timedelta(days=2)
    with kit.on() as updates:
        assert kit.running == first.digest
        assert updates.journal.quarantined() == {}  # nothing said that it is bad:
        assert updates.journal.setbacks()[second.digest].count == 1  # it has another chance
    reason = "no decision on probation in time: found 0 healthy seconds, expected 600"
    assert kit.told()[1:] == [("failed", reason)]


def test_an_order_back_is_heard_on_probation(
    kit: Kit, server: FakeServer, first: Bundle, second: Bundle
) -> None:
    server.releases.roll_out(second, order=Order.ROLL_BACK, rollout="back")
    kit.look()
    assert kit.running == first.digest
    assert kit.told()[1:] == [("rolled-back", "ordered back by rollout back")]


def test_the_first_release_of_a_device_stays_where_nothing_else_could_run(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1, trial=TRIAL)
    check(kit, "exit 1")
    kit.look()
    assert kit.running == one.digest  # a device is never switched off
    assert Slots(kit.directory / "slots").is_complete(one.release)
    assert [outcome for outcome, _ in kit.told()] == ["rolled-back"]
