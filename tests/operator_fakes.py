"""A server for the operator's commands: real API, runners and repository; devices that answer.

What is not here: Flower (an in-process fleet trains), builds (a few bytes per class) and the
release signer's process.
"""

import contextlib
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from tests.record_fakes import AVX2, device
from tests.round_fakes import MODEL, STATISTICS, Fleet, FlowerApp
from tests.server_base_fakes import today

from wildflower.ota.build.gates import Bound, GateReport, gate
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order, RolloutDocument
from wildflower.server.api.app import create_app
from wildflower.server.api.desk import Desk
from wildflower.server.api.views import InvitationView, ProcessView, StatusView
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build
from wildflower.server.cohort import Gathering
from wildflower.server.events import ObservedStore
from wildflower.server.initial_model import Origin
from wildflower.server.initialise import Options, initialise
from wildflower.server.line import LineRunner
from wildflower.server.listener import Listener, Place
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Presence
from wildflower.server.publish import Publisher
from wildflower.server.records import Device, ReleaseRecord, Report
from wildflower.server.rollouts import RolloutRunner
from wildflower.server.round_trip import Parties
from wildflower.server.round_work import RoundTools
from wildflower.server.rounds import Learning, RoundRunner


@dataclass
class FleetLink:
    """Lends the grid of a fleet in this process."""

    grid: Grid

    @contextlib.contextmanager
    def run(self, _: str) -> Iterator[Grid]:
        yield self.grid


@dataclass
class SmallWorker:
    """Builds an artifact of a few bytes, as `ota.build.worker` answers.

    Attributes:
        size: What the gate "size" finds, as a share of what is allowed.
    """

    size: float = 0.5

    def __call__(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        out, model = Path(asked["out"]), Path(asked["model"]).name
        file = _file(out / "model.onnx", f"an artifact of {model}".encode())
        found = {"parity": 0.0, "size": self.size, "accuracy": 0.0}
        results = tuple(gate(name, value, Bound.AT_MOST, 1.0) for name, value in found.items())
        report = GateReport(file["digest"], model, AVX2, "int8", results, {"onnx": "1"})
        requires = {
            "device_class": AVX2,
            "runtime": "onnxruntime",
            "runtime_min": "1.20",
            "runtime_below": "2",
            "opset": 17,
            "agent_min": "0.1.0",
            "ram_bytes": 1,
            "disk_bytes": 1,
        }
        one = {
            **{"device_class": AVX2, "recipe": "int8", "file_name": "model.onnx", **file},
            "golden": _file(out / "golden.npz", b"golden"),
            "baseline": _file(out / "baseline.json", b"baseline"),
            "gate_report": _file(out / "gates.json", report.to_bytes()),
            "passed": report.passed,
            "failures": list(report.failures),
            "requires": requires,
            "trial": {
                **{"tolerance": 1e-3, "min_agreement": 0.9},
                **{"latency_ms": 50.0, "rss_bytes": 1},
            },
        }
        return {"artifacts": [one]}


def _file(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return {"path": str(path), "digest": digest, "length": len(data)}


@dataclass
class AnsweringFleet:
    """A publisher whose devices answer at once; what the release signer signs is only noted.

    Attributes:
        publisher: The repository's writer.
        store: Where reports go.
        outcome: What devices report of an installation; "" for silence.
    """

    publisher: Publisher
    store: ObservedStore
    outcome: str = "committed"

    def current(self, role: str) -> bytes:
        return self.publisher.current(role)

    def approved(self, metadata: bytes, manifest: Release, statement: bytes = b"") -> str:
        return self.publisher.approved(metadata, manifest, statement)

    def statement(self, path: str) -> bytes:
        return self.publisher.statement(path)

    def release(self, manifest: Release, *, gate_report: bytes, round_record: bytes) -> str:
        assert gate_report
        assert round_record
        return target_path("auto", manifest.target_group, manifest.order)

    def rollout(self, document: RolloutDocument) -> None:
        self.publisher.rollout(document)
        release = self.store.get(ReleaseRecord, document.release)
        assert release is not None
        if document.order is not Order.INSTALL or not self.outcome:
            return
        for one in self.store.all(Device, device_class=release.device_class):
            if is_admitted(bytes.fromhex(document.salt), one.device_id, document.permille):
                self._report(one, document, release)

    def _report(self, of: Device, document: RolloutDocument, release: ReleaseRecord) -> None:
        sequence = len(self.store.all(Report, device_id=of.device_id)) + 1
        running = release.artifact if self.outcome == "committed" else ""
        reason = "" if running else "golden outputs differ"
        name = f"{of.device_id}/{sequence}"
        report = Report(
            *(name, of.device_id, sequence, self.outcome, document.rollout, release.digest),
            *(running, reason, b"", b"", today()),
        )
        self.store.change(Device, of.device_id, report, running=running)


@dataclass
class OperatedServer:
    """What a command of an operator reaches.

    Attributes:
        directory: The server's; `operator.json` leads to the API.
        store: Its records.
        blobs: Its files.
        worker: What builds.
        fleet: What publishes and answers.
    """

    directory: Path
    store: ObservedStore
    blobs: BlobStore
    worker: SmallWorker
    fleet: AnsweringFleet


@contextlib.contextmanager
def operated_server(directory: Path, devices: int = 4) -> Iterator[OperatedServer]:
    """Run the operator's half of a server with devices that train and install."""
    initialise(directory, Options(profile="demo", free_ports=True), now=today())
    store, presence, blobs = (
        ObservedStore(MemoryStore(), today),
        Presence(),
        BlobStore(directory / "blobs"),
    )
    trained = Fleet([FlowerApp(0.25, metrics={"accuracy": 0.75}).app for _ in range(devices)])
    for number, node in enumerate(trained.nodes):
        one = device(f"device-{number}", node_id=node)
        store.put(one)
        presence.attach(one.device_id, lambda: None)
    publisher = Publisher(directory, directory / "signer" / "signer.sock", today)
    made = OperatedServer(directory, store, blobs, SmallWorker(), AnsweringFleet(publisher, store))
    with contextlib.ExitStack() as stack:
        _serve(made, stack, presence, trained)
        yield made


def _serve(
    made: OperatedServer, stack: contextlib.ExitStack, presence: Presence, trained: Fleet
) -> None:
    """Start the runners and the API, and let `operator.json` lead there."""
    stopping, bus = threading.Event(), made.store.bus
    gathering = Gathering(made.store, presence, bus, stopping)
    tools = RoundTools(
        made.store, bus, made.blobs, gathering, Parties(trained.ca.pem), today, secrets.token_bytes
    )
    learning = Learning("task:tiny", "tiny", {"quorum": 3.0, "join_s": 2.0, "deadline_s": 20.0})
    rounds = RoundRunner(tools, FleetLink(trained.grid), learning, _initial)
    build = Build(made.directory / "build", made.blobs, Path("proxy.npz"), made.worker, (AVX2,))
    line = LineRunner(
        store=made.store,
        bus=bus,
        blobs=made.blobs,
        build=build,
        publisher=made.fleet,
        now=today,
        stopping=stopping,
    )
    rollouts = RolloutRunner(
        store=made.store, bus=bus, publisher=made.fleet, presence=presence, now=today
    )
    token = json.loads((made.directory / "operator.json").read_text())["token"]
    desk = Desk(
        token=token,
        store=made.store,
        bus=bus,
        files=made.blobs,
        presence=presence,
        rounds=rounds,
        line=line,
        rollouts=rollouts,
        publisher=made.fleet,
        invite=_invite,
        status=_status(made.store),
    )
    listener = stack.enter_context(
        Listener(create_app(desk), Place("127.0.0.1", 0, "operator_port"), None)
    )
    stack.callback(bus.close)
    for runner in (rounds, line, rollouts):
        stack.enter_context(runner)
    told = {"url": f"http://127.0.0.1:{listener.port}", "token": token}
    (made.directory / "operator.json").write_text(json.dumps(told))


def _initial(_: str, seed: int, out: Path) -> Origin:
    from wildflower.strategies.arrays import to_safetensors

    moved = {name: array + seed for name, array in MODEL.items()}
    out.write_bytes(to_safetensors(moved))
    return Origin(4.0, (*STATISTICS, "mean.accuracy"), is_task=True)


def _invite(ring: str, uses: int, seconds: float) -> InvitationView:
    return InvitationView("wf1.token", ring, uses, today() + timedelta(seconds=seconds))


def _status(store: ObservedStore) -> Callable[[], StatusView]:
    def status() -> StatusView:
        count = len(store.all(Device))
        child = ProcessView("superlink", 7, "running", 0)
        last = store.latest_event()
        return StatusView(True, "1", "demo", today(), {}, [child], count, count, "", last)

    return status
