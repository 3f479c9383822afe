"""The line with the real build: what is released later says how to get there from before."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests import ota_build_task
from tests.ota_build_task import examples, model_bytes, trained
from tests.record_fakes import GENERIC, NOW, FakePublisher, SetClock, model

from wildflower.ota.build.worker import serve
from wildflower.ota.delta.decode import decode
from wildflower.ota.release.manifest import Release
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build
from wildflower.server.events import ObservedStore
from wildflower.server.line import LineRunner
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Line, Model, ReleaseRecord, Round, Training

APP = "tests.ota_build_task:task"


@dataclass
class World:
    """A server that builds in its own process, for one device class."""

    directory: Path
    blobs: BlobStore
    store: MemoryStore = field(default_factory=MemoryStore)
    publisher: FakePublisher = field(default_factory=FakePublisher)

    def release(self, epochs: int) -> Release:
        """Train, and let the line run; return what it has published last."""
        digest, key = self.blobs.put(model_bytes(trained(epochs))), f"training {epochs}"
        made = model(key, digest=digest, training_id=key, app=APP, metrics={"accuracy": 1.0})
        round_ = Round(f"{key}/1", key, 1, "recorded", "", ("a",), ("a",), digest, {}, b"", NOW)
        settings = {"is_task": 1.0}
        training = Training(key, APP, 1, True, settings, "finished", "", 1, NOW, NOW)
        self.store.put(made, round_, training)
        self.run()
        line = self.store.get(Line, digest)
        assert line is not None
        assert (line.phase, line.reason) == ("published", "")
        return self.publisher.releases[-1]

    def run(self) -> None:
        store = ObservedStore(self.store, SetClock())
        build = Build(
            self.directory, self.blobs, self.directory / "proxy.npz", build_here, (GENERIC,)
        )
        LineRunner(
            store=store,
            bus=store.bus,
            blobs=self.blobs,
            build=build,
            publisher=self.publisher,
            now=SetClock(),
            stopping=threading.Event(),
        ).run_pending()

    def decoded(self, release: Release, base: str) -> bytes:
        """Return what a release's delta makes of an earlier artifact."""
        [delta] = [one for one in release.deltas if one.base == base]
        data, made = self.blobs.read(delta.digest), bytearray()
        assert len(data) == delta.length <= 0.7 * release.artifact.length
        decode(
            memoryview(self.blobs.read(base)),
            memoryview(data),
            made.extend,
            target=release.artifact.digest,
            size=release.artifact.length,
        )
        return bytes(made)


def build_here(request: Mapping[str, Any]) -> Mapping[str, Any]:
    tasks = {APP: ota_build_task.task}
    return serve(json.dumps(request).encode(), lambda: tasks.__getitem__)[0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "answers").mkdir()
    examples().save(tmp_path / "proxy.npz")
    return World(tmp_path, BlobStore(tmp_path / "blobs"))


def test_each_release_names_deltas_from_the_last_three(world: World) -> None:
    made = [world.release(epochs) for epochs in range(5, 10)]
    assert made[0].deltas == ()
    for earlier, later in pairwise(made):
        base = earlier.artifact.digest
        assert later.deltas[0].base == base
        assert world.decoded(later, base) == world.blobs.read(later.artifact.digest)
        sizes = [delta.length / later.artifact.length for delta in later.deltas]
        assert sizes[0] <= 0.105  # fp32, made of the release before and coded steps
        assert all(size < 0.2 for size in sizes)  # from any of the last three: steps add up
    before = [one.artifact.digest for one in made[-2:-5:-1]]
    assert [delta.base for delta in made[-1].deltas] == before
    assert Release.from_bytes(world.blobs.read(made[-1].digest)) == made[-1]


def test_a_build_that_was_lost_before_signing_gives_the_same_deltas(world: World) -> None:
    world.release(5)
    later = world.release(6)
    forgotten = World(world.directory, world.blobs)
    for kind in (Model, Round, Training):
        forgotten.store.put(*world.store.all(kind))
    first, *_ = world.store.all(ReleaseRecord)
    line = world.store.get(Line, first.model)
    assert line is not None
    forgotten.store.put(first, line)
    for answer in (world.directory / "answers").iterdir():
        answer.write_bytes(b"torn")
    forgotten.run()
    assert forgotten.publisher.releases == [later]
