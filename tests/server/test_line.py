import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.record_fakes import AVX2, GENERIC, NOW, FakePublisher, SetClock, model
from tests.server_base_fakes import until

from wildflower.ota.build import line as machine
from wildflower.ota.build.gates import Bound, GateReport, gate
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.method import Method
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build
from wildflower.server.errors import NotFoundError
from wildflower.server.events import ObservedStore
from wildflower.server.line import LineRunner
from wildflower.server.memory import MemoryStore
from wildflower.server.records import (
    Artifact,
    Line,
    Model,
    Record,
    ReleaseRecord,
    Round,
    Training,
)

CLASSES = (AVX2, GENERIC)


class Cut(BaseException):
    """The server's process ends here."""


class CutStore(MemoryStore):
    """A store at one of whose writes the process ends, after or before it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.cut_at, self.after, self.writes = 0, True, 0

    def put(self, *records: Record, events: object = ()) -> None:
        self.writes += 1
        if self.writes == self.cut_at and not self.after:
            raise Cut
        super().put(*records, events=events)  # type: ignore[arg-type]  # passed on as it came
        if self.writes == self.cut_at:
            raise Cut


@dataclass
class FakeWorker:
    """Builds an artifact of a few bytes for each class, as `ota.build.worker` answers.

    Attributes:
        built: Paths of the models it was asked to build.
        size: What the gate "size" finds, as a share of what is allowed.
        error: Answered instead of artifacts.
    """

    built: list[str] = field(default_factory=list)
    size: float = 0.5
    error: str = ""

    def __call__(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        self.built.append(asked["model"])
        if self.error:
            return {"error": {"type": "BuildError", "message": self.error, "hint": ""}}
        return {"artifacts": [self._artifact(asked, name) for name in asked["classes"]]}

    def _artifact(self, asked: Mapping[str, Any], device_class: str) -> dict[str, Any]:
        out, origin = Path(asked["out"]), Path(asked["model"]).name
        file = _file(out / f"{device_class}.onnx", f"{device_class} of {origin}".encode())
        results = (
            gate("parity", 0.0, Bound.AT_MOST, 1e-4, n=10),
            gate("size", self.size, Bound.AT_MOST, 1.0),
            gate("accuracy", 0.0, Bound.AT_MOST, 0.01, n=10),
        )
        report = GateReport(file["digest"], origin, device_class, "int8", results, {"onnx": "1"})
        return {
            **file,
            "device_class": device_class,
            "recipe": "int8",
            "file_name": "model.onnx",
            "golden": _file(out / f"{device_class}.npz", b"golden"),
            "baseline": _file(out / f"{device_class}.json", b"baseline"),
            "gate_report": _file(out / f"{device_class}.gates", report.to_bytes()),
            "passed": report.passed,
            "failures": report.failures,
            "requires": {
                "device_class": device_class,
                "runtime": "onnxruntime",
                "runtime_min": "1.20",
                "runtime_below": "2",
                "opset": 17,
                "agent_min": "0.1",
                "ram_bytes": 1,
                "disk_bytes": 1,
            },
            "trial": {
                "tolerance": 1e-3,
                "min_agreement": 0.98,
                "latency_ms": 50.0,
                "rss_bytes": 2**28,
            },
        }


def _file(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return {
        "path": str(path),
        "digest": hashlib.sha256(data).hexdigest(),
        "length": len(data),
    }


@dataclass
class World:
    """A server with a release line and trainings that have ended."""

    directory: Path
    memory: CutStore
    store: ObservedStore
    blobs: BlobStore
    publisher: FakePublisher = field(default_factory=FakePublisher)
    worker: FakeWorker = field(default_factory=FakeWorker)
    has_proxy: bool = True
    probation_s: int = 0

    def runner(self) -> LineRunner:
        """Return a runner, as a server's start makes it."""
        proxy = self.directory / "proxy.npz" if self.has_proxy else None
        return LineRunner(
            store=self.store,
            bus=self.store.bus,
            blobs=self.blobs,
            build=Build(self.directory, self.blobs, proxy, self.worker, CLASSES),
            publisher=self.publisher,
            now=SetClock(),
            stopping=threading.Event(),
            probation_s=self.probation_s,
        )

    def train(self, name: str, *, is_task: float = 1.0, **metrics: float) -> Model:
        """Store a training of one round that has ended with a model."""
        digest = self.blobs.put(name.encode())
        key = f"training of {name}"
        made = model(name, digest=digest, training_id=key, metrics=metrics)
        round_ = Round(f"{key}/1", key, 1, "recorded", "", ("a", "b"), ("a",), digest, {}, b"", NOW)
        settings = {"is_task": is_task}
        training = Training(key, "task:digits", 1, True, settings, "finished", "", 1, NOW, NOW)
        self.memory.put(made, round_, training)
        return made

    def line(self, of: Model) -> Line:
        found = self.store.get(Line, of.digest)
        assert found is not None
        return found

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of(tmp_path)


def world_of(directory: Path) -> World:
    directory.mkdir(exist_ok=True)
    (directory / "answers").mkdir()
    memory = CutStore()
    blobs = BlobStore(directory / "blobs")
    return World(directory, memory, ObservedStore(memory, SetClock()), blobs)


def require_published(world: World, of: Model) -> None:
    """Check that a model has one release for each class, each signed once."""
    assert (world.line(of).phase, world.line(of).reason) == ("published", "")
    records = world.store.all(ReleaseRecord, model=of.digest)
    assert [one.target_group for one in records] == [f"digits.{name}" for name in CLASSES]
    signed = [one.target_group for one in world.publisher.releases]
    assert len(signed) == len(set(signed))
    assert [one.digest for one in world.publisher.releases] == [one.digest for one in records]


def test_a_finished_training_becomes_releases_by_itself(world: World) -> None:
    made = world.train("one", accuracy=0.9)
    world.runner().run_pending()
    require_published(world, made)
    artifacts = world.store.all(Artifact, model=made.digest)
    assert [one.device_class for one in artifacts] == list(CLASSES)
    for one, record in zip(artifacts, world.store.all(ReleaseRecord), strict=True):
        manifest = Release.from_bytes(world.blobs.read(record.digest))
        assert manifest.artifact.digest == one.digest == record.artifact
        assert manifest.lineage.training == made.training_id
        assert manifest.lineage.gate_report == one.gate_report
        assert [entry.role for entry in manifest.files] == ["model", "golden", "baseline"]
        assert all(world.blobs.has(entry.digest) for entry in manifest.files)
        assert one.passed
    assert world.kinds() == ["line.built", "line.gated", "line.signed", "line.published"]


def test_a_probation_that_the_operator_wants_is_signed(world: World) -> None:
    world.probation_s = 600
    made = world.train("one", accuracy=0.9)
    world.runner().run_pending()
    require_published(world, made)
    for record in world.store.all(ReleaseRecord):
        manifest = Release.from_bytes(world.blobs.read(record.digest))
        assert manifest.trial.probation_s == 600


def test_the_signer_is_told_how_the_round_made_the_model(world: World) -> None:
    made = world.train("one")
    settings: dict[str, float | str] = {"is_task": 1.0, "protection": "he", "dp": "central"}
    world.store.change(Training, made.training_id, settings=settings)
    world.runner().run_pending()
    require_published(world, made)
    for record in world.publisher.records:
        assert record.method == Method("fedavg", "he", "central", "device")


def test_what_is_published_is_left_alone(world: World) -> None:
    made = world.train("one")
    for _ in range(3):
        world.runner().run_pending()
    assert world.runner().submit(made.digest) == world.line(made)
    world.runner().run_pending()
    require_published(world, made)
    assert len(world.worker.built) == 1


def test_gates_that_failed_stop_a_model_with_their_sentences(world: World) -> None:
    made = world.train("large")
    world.worker.size = 2.0
    world.runner().run_pending()
    line = world.line(made)
    assert line.phase == "failed"
    for name in CLASSES:
        assert f"{name}: size is 2, must be at most 1" in line.reason
    assert world.publisher.releases == []
    assert [one.passed for one in world.store.all(Artifact)] == [False, False]
    last = world.store.events()[-1]
    assert (last.kind, last.fields["reason"]) == ("line.failed", line.reason)


def test_a_signer_that_refuses_stops_a_model_with_its_sentence(world: World) -> None:
    made = world.train("one")
    world.publisher.refusal = "the gate report names another artifact"
    world.runner().run_pending()
    assert (world.line(made).phase, world.line(made).reason) == (
        "failed",
        "the gate report names another artifact",
    )
    assert world.store.all(ReleaseRecord) == []


def test_a_build_that_fails_is_told_with_the_workers_sentence(world: World) -> None:
    made = world.train("one")
    world.worker.error = "the model has no layers"
    world.runner().run_pending()
    assert "the model has no layers" in world.line(made).reason
    assert list(world.directory.glob("out-*")) == []


def test_without_a_proxy_set_nothing_is_built(world: World) -> None:
    world.has_proxy = False
    made = world.train("one")
    world.runner().run_pending()
    assert "proxy set" in world.line(made).reason
    assert world.worker.built == []


def test_what_failed_can_be_sent_in_again(world: World) -> None:
    made = world.train("one")
    world.publisher.refusal = "the signer is away"
    world.runner().run_pending()
    world.runner().run_pending()
    assert world.line(made).phase == "failed", "a failure is not repeated by itself"
    world.publisher.refusal = ""
    assert world.runner().submit(made.digest).phase == "model"
    world.runner().run_pending()
    require_published(world, made)


def test_a_model_of_no_round_is_not_signed(world: World) -> None:
    made = model("stray", digest=world.blobs.put(b"stray"), training_id="none")
    world.store.put(made)
    world.runner().submit(made.digest)
    world.runner().run_pending()
    assert "comes from no round" in world.line(made).reason
    assert world.publisher.releases == []


def test_a_model_that_is_not_known_is_not_found(world: World) -> None:
    with pytest.raises(NotFoundError, match="abc"):
        world.runner().submit("abc")
    assert world.store.all(Line) == []


def test_a_model_whose_file_is_lost_fails_and_names_it(world: World) -> None:
    made = world.train("one")
    world.blobs.path(made.digest).unlink()
    world.runner().run_pending()
    assert made.digest in world.line(made).reason


def test_a_flower_apps_model_stays_out_of_the_line(world: World) -> None:
    world.train("app", is_task=0.0)
    world.runner().run_pending()
    assert world.store.all(Line) == []


@pytest.mark.parametrize(
    ("metrics", "phase", "reason"),
    [
        ({"accuracy": 0.9}, "published", ""),
        ({"accuracy": 0.8}, "failed", "accuracy is 0.8000, that of the last release 0.9000"),
        ({}, "failed", "accuracy is unknown, that of the last release 0.9000"),
    ],
    ids=["as-good", "worse", "unknown"],
)
def test_a_model_that_is_worse_than_the_last_release_is_not_built(
    world: World, metrics: dict[str, float], phase: str, reason: str
) -> None:
    world.train("first", accuracy=0.9)
    world.runner().run_pending()
    second = world.train("second", **metrics)
    world.runner().run_pending()
    assert (world.line(second).phase, world.line(second).reason) == (phase, reason)


def test_orders_of_a_group_only_rise(world: World) -> None:
    for name in ("one", "two", "three"):
        world.train(name, accuracy=0.9)
        world.runner().run_pending()
    orders = [one.order for one in world.store.all(ReleaseRecord, target_group=f"digits.{AVX2}")]
    assert orders == [1, 2, 3]


def test_a_newer_model_supersedes_one_that_waits(world: World) -> None:
    older, newer = world.train("older"), world.train("newer")
    world.runner().run_pending()
    require_published(world, newer)
    assert world.line(older).reason == f"superseded by model {newer.digest}"
    assert [Path(path).name for path in world.worker.built] == [newer.digest]


def test_a_model_that_has_begun_is_finished_before_a_newer_one(world: World) -> None:
    older = world.train("older")
    world.memory.cut_at = world.memory.writes + 2
    with pytest.raises(Cut):
        world.runner().run_pending()
    assert world.line(older).phase == "built"
    newer = world.train("newer")
    world.runner().run_pending()
    world.runner().run_pending()
    assert [world.line(one).phase for one in (older, newer)] == ["published", "published"]


@pytest.mark.parametrize("after", [True, False], ids=["written", "not-written"])
def test_a_restart_anywhere_repeats_and_never_skips(tmp_path: Path, after: bool) -> None:
    whole = world_of(tmp_path / "whole")
    whole.train("one")
    before = whole.memory.writes
    whole.runner().run_pending()
    assert whole.memory.writes >= before + 5
    for cut_at in range(before + 1, whole.memory.writes + 1):
        world = world_of(tmp_path / str(cut_at))
        made = world.train("one")
        world.memory.cut_at, world.memory.after = cut_at, after
        with pytest.raises(Cut):
            world.runner().run_pending()
        world.runner().run_pending()
        assert world.line(made).phase == "published", cut_at
        records = world.store.all(ReleaseRecord, model=made.digest)
        assert [one.target_group for one in records] == [f"digits.{name}" for name in CLASSES]
        digests = {one.digest for one in world.publisher.releases}
        assert digests == {one.digest for one in records}, "signing again signs the same"
        assert world.kinds() == ["line.built", "line.gated", "line.signed", "line.published"]


def test_a_build_whose_answer_is_lost_is_asked_for_again(world: World) -> None:
    made = world.train("one")
    world.memory.cut_at = world.memory.writes + 3
    with pytest.raises(Cut):
        world.runner().run_pending()
    assert world.line(made).phase == "gated"
    (world.directory / "answers" / f"{made.digest}.json").unlink()
    world.runner().run_pending()
    require_published(world, made)
    assert len(world.worker.built) == 2


def test_a_line_that_stops_the_server_again_and_again_is_given_up(world: World) -> None:
    made = world.train("deadly")
    world.worker.error = "never asked"
    state = machine.State("digits", made.digest, 1, wakes=machine.MAX_WAKES)
    world.store.put(Line(made.digest, "model", "", state.to_bytes(), NOW))
    with world.runner():
        until(lambda: world.line(made).phase == "failed")
    assert "restarted" in world.line(made).reason
    assert world.worker.built == []


def test_the_thread_takes_in_what_is_trained_while_it_runs(world: World) -> None:
    with world.runner():
        made = world.train("one")
        world.store.bus.ring()
        until(lambda: bool(world.store.all(Line)) and world.line(made).phase == "published")
    require_published(world, made)


def test_a_build_that_the_servers_end_cut_short_has_not_failed(world: World) -> None:
    made = world.train("one")
    stopping = threading.Event()

    def stopped(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        stopping.set()
        return {"error": {"type": "BuildError", "message": "it was stopped", "hint": ""}}

    cut = Build(world.directory, world.blobs, world.directory / "proxy.npz", stopped, CLASSES)
    LineRunner(
        store=world.store,
        bus=world.store.bus,
        blobs=world.blobs,
        build=cut,
        publisher=world.publisher,
        now=SetClock(),
        stopping=stopping,
    ).run_pending()
    assert world.line(made).phase == "model"
    world.runner().run_pending()
    require_published(world, made)
