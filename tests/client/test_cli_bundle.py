"""`wildflower bundle` from the server to a device and back, as two people type it."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.client_fakes import FakeServer, today
from tests.device_fakes import GROUP, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import offer

from wildflower.cli import main
from wildflower.client.config import load_config
from wildflower.client.identity import Identity
from wildflower.client.spool import Spool
from wildflower.ota.device.profile import SelfReport
from wildflower.ota.observe.baseline import Shape
from wildflower.ota.observe.summary import Summary
from wildflower.server.blobs import BlobStore
from wildflower.server.records import Artifact, Device, Report, StoredSummary
from wildflower.server.settings import Settings, load_settings
from wildflower.server.sql import SqlStore

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
REPORT = SelfReport("x86_64", (), 2**30, 2**30, "0.1", {"onnxruntime": "1.20"})
Say = Callable[..., dict[str, Any]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        Settings(directory=found.releases.directory).write(found.releases.directory)
        yield found


@pytest.fixture
def device(server: FakeServer, tmp_path: Path) -> Path:
    """Enrol a device, which the server's database knows."""
    directory = server.enrol(tmp_path / "device")
    config, identity = load_config(directory), Identity.load(directory)
    known = Device(
        device_id=config.device_id,
        name="field",
        public_key=identity.public_key_pem,
        certificate=identity.certificate_pem.decode(),
        device_class=config.device_class,
        ring="default",
        node_id=1,
        self_report=REPORT.to_bytes(),
        enrolled_at=today(),
        last_seen=today(),
    )
    with database(server) as store:
        store.put(known)
    return directory


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def typed(*words: str | Path, code: int = 0) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            main([*map(str, words), "--format", "json"])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert end.value.code == code, answer
        if "error" not in answer:
            schema = SCHEMAS / f"{words[0]}-{words[1]}.json"
            jsonschema.validate(answer, json.loads(schema.read_text()))
        return answer

    return typed


def database(server: FakeServer) -> SqlStore:
    return SqlStore.open(load_settings(server.releases.directory).database_url)


def export(server: FakeServer, say: Say, out: Path, *more: str) -> dict[str, Any]:
    blobs = BlobStore(load_settings(server.releases.directory).blobs_path)
    for data in server.releases.blobs.values():
        blobs.put(data)
    directory = server.releases.directory
    return say("bundle", "export", "--group", GROUP, "--out", out, "--dir", directory, *more)


def test_a_release_goes_out_and_its_report_comes_back_once(
    server: FakeServer, device: Path, say: Say, tmp_path: Path
) -> None:
    one = offer(server, 1)
    stick, back = tmp_path / "stick.tar", tmp_path / "back.tar"
    exported = export(server, say, stick)
    assert (exported["release"], exported["size"]) == (one.digest, stick.stat().st_size)
    good = datetime.fromisoformat(exported["good_until"]) - today()
    assert timedelta(hours=20) < good <= timedelta(days=1)  # as long as the fake's rollout metadata

    applied = say("bundle", "apply", stick, "--dir", device)
    assert (applied["running"], applied["outcomes"]) == (one.digest, ["committed"])

    artifact = one.release.artifact.digest
    summary = Summary.zero(artifact, "b1" * 32, Shape(classes=2, bins=())).to_bytes()
    Spool(device / "spool").append(summary)
    collected = say("bundle", "collect", "--out", back, "--dir", device)
    assert (collected["reports"], collected["summaries"]) == (1, 1)

    with database(server) as store:
        store.put(Artifact(artifact, "m", "linux-generic", "fp32", "m", 1, "g", True, today()))
    where = ("--dir", server.releases.directory)
    first = say("bundle", "import", back, *where)
    assert (first["name"], first["reports"], first["summaries"], first["known"]) == (
        "field",
        1,
        1,
        0,
    )
    again = say("bundle", "import", back, *where)
    assert (again["reports"], again["summaries"], again["known"]) == (0, 0, 2)
    with database(server) as store:
        assert [one.outcome for one in store.all(Report)] == ["committed"]
        assert [one.payload for one in store.all(StoredSummary)] == [summary]
        [known] = store.all(Device)
        assert known.running == artifact

    say("bundle", "ack", back, "--dir", device)
    empty = say("bundle", "collect", "--out", back, "--dir", device)
    assert (empty["reports"], empty["summaries"]) == (0, 0)


def test_a_bundle_that_failed_here_ends_with_1(
    server: FakeServer, device: Path, say: Say, tmp_path: Path
) -> None:
    offer(server, 1, golden=golden_of(scaling_model(1.0), off=0.5))
    export(server, say, tmp_path / "stick.tar", "--days", "0")
    applied = say("bundle", "apply", tmp_path / "stick.tar", "--dir", device, code=1)
    assert applied["running"] == ""
    assert applied["outcomes"][0].startswith("rolled-back")


def test_files_that_cannot_be_had_or_written_are_told(
    server: FakeServer, device: Path, say: Say, tmp_path: Path
) -> None:
    offer(server, 1)
    directory, missing = server.releases.directory, tmp_path / "missing" / "file"
    say("bundle", "import", missing, "--dir", directory, code=1)
    blobs = BlobStore(load_settings(directory).blobs_path)
    for data in server.releases.blobs.values():
        blobs.put(data)
    words = ("bundle", "export", "--group", GROUP, "--out", missing, "--dir", directory)
    assert "cannot be written" in say(*words, code=1)["error"]["message"]
