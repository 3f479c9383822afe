"""Builds asked for by the server: what the worker answers is taken in, whatever it does."""

import hashlib
import json
import textwrap
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wildflower.ota.errors import BuildError
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build, Built, run_worker

CLASS = "linux-generic"
STAND_IN = "stand_in"
REQUIRES = {
    "device_class": CLASS,
    "runtime": "onnxruntime",
    "runtime_min": "1.20",
    "runtime_below": "2",
    "opset": 17,
    "agent_min": "0.1.0",
    "ram_bytes": 1,
    "disk_bytes": 1,
}
TRIAL = {"tolerance": 1e-3, "min_agreement": 0.9, "latency_ms": 50.0, "rss_bytes": 1}


@dataclass
class FakeWorker:
    """Writes files as the worker does.

    Attributes:
        error: What it answers instead.
        requests: What it was asked.
    """

    error: Mapping[str, str] = field(default_factory=dict)
    requests: list[Mapping[str, Any]] = field(default_factory=list)

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.requests.append(request)
        if self.error:
            return {"error": self.error}
        return {"artifacts": [self._artifact(Path(request["out"]))]}

    def _artifact(self, out: Path) -> dict[str, Any]:
        def file(name: str) -> dict[str, Any]:
            data = f"bytes of {name}".encode()
            (out / name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            return {"path": str(out / name), "digest": digest, "length": len(data)}

        return {
            "device_class": CLASS,
            "recipe": "fp32-ort",
            "file_name": "model.ort",
            **file("model.ort"),
            "golden": file("golden.npz"),
            "baseline": file("baseline.json"),
            "gate_report": file("gate-report.json"),
            "passed": True,
            "failures": [],
            "requires": REQUIRES,
            "trial": TRIAL,
            "deltas": [{"base": "cd" * 32, **file("a.delta")}],
        }


@dataclass
class World:
    worker: FakeWorker
    blobs: BlobStore
    directory: Path
    model: str

    def build(self, *, proxy: Path | None = Path("proxy.npz")) -> Build:
        return Build(self.directory, self.blobs, proxy, self.worker, (CLASS,))


@pytest.fixture
def world(tmp_path: Path) -> World:
    directory, blobs = tmp_path / "build", BlobStore(tmp_path / "blobs")
    directory.mkdir()
    return World(FakeWorker(), blobs, directory, blobs.put(b"a model"))


def test_what_the_worker_wrote_becomes_blobs_and_its_folder_is_removed(world: World) -> None:
    [built] = world.build().make(world.model, "task:x")
    [request] = world.worker.requests
    assert request["classes"] == [CLASS]
    assert Path(request["model"]).read_bytes() == b"a model"
    assert [entry.role for entry in built.files] == ["model", "golden", "baseline"]
    for entry in built.files:
        data = world.blobs.read(entry.digest)
        assert (data, entry.length) == (f"bytes of {entry.name}".encode(), len(data))
    assert built.artifact.name == "model.ort"
    assert world.blobs.has(built.gate_report)
    assert not Path(request["out"]).exists()


def test_deltas_become_blobs_and_are_asked_for_from_those_that_are_here(world: World) -> None:
    old = world.blobs.put(b"an older artifact")
    earlier = {CLASS: ["ab" * 32, old]}
    [built] = world.build().make(world.model, "task:x", earlier)
    assert world.worker.requests[0]["earlier"] == {CLASS: [str(world.blobs.path(old))]}
    [delta] = built.deltas
    data = world.blobs.read(delta.digest)
    assert (delta.base, delta.length, data) == ("cd" * 32, len(data), b"bytes of a.delta")
    assert world.build().made(world.model, "task:x", earlier) == [built]
    assert len(world.worker.requests) == 1
    world.blobs.path(delta.digest).unlink()
    assert world.build().made(world.model, "task:x", earlier) == [built]
    assert len(world.worker.requests) == 2
    assert world.worker.requests[1]["earlier"] == world.worker.requests[0]["earlier"]


def test_a_build_that_failed_is_told_in_the_worker_s_words(world: World) -> None:
    world.worker.error = {"type": "ExportError", "message": "no operator Foo", "hint": "Use Bar."}
    with pytest.raises(BuildError, match="ExportError: no operator Foo") as caught:
        world.build().make(world.model, "task:x")
    assert caught.value.hint == "Use Bar."
    assert list(world.directory.glob("out-*")) == []


def test_without_proxy_rows_nothing_is_built(world: World) -> None:
    with pytest.raises(BuildError, match="proxy") as caught:
        world.build(proxy=None).make(world.model, "task:x")
    assert "proxy_data" in caught.value.hint
    assert world.worker.requests == []


def test_what_was_built_is_remembered(world: World) -> None:
    made = world.build().make(world.model, "task:x")
    assert world.build().made(world.model, "task:x") == made
    assert len(world.worker.requests) == 1


@pytest.mark.parametrize("damage", ["lost", "torn", "strange", "blob"])
def test_what_is_lost_is_built_again(world: World, damage: str) -> None:
    made = world.build().make(world.model, "task:x")
    answer = world.directory / "answers" / f"{world.model}.json"
    match damage:
        case "lost":
            answer.unlink()
        case "torn":
            answer.write_bytes(answer.read_bytes()[:50])
        case "strange":
            answer.write_text('[{"device_class": 1}]')
        case _:
            world.blobs.path(made[0].artifact.digest).unlink()
    assert world.build().made(world.model, "task:x") == made
    assert len(world.worker.requests) == 2


def test_what_is_stored_of_an_artifact_comes_back(world: World) -> None:
    [built] = world.build().make(world.model, "task:x")
    assert Built.from_json(json.loads(json.dumps(built.to_json()))) == built


@pytest.fixture
def worker_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is run in the worker's place."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "stand_in.py"


def write(path: Path, code: str) -> None:
    path.write_text(textwrap.dedent(code))


def test_the_worker_is_asked_on_stdin_and_answers_on_stdout(
    worker_code: Path, tmp_path: Path
) -> None:
    write(
        worker_code,
        """
        import json, sys
        print("a line of the log", file=sys.stderr)
        print(json.dumps({"asked": json.load(sys.stdin)}))
        """,
    )
    log = tmp_path / "logs" / "build.log"
    assert run_worker({"app": "x"}, log, threading.Event(), worker=STAND_IN) == {
        "asked": {"app": "x"}
    }
    assert log.read_text() == "a line of the log\n"


def test_a_worker_that_crashes_is_told_with_its_code(worker_code: Path, tmp_path: Path) -> None:
    write(worker_code, "import os; os._exit(7)")
    with pytest.raises(BuildError, match="ended with code 7") as caught:
        run_worker({}, tmp_path / "build.log", threading.Event(), worker=STAND_IN)
    assert "build.log" in caught.value.hint


@pytest.mark.parametrize(("is_stopped", "time_s"), [(True, 60.0), (False, 0.3)])
def test_a_worker_that_is_stopped_or_takes_too_long_ends(
    worker_code: Path, tmp_path: Path, is_stopped: bool, time_s: float
) -> None:
    write(worker_code, "import signal; signal.pause()")
    stopping = threading.Event()
    if is_stopped:
        stopping.set()
    log = tmp_path / "build.log"
    with pytest.raises(BuildError, match="was stopped or took too long"):
        run_worker({}, log, stopping, worker=STAND_IN, time_s=time_s)


def test_the_real_worker_answers_what_it_cannot_build(tmp_path: Path) -> None:
    answer = run_worker({"app": "nosuch:task"}, tmp_path / "build.log", threading.Event())
    assert answer["error"]["type"] == "FormatError"
