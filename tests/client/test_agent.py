"""The agent's loop: what it does when, and what it does when it cannot."""

import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.client_fakes import LONG_AGO, FakeServer, MemoryChannel, until
from tests.device_fakes import NOON, bundle
from tests.update_fakes import Kit

from wildflower.client.agent import LONGEST_WAIT_S, Agent, Due, status_of
from wildflower.client.channel import Hint
from wildflower.client.config import load_config
from wildflower.client.hold import Holds
from wildflower.client.identity import Identity
from wildflower.client.notify import Notifier
from wildflower.client.owner import Owner, save_owner
from wildflower.client.spool import Spool
from wildflower.client.training_child import TrainingProcess
from wildflower.client.updates import Updates
from wildflower.ota.device.profile import SelfReport
from wildflower.ota.device.report import DeviceReport, Outcome

WAITS = (sys.executable, "-c", "import threading; threading.Event().wait()")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device", app="task.py", poll_s=600.0, upload_s=600.0))


def make(kit: Kit, updates: Updates, channel: MemoryChannel) -> Agent:
    return Agent(
        config=load_config(kit.directory),
        identity=Identity.load(kit.directory),
        channel=channel,
        updates=updates,
        spool=Spool(kit.directory / "spool"),
        training=TrainingProcess(kit.directory, WAITS),
        now=kit.system,
        stop=threading.Event(),
        random=Random(1),
    )


@contextmanager
def running(kit: Kit, channel: MemoryChannel) -> Iterator[Agent]:
    """Run an agent in a thread, as the daemon does."""
    with kit.wired() as updates:
        agent = make(kit, updates, channel)
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield agent
        finally:
            assert isinstance(agent.stop, threading.Event)
            agent.stop.set()
            agent.hints.put(Hint.HEARTBEAT)
            channel.close()
            thread.join(10)
            agent.training.end()
            assert not thread.is_alive()


def offer(server: FakeServer, order: int) -> str:
    one = bundle(order, scale=float(order), not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    return one.digest


def test_what_is_rolled_out_is_installed_and_reported_with_the_devices_signature(
    kit: Kit, server: FakeServer
) -> None:
    digest, channel = offer(server, 1), MemoryChannel()
    with running(kit, channel) as agent:
        until(lambda: bool(channel.reports))
        assert kit.running == digest
        (report,) = channel.reports
        key = agent.identity.private_key.public_key()
        key.verify(channel.signatures[0], report.to_bytes(), ec.ECDSA(hashes.SHA256()))
        until(lambda: agent.updates.journal.reports(unsent=True) == [])
    assert (report.device_id, report.sequence) == (agent.identity.device_id, 1)
    assert (report.outcome, report.release) == (Outcome.COMMITTED, digest)


def test_a_hint_makes_it_look_at_once(kit: Kit, server: FakeServer) -> None:
    channel = MemoryChannel()
    with running(kit, channel):
        until(lambda: "phase" in status_of(kit.directory))
        digest = offer(server, 1)
        channel.hint(Hint.HEARTBEAT)
        channel.hint(Hint.RELEASE)
        until(lambda: kit.running == digest)


def test_an_agent_without_hints_looks_by_itself(server: FakeServer, tmp_path: Path) -> None:
    kit = Kit(server.enrol(tmp_path / "often", poll_s=0.1, upload_s=600.0))
    with running(kit, MemoryChannel()):
        until(lambda: "phase" in status_of(kit.directory))
        digest = offer(server, 1)
        until(lambda: kit.running == digest)


def test_what_cannot_be_delivered_is_tried_again_soon_and_without_a_hint(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wildflower.client.agent.RETRY_S", 0.2)
    digest, channel = offer(server, 1), MemoryChannel()
    channel.is_down = True
    with running(kit, channel) as agent:
        agent.spool.append(b"summary")
        until(lambda: status_of(kit.directory).get("release") == digest)  # told after it failed
        assert (channel.reports, channel.summaries) == ([], [])
        channel.is_down = False
        until(lambda: bool(channel.reports and channel.summaries))


def test_an_agent_without_its_repository_goes_on_with_everything_else(
    kit: Kit, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.down = True
    channel = MemoryChannel()
    with running(kit, channel) as agent:
        agent.spool.append(b"summary")
        until(lambda: len(channel.summaries) == 1)
        assert "FetchError" in caplog.text


def test_a_check_in_says_what_the_device_is(kit: Kit) -> None:
    channel = MemoryChannel()
    with running(kit, channel):
        until(lambda: bool(channel.check_ins))
    assert SelfReport.from_bytes(channel.check_ins[0]).wanted_class == "linux-generic"


def test_a_check_in_says_who_keeps_new_releases_out(kit: Kit) -> None:
    channel = MemoryChannel()
    save_owner(Owner("trade fair", "ab" * 32), kit.directory)
    with Holds(kit.directory).hold("measuring", max_s=60), running(kit, channel):
        until(lambda: bool(channel.check_ins))
    paused, pinned, held = SelfReport.from_bytes(channel.check_ins[0]).holds
    assert (paused, pinned) == ("paused: trade fair", "pinned to abababababab")
    assert held.endswith("more: measuring")


def test_what_waits_for_an_application_goes_on_soon_after_its_hold(
    kit: Kit, server: FakeServer
) -> None:
    digest, channel = offer(server, 1), MemoryChannel()
    hold = Holds(kit.directory).take("measuring", max_s=600)
    with running(kit, channel):
        until(lambda: "measuring" in str(status_of(kit.directory).get("waiting", "")))
        assert kit.running == ""
        hold.release()
        until(lambda: kit.running == digest)  # without a hint; it looks every ten minutes
        until(lambda: status_of(kit.directory)["waiting"] == "")


def test_the_watchdog_is_fed_while_the_loop_turns_and_not_when_it_hangs(
    kit: Kit, tmp_path: Path
) -> None:
    class Hanging(MemoryChannel):
        def __init__(self) -> None:
            super().__init__()
            self.hangs, self.may_go_on = threading.Event(), threading.Event()

        def upload(self, stream: bytes, summaries: Sequence[tuple[int, bytes]]) -> int:
            self.hangs.set()
            self.may_go_on.wait(10)
            return super().upload(stream, summaries)

    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(10)
    channel = Hanging()
    with closing(manager), kit.wired() as updates:
        agent = make(kit, updates, channel)
        agent.config = replace(agent.config, upload_s=0.3)
        agent.notifier = Notifier(str(tmp_path / "notify"), 0.08)
        thread = threading.Thread(target=agent.run)
        thread.start()
        assert manager.recv(4096) == b"READY=1"
        fed = 0
        while fed < 5:
            fed += manager.recv(4096) == b"WATCHDOG=1"
        agent.spool.append(b"one")
        assert channel.hangs.wait(10)
        manager.setblocking(False)
        with suppress(BlockingIOError):
            while manager.recv(4096):
                pass
        manager.settimeout(0.3)  # nearly four periods
        with pytest.raises(TimeoutError):
            manager.recv(4096)
        assert isinstance(agent.stop, threading.Event)
        agent.stop.set()
        channel.may_go_on.set()
        channel.close()
        thread.join(10)
        assert not thread.is_alive()


def test_an_invitation_starts_one_training_process(kit: Kit) -> None:
    channel = MemoryChannel()
    with running(kit, channel) as agent:
        channel.hint(Hint.TRAINING)
        until(lambda: agent.training.is_running)
        first = agent.training._child
        channel.hint(Hint.TRAINING)
        channel.hint(Hint.RELEASE)
        until(lambda: status_of(kit.directory).get("training") is True)
        assert agent.training._child is first
    assert not agent.training.is_running


def test_a_device_that_is_rarely_online_is_invited_at_its_check_in(kit: Kit) -> None:
    channel = MemoryChannel()
    channel.training = "t1"
    with running(kit, channel) as agent:
        until(lambda: agent.training.is_running)


def test_a_device_that_trains_nothing_starts_nothing(server: FakeServer, tmp_path: Path) -> None:
    kit, channel = Kit(server.enrol(tmp_path / "idle", poll_s=600.0)), MemoryChannel()
    with running(kit, channel) as agent:
        channel.hint(Hint.TRAINING)
        channel.hint(Hint.HEARTBEAT)
        until(agent.hints.empty)
        until(lambda: bool(channel.check_ins))
        assert agent.training._child is None


def test_an_agent_that_ends_remembers_that_it_was_told_to(kit: Kit) -> None:
    with running(kit, MemoryChannel()):
        until(lambda: "phase" in status_of(kit.directory))
    with kit.wired() as updates:
        assert updates.journal.fact("ended") == "cleanly"


def test_reports_are_sent_again_until_they_are_acknowledged_and_are_the_same_bytes(
    kit: Kit,
) -> None:
    class Deaf(MemoryChannel):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[bytes] = []

        def report(self, document: bytes, signature: bytes) -> int:
            self.heard.append(document)
            if len(self.heard) < 3:
                self.is_down = True
            return super().report(document, signature)

    channel = Deaf()
    with kit.wired() as updates:
        updates.journal.queue(
            "a", Outcome.FAILED, rollout="r", release="ab", running="", reason="why", at=NOON
        )
        agent = make(kit, updates, channel)
        for _ in range(4):
            agent._guarded(agent.send_reports)
            channel.is_down = False
        assert updates.journal.reports(unsent=True) == []
    assert len(set(channel.heard)) == 1
    assert len(channel.heard) == 3
    assert [DeviceReport.from_bytes(channel.heard[0])] == channel.reports


@dataclass
class Waits:
    """A `Stop` that waits for nobody and remembers for how long it should have."""

    rounds: int
    seconds: list[float] = field(default_factory=list)

    def is_set(self) -> bool:
        return len(self.seconds) >= self.rounds

    def wait(self, timeout: float) -> bool:
        self.seconds.append(timeout)
        return self.is_set()


def test_reconnecting_waits_with_full_jitter_and_a_doubling_bound(kit: Kit) -> None:
    channel = MemoryChannel()
    channel.is_down = True
    with kit.wired() as updates:
        agent = make(kit, updates, channel)
        agent.stop = waits = Waits(rounds=200)
        agent.watch()
    bounds = [min(LONGEST_WAIT_S, 0.5 * 2**n) for n in range(200)]
    assert all(0 <= s <= bound for s, bound in zip(waits.seconds, bounds, strict=True))
    late = waits.seconds[10:]
    assert min(late) < LONGEST_WAIT_S / 10
    assert max(late) > LONGEST_WAIT_S * 0.9


def test_a_connection_that_held_is_opened_again_soon(kit: Kit) -> None:
    class Flapping(MemoryChannel):
        def watch(self) -> Iterator[Hint]:
            yield Hint.HEARTBEAT

    with kit.wired() as updates:
        agent = make(kit, updates, Flapping())
        agent.stop = waits = Waits(rounds=50)
        agent.watch()
    assert max(waits.seconds) <= 0.5


def test_what_recurs_is_due_once_in_its_period() -> None:
    due = Due(10.0)
    assert [due.is_due(now) for now in (0.0, 9.9, 10.0, 15.0, 25.0)] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_a_status_that_cannot_be_written_stops_nothing(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    (kit.directory / "agent.status.partial").mkdir()
    with kit.wired() as updates:
        make(kit, updates, MemoryChannel()).write_status()
    assert "status not written" in caplog.text


def test_a_status_that_is_none_is_empty(tmp_path: Path) -> None:
    assert status_of(tmp_path) == {}
    for text in ("[1]", "{", '"x"'):
        (tmp_path / "agent.status.json").write_text(text)
        assert status_of(tmp_path) == {}


def test_the_status_tells_what_runs(kit: Kit, server: FakeServer) -> None:
    digest = offer(server, 1)
    kit.look()
    with kit.wired() as updates:
        make(kit, updates, MemoryChannel()).write_status()
    status = json.loads((kit.directory / "agent.status.json").read_text())
    assert (status["phase"], status["release"], status["order"]) == ("idle", digest, 1)
    assert (status["training"], status["damaged"]) == (False, False)
