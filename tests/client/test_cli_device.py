"""The commands of a device: enroll, agent status, agent run."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client_fakes import LONG_AGO, FakeServer, until
from tests.device_fakes import bundle, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import Kit

from wildflower.cli import main
from wildflower.client.config import load_config
from wildflower.client.policy import Policy, load_policy


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command; return its exit code and what it said in JSON."""
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--format", "json"])
    code = end.value.code
    assert isinstance(code, int)
    return code, json.loads(capsys.readouterr().out)


def test_a_device_is_enrolled_with_what_its_owner_says(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "device"
    code, told = call(
        capsys, "device", "enroll", server.token(), "--dir", str(directory), "--name", "kitchen",
        "--device-class", "linux-generic", "--app", "task.py", "--data", "mine.npz",
        "--source", "http://one", "--source", "http://two", "--accept", "approved", "--allow-plain",
    )  # fmt: skip
    config = load_config(directory)
    assert (code, told["success"], told["device_id"]) == (0, True, config.device_id)
    assert (config.name, config.app, config.sources) == (
        "kitchen",
        "task.py",
        ("http://one", "http://two"),
    )
    assert config.data == str(Path("mine.npz").absolute())
    assert load_policy(directory) == Policy("allowed", ("approved",))


def test_a_device_is_cautious_and_has_its_hosts_name_by_default(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "device"
    code, told = call(capsys, "device", "enroll", server.token(), "--dir", str(directory))
    assert (code, told["name"]) == (0, os.uname().nodename)
    assert load_policy(directory) == Policy("required", ("auto",))


def test_a_wrong_token_is_told_with_its_kind_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = call(capsys, "device", "enroll", "wf1.nonsense", "--dir", str(tmp_path / "d"))
    assert (code, told["success"], told["error"]["type"]) == (1, False, "JoinTokenError")
    assert "device invite" in told["error"]["hint"]
    assert not (tmp_path / "d").exists()


def test_the_status_of_a_device_that_never_ran(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = server.enrol(tmp_path / "device")
    code, told = call(capsys, "agent", "status", "--dir", str(directory))
    assert (code, told["phase"], told["reports"]) == (0, "not started", [])


def test_the_status_tells_reports_refusals_and_quarantine(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = Kit(server.enrol(tmp_path / "device"))
    good = bundle(1, not_before=LONG_AGO)
    evil = bundle(2, golden=golden_of(scaling_model(1.0), off=1.0), not_before=LONG_AGO)
    for one in (good, evil, good):
        if one is not good or not kit.running:
            server.releases.publish(one)
        server.releases.roll_out(one)
        kit.look()
    broken = bundle(3, scale=3.0, not_before=LONG_AGO)
    server.releases.publish(broken)
    server.releases.roll_out(broken)
    server.faults.flipped.add(broken.release.artifact.digest)
    kit.look()
    code, told = call(capsys, "agent", "status", "--dir", str(kit.directory), "--last", "2")
    assert code == 0
    assert [one["outcome"] for one in told["reports"]] == ["committed", "rolled-back"]
    assert {one["outcome"] for one in told["refusals"]} == {"refused"}
    assert [one["release"] for one in told["quarantine"]] == [evil.digest]
    assert told["unsent_reports"] >= 3


def test_the_status_of_what_is_no_device_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = call(capsys, "agent", "status", "--dir", str(tmp_path))
    assert (code, told["error"]["type"]) == (1, "ConfigError")
    assert "device enroll" in told["error"]["hint"]


def test_an_agent_runs_in_the_foreground_until_it_is_told_to_end(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = server.enrol(tmp_path / "device")

    def stop_when_connected() -> None:
        until(lambda: server.watchers == 1)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop_when_connected)
    stopper.start()
    code, told = call(capsys, "agent", "run", "--dir", str(directory))
    stopper.join()
    assert (code, told) == (0, {"success": True})
    code, told = call(capsys, "agent", "status", "--dir", str(directory))
    assert told["phase"] == "idle"
