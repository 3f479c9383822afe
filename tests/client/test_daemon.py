"""The agent as a real process, against a real server on loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.client_fakes import LONG_AGO, FakeServer, until
from tests.device_fakes import Bundle, bundle

from wildflower.client import daemon
from wildflower.client.config import load_config
from wildflower.client.daemon import alone, clock, run_daemon
from wildflower.client.errors import AgentError, ConfigError
from wildflower.ota import canonical
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots

COMMAND = [sys.executable, "-m", "wildflower.client.daemon", "--dir"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def directory(server: FakeServer, tmp_path: Path) -> Path:
    return server.enrol(tmp_path / "device")


@contextmanager
def started(directory: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start an agent; whatever happens in the block, none is left."""
    log = (directory / "log").open("a")
    with log, subprocess.Popen([*COMMAND, str(directory), *more], stderr=log, text=True) as agent:
        try:
            yield agent
        finally:
            agent.kill()


def ends(agent: "subprocess.Popen[str]") -> float:
    """Tell an agent to end; return the seconds that it took."""
    began = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 0
    return time.monotonic() - began


def offer(server: FakeServer, order: int) -> Bundle:
    one = bundle(order, scale=float(order), not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    return one


def running(directory: Path) -> str:
    return Slots(directory / "slots").running()


def test_an_agent_installs_reports_and_ends_within_two_seconds(
    server: FakeServer, directory: Path
) -> None:
    one = offer(server, 1)
    with started(directory) as agent:
        until(lambda: bool(server.reports))
        assert ends(agent) < 2.0
    assert running(directory) == one.digest == server.reports[0].release
    log = (directory / "log").read_text()
    assert "agent started" in log
    assert "agent ended" in log
    assert "PRIVATE" not in log


def test_a_hint_over_the_wire_brings_the_next_release(server: FakeServer, directory: Path) -> None:
    with started(directory) as agent:
        until(lambda: server.watchers == 1)
        one = offer(server, 1)
        server.hint(1 + 1)  # type: ignore[arg-type]  # KIND_RELEASE
        until(lambda: running(directory) == one.digest)
        ends(agent)


def test_an_agent_survives_a_restart_of_its_server(server: FakeServer, directory: Path) -> None:
    with started(directory) as agent:
        until(lambda: server.watchers == 1)
        server.stop_channel()
        offer(server, 1)
        until(lambda: running(directory) != "")
        server.start_channel()
        until(lambda: bool(server.reports) and server.watchers == 1)
        ends(agent)


def test_an_agent_that_is_killed_goes_on_where_it_was(server: FakeServer, directory: Path) -> None:
    one = offer(server, 1)
    server.releases.blobs.pop(one.release.file("golden").digest)
    model = directory / "downloads" / one.release.artifact.digest
    with started(directory) as agent:
        until(model.exists)
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
    server.releases.blobs |= one.blobs
    with started(directory) as agent:
        until(lambda: bool(server.reports))
        ends(agent)
    assert sum(path.endswith(one.release.artifact.digest) for path in server.asked) == 1
    assert [report.outcome for report in server.reports] == ["committed"]


def test_a_second_agent_in_the_directory_is_refused(server: FakeServer, directory: Path) -> None:
    with started(directory) as agent:
        until(lambda: server.watchers == 1)
        second = subprocess.run(
            [*COMMAND, str(directory)], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert "an agent already runs in" in second.stderr
        assert "Traceback" not in second.stderr
        assert agent.poll() is None
        ends(agent)


def test_an_agent_that_waits_for_a_silent_source_ends_all_the_same(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        toml = directory / "agent.toml"
        source = f"http://127.0.0.1:{silent.getsockname()[1]}"
        text = re.sub(r"^sources = .*$", f'sources = ["{source}"]', toml.read_text(), flags=re.M)
        toml.write_text(text)
        with started(directory) as agent:
            connection, _ = silent.accept()
            assert ends(agent) < 2.0
            connection.close()


def test_log_lines_are_json_if_asked_for(server: FakeServer, directory: Path) -> None:
    with started(directory, "--log-format", "json") as agent:
        until(lambda: server.watchers == 1)
        ends(agent)
    assert '"message": "agent started"' in (directory / "log").read_text()


def test_the_end_is_in_order_in_this_process_too(server: FakeServer, directory: Path) -> None:
    offer(server, 1)
    before = signal.getsignal(signal.SIGTERM)

    def stop_when_reported() -> None:
        until(lambda: bool(server.reports))
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_reported)
    stopper.start()
    run_daemon(directory)
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) is before
    with alone(directory):
        pass  # the lock was given back


def test_a_directory_that_cannot_be_locked_is_told(directory: Path) -> None:
    (directory / ".lock").mkdir()
    with pytest.raises(AgentError, match="cannot be opened: Is a directory"), alone(directory):
        pass


def test_what_the_agent_does_not_expect_ends_it_with_the_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("wildflower.client.agent.Agent.run", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run_daemon(directory)


@pytest.mark.parametrize(("arguments", "code"), [(["--dir", "none"], 1)])
def test_a_directory_that_is_no_device_is_one_line(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["daemon", *arguments])
    monkeypatch.setattr(daemon, "configure_logging", lambda *_, **__: None)
    assert daemon.main() == code


def test_settings_that_are_wrong_keep_the_agent_from_starting(directory: Path) -> None:
    policy = directory / "policy.toml"
    policy.write_text('secag = "required"')
    with pytest.raises(ConfigError, match="unknown key secag"):
        run_daemon(directory)
    with alone(directory):
        pass


def test_a_directory_is_held_by_one(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(AgentError, match="already runs"), alone(tmp_path):
        pass


def test_the_clock_never_goes_back_behind_a_time_that_was_signed(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.db", now=datetime.now(UTC))
    now = clock(journal)
    assert abs(now() - datetime.now(UTC)) < timedelta(seconds=5)
    seen = datetime.now(UTC) + timedelta(days=3)
    journal.set_fact("seen-time", canonical.to_time(seen))
    assert now() == seen
    journal.set_fact("seen-time", "noon")
    assert abs(now() - datetime.now(UTC)) < timedelta(seconds=5)
    journal.close()


def test_the_service_manager_is_told_from_the_start_to_the_end(
    server: FakeServer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        with started(directory) as agent:
            told = [manager.recv(4096)]
            while told.count(b"WATCHDOG=1") < 4 or not any(b"STATUS=" in one for one in told):
                told.append(manager.recv(4096))
            ends(agent)
            while told[-1] != b"STOPPING=1":
                told.append(manager.recv(4096))
    assert told[0] == b"READY=1"
    assert b"STATUS=nothing is under way, runs nothing" in told


HEAVY = ("torch", "flwr", "onnx", "sqlmodel", "typer", "rich", "pydantic")


def test_the_daemon_loads_nothing_that_only_training_servers_or_commands_need() -> None:
    code = (
        "import sys, wildflower.client.daemon;"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_settings_of_an_enrolled_device_are_those_it_runs_with(directory: Path) -> None:
    config = load_config(directory)
    assert (config.poll_s, config.upload_s, config.model) == (0.2, 0.2, "")
