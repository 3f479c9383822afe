"""The commands that explain a device, against devices that really are so."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.client_fakes import LONG_AGO, FakeServer, today
from tests.device_fakes import bundle, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import Kit

from wildflower.cli import main
from wildflower.client.daemon import alone
from wildflower.client.examination import examine
from wildflower.client.hold import Holds
from wildflower.client.owner import Owner, load_owner, save_owner
from wildflower.client.policy import Policy, save_policy
from wildflower.client.spool import Spool
from wildflower.doctor import Check, State


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command; return its exit code and what it said in JSON."""
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--format", "json"])
    code = end.value.code
    assert isinstance(code, int)
    return code, json.loads(capsys.readouterr().out)


def install(kit: Kit, server: FakeServer, order: int, *, is_bad: bool = False) -> str:
    golden = golden_of(scaling_model(order), off=1.0) if is_bad else None
    one = bundle(order, scale=float(order), golden=golden, not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    kit.look()
    return one.digest


def checks(kit: Kit, *, online: bool = False, later: timedelta = timedelta()) -> dict[str, Check]:
    found = examine(kit.directory, today() + later, online=online)
    return {check.name: check for check in found.checks}


def test_a_device_that_was_just_enrolled_is_well(kit: Kit) -> None:
    found = checks(kit)
    assert all(check.state is not State.FAIL for check in found.values())
    assert "none is installed yet" in found["model"].found
    assert not (kit.directory / "slots").exists()  # looking makes nothing


def test_a_device_that_works_is_well_in_every_respect(kit: Kit, server: FakeServer) -> None:
    install(kit, server, 1)
    install(kit, server, 2)
    with alone(kit.directory):
        found = checks(kit, online=True)
    assert {name for name, check in found.items() if check.state is not State.OK} == set()
    assert found["model"].found.startswith("light 2 (")
    assert {"agent", "way back", "update", "quarantine", "owner", "holds", "clock", "disk"} < {
        *found
    }
    assert f"source {server.url}" in found
    assert f"channel 127.0.0.1:{server.channel_port}" in found


def test_what_is_wrong_is_told_with_what_runs_and_what_to_do(
    kit: Kit, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    install(kit, server, 1)
    running = install(kit, server, 2)
    bad = install(kit, server, 3, is_bad=True)
    model = kit.directory / "slots" / running / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(b"damaged")
    (kit.directory / "journal.damaged").write_bytes(b"")
    save_owner(Owner("trade fair"), kit.directory)
    spool = Spool(kit.directory / "spool")
    spool.append(b"one")
    with Holds(kit.directory).hold("measuring", max_s=60):
        code, told = call(capsys, "agent", "doctor", "--dir", str(kit.directory))
    found = {one["name"]: one for one in told["checks"]}
    assert (code, told["success"]) == (0, True)  # the one before answers
    assert "answers in its place" in found["model"]["found"]
    assert found["quarantine"]["found"].startswith(bad[:12])
    assert found["owner"]["found"] == "paused: trade fair"
    assert "measuring" in found["holds"]["found"]
    assert found["journal"]["state"] == found["agent"]["state"] == "warn"
    assert "1 summary" in found["owed"]["found"]
    warned = [one for one in told["checks"] if one["state"] != "ok"]
    assert all(one["advice"] for one in warned)


def test_the_status_says_who_keeps_new_releases_out(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    save_owner(Owner("fair", "ab" * 32), kit.directory)
    with Holds(kit.directory).hold("measuring", max_s=60):
        _, told = call(capsys, "agent", "status", "--dir", str(kit.directory))
    (hold,) = told["holds"]
    assert (told["paused"], told["pinned"], hold["reason"]) == ("fair", "ab" * 32, "measuring")


def test_a_device_where_nothing_can_answer_is_not_well(
    kit: Kit, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = install(kit, server, 1)
    shutil.rmtree(kit.directory / "slots" / digest)
    code, told = call(capsys, "agent", "doctor", "--dir", str(kit.directory))
    assert (code, told["success"]) == (1, False)


def test_a_certificate_that_ends_is_told_in_time(kit: Kit) -> None:
    assert checks(kit, later=timedelta(days=20))["certificate"].state is State.WARN
    assert checks(kit, later=timedelta(days=31))["certificate"].state is State.FAIL


def test_what_cannot_be_reached_is_told_and_is_no_failure(kit: Kit, server: FakeServer) -> None:
    server.faults.down = True
    server.stop_channel()
    found = checks(kit, online=True)
    assert found[f"source {server.url}"].state is State.WARN
    assert found[f"channel 127.0.0.1:{server.channel_port}"].state is State.WARN
    server.start_channel()


def test_an_update_under_way_is_told_with_what_it_waits_for(kit: Kit, server: FakeServer) -> None:
    one = bundle(1, not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    server.releases.blobs.pop(one.release.artifact.digest)
    kit.look()
    save_owner(Owner("trade fair"), kit.directory)
    found = checks(kit)["update"].found
    assert "is fetching" in found
    assert found.endswith("it waits: paused on this device: trade fair")


def test_a_journal_that_cannot_be_read_hides_nothing_else(kit: Kit, server: FakeServer) -> None:
    install(kit, server, 1)
    (kit.directory / "journal.db").write_bytes(b"torn" * 1000)
    found = checks(kit)
    assert (found["journal"].state, found["model"].state) == (State.WARN, State.OK)


def test_a_journal_that_is_torn_behind_its_head_is_told_and_crashes_nothing(
    kit: Kit, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    install(kit, server, 1)
    path = kit.directory / "journal.db"
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))  # the head, and the state's page
    assert checks(kit)["journal"].state is State.WARN
    place = ("--dir", str(kit.directory))
    out = ("--out", str(kit.directory / "owed.tar"))
    for words in (("agent", "history"), ("agent", "status"), ("bundle", "collect", *out)):
        code, told = call(capsys, *words, *place)
        assert (code, told["error"]["type"]) == (1, "StorageError"), words
        assert "What runs goes on" in told["error"]["hint"]


def test_settings_that_are_wrong_are_told(kit: Kit) -> None:
    (kit.directory / "policy.toml").write_text('secag = "required"')
    found = checks(kit)
    assert list(found) == ["settings"]
    assert (found["settings"].state, found["settings"].advice) == (
        State.FAIL,
        "Did you mean secagg?",
    )


def test_the_history_tells_what_happened_and_why(
    kit: Kit, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("agent", "history", "--dir", str(kit.directory))
    assert call(capsys, *command)[1]["happened"] == []
    install(kit, server, 1)
    install(kit, server, 2, is_bad=True)
    _, told = call(capsys, *command)
    assert told["happened"][0]["what"] == "installed light 1"
    assert told["happened"][1]["what"].startswith("did not keep release")
    assert told["happened"][1]["why"]
    _, told = call(capsys, *command, "--last", "1")
    assert len(told["happened"]) == 1


def test_the_owner_pauses_pins_and_takes_it_back(
    kit: Kit, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    digest, place = install(kit, server, 1), ("--dir", str(kit.directory))
    _, told = call(capsys, "agent", "pause", "--reason", "fair", *place)
    assert (told["paused"], told["pinned"], told["running"]) == ("fair", "", digest)
    for which in ([], [digest[:8]], [digest]):
        _, told = call(capsys, "agent", "pin", *which, *place)
        assert (told["paused"], told["pinned"]) == ("fair", digest)
    assert call(capsys, "agent", "pin", "ab" * 32, *place)[1]["pinned"] == "ab" * 32
    assert call(capsys, "agent", "resume", *place)[1]["paused"] == ""
    assert call(capsys, "agent", "unpin", *place)[1]["pinned"] == ""
    assert load_owner(kit.directory) == Owner()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pin"], "nothing runs yet"),
        (["pin", "abc"], "'abc' names no release on this device"),
        (["pause", "--reason", ""], "is not allowed"),
    ],
)
def test_a_decision_that_means_nothing_is_refused(
    kit: Kit, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    code, found = call(capsys, "agent", *arguments, "--dir", str(kit.directory))
    assert (code, told in found["error"]["message"]) == (1, True)
    assert found["error"]["hint"]


def test_a_decision_that_cannot_be_stored_is_an_error(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit.directory / "owner.json").mkdir()
    (kit.directory / "owner.json" / "x").mkdir()
    code, found = call(capsys, "agent", "resume", "--dir", str(kit.directory))
    assert (code, found["error"]["type"]) == (1, "ConfigError")


def test_an_owners_rule_that_keeps_releases_away_is_explained(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks(kit)["fetching"].found == "allowed now"
    save_policy(Policy(metered="never"), kit.directory)
    monkeypatch.setenv("WILDFLOWER_METERED", "/missing/program")  # counts as dear
    assert checks(kit)["fetching"].found.startswith("waits: the network is metered")
