"""The training child: when it ends, what it survives, and as real processes on a real SuperLink."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from tests.flower_fakes import RunningSuperLink, pem_of, public_pem, running_superlink
from tests.round_fakes import LAYOUT, request

from wildflower.client.config import AgentConfig, load_config, save_config
from wildflower.client.policy import Policy, save_policy
from wildflower.client.trainer import RUN_CHECK_S, TrainingChild, serve
from wildflower.server.flower_link import FlowerLink
from wildflower.simulation.identities import SimulatedCa, SimulatedDevice
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.errors import (
    LinkRefusedError,
    RoundAbortedError,
    RunEndedError,
    UnreachableError,
)
from wildflower.strategies.flower_compat.messages import assume_identity, stamp
from wildflower.strategies.trips import plain_round, secure_round


@dataclass
class FakeConnection:
    """A SuperLink with a script: messages that wait, runs that go on, replies that arrived."""

    waiting: list[Message] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    replies: list[Message] = field(default_factory=list)
    takes_replies: bool = True
    node_id: int = 11

    def receive(self) -> Message | None:
        return self.waiting.pop(0) if self.waiting else None

    def reply(self, message: Message, *, runtime_s: float = 0.0) -> None:
        if not self.takes_replies:
            raise RunEndedError("over")
        self.replies.append(message)

    def is_running(self, run_id: int) -> bool:
        return run_id in self.running


@dataclass
class Clock:
    """A clock that only waiting moves."""

    now: float = 0.0
    during: Callable[[], None] = lambda: None

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.during()


def message(run_id: int = 1) -> Message:
    assume_identity()
    made = Message(RecordDict(), 11, "train")
    stamp(made, run_id=run_id)
    return made


def child(clock: Clock, app: Callable[[Message, Context], Message] | None = None) -> TrainingChild:
    def echo(received: Message, context: Context) -> Message:
        return Message(received.content, reply_to=received)

    return TrainingChild(
        app or echo, {"name": "d"}, {"rate": 1}, 20.0, lambda: clock.now, clock.wait
    )


def test_it_ends_when_nobody_calls() -> None:
    clock = Clock()
    assert child(clock).work(FakeConnection()) == "nothing to do for 20 s"
    assert 20 < clock.now < 21


def test_it_waits_as_long_as_its_run_goes_on_and_then_ends() -> None:
    clock, connection = Clock(), FakeConnection([message()], {1})
    clock.during = lambda: connection.running.clear() if clock.now > 100 else None
    assert child(clock).work(connection) == "the run is over"
    assert 100 < clock.now < 101 + RUN_CHECK_S
    assert len(connection.replies) == 1


def test_a_reply_that_nobody_waits_for_ends_nothing() -> None:
    clock = Clock()
    connection = FakeConnection([message()], takes_replies=False)
    assert child(clock).work(connection) == "the run is over"


def test_each_run_has_one_context_and_what_the_device_tells_its_app() -> None:
    seen: list[Context] = []

    def app(received: Message, context: Context) -> Message:
        seen.append(context)
        return Message(RecordDict(), reply_to=received)

    child(Clock(), app).work(FakeConnection([message(1), message(2), message(1)]))
    assert [context.run_id for context in seen] == [1, 2, 1]
    assert seen[0] is seen[2]
    assert (seen[0].node_config, seen[0].run_config) == ({"name": "d"}, {"rate": 1})


def test_an_app_that_breaks_is_an_error_without_its_words() -> None:
    def breaks(received: Message, context: Context) -> Message:
        raise ValueError("secret 42")

    connection = FakeConnection([message()])
    child(Clock(), breaks).work(connection)
    assert connection.replies[0].error.reason == "failed: ValueError"


def test_a_lost_connection_is_told_to_who_can_make_a_new_one() -> None:
    class Lost(FakeConnection):
        def receive(self) -> Message | None:
            raise UnreachableError("gone")

    with pytest.raises(UnreachableError):
        child(Clock()).work(Lost())


FLOWER_APP = """
import time
from pathlib import Path

from flwr.app import ArrayRecord, Array, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    here = Path(str(context.node_config["directory"]))
    (here / "training-now").touch()
    while (here / "hangs").exists():
        time.sleep(0.01)
    arrays = message.content["arrays"]
    changed = {name: Array(array.numpy() + 0.5) for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": context.run_config["examples"], "seen": 1.0})
    content = RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics})
    return Message(content, reply_to=message)
"""
PYPROJECT = """
[tool.flwr.app.components]
clientapp = "tiny_flower_app:app"
[tool.flwr.app.config]
examples = 10
"""


@dataclass
class Device:
    """A device's directory and its training child."""

    directory: Path
    node: int
    process: "subprocess.Popen[bytes]"

    @property
    def is_gone(self) -> bool:
        return self.process.poll() is not None


def enrol(directory: Path, ca: SimulatedCa, url: str, app: Path) -> SimulatedDevice:
    """Write what enrolment leaves in a device's directory."""
    device = ca.enrol()
    folder = directory / "identity"
    folder.mkdir(parents=True)
    certificate = x509.load_der_x509_certificate(device.certificate_der)
    (folder / "key.pem").write_bytes(pem_of(device.key))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "root.json").write_bytes(b"{}")
    save_policy(Policy(secagg="required", min_cohort=3), directory)
    save_config(
        AgentConfig(
            name=directory.name,
            device_id=device.device_id,
            endpoints_device=url,
            endpoints_channel="127.0.0.1:1",
            app=str(app),
            training_idle_s=20.0,
            directory=directory,
        )
    )
    return device


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny_flower_app.py").write_text(FLOWER_APP)
    return folder


@pytest.fixture
def fleet(
    tmp_path: Path, app: Path
) -> Iterator[tuple[SimulatedCa, RunningSuperLink, Callable[[], Device]]]:
    """A SuperLink, and a way to start one more device's training child."""
    ca, started, numbers = SimulatedCa(), list[Device](), count(1)
    with running_superlink(tmp_path / "server", ca) as superlink:

        def start() -> Device:
            directory = tmp_path / f"device-{next(numbers)}"
            device = enrol(directory, ca, f"https://{superlink.address}", app)
            link = FlowerLink(superlink.address, superlink.ca_pem, superlink.secret)
            node = link.register(public_pem(device.key))
            command = [sys.executable, "-m", "wildflower.client.trainer", "--dir", str(directory)]
            with (directory / "log").open("wb") as log:
                process = subprocess.Popen(command, stderr=log)
            started.append(Device(directory, node, process))
            return started[-1]

        try:
            yield ca, superlink, start
        finally:
            for device in started:
                device.process.kill()
                device.process.wait()


def wait_until(condition: Callable[[], bool], devices: list[Device]) -> None:
    while not condition():
        for device in devices:
            assert not device.is_gone, (device.directory / "log").read_text()


def come(grid: Grid, devices: list[Device]) -> None:
    wanted = {device.node for device in devices}
    wait_until(lambda: wanted <= set(grid.get_node_ids()), devices)


def test_real_children_train_an_unchanged_app_securely_though_one_is_killed(
    fleet: tuple[SimulatedCa, RunningSuperLink, Callable[[], Device]],
) -> None:
    ca, superlink, start = fleet
    devices = [start() for _ in range(4)]
    victim = devices[-1]
    (victim.directory / "hangs").touch()

    def on_stage(stage: str) -> None:
        if stage == "unmask":
            assert victim.is_gone

    def is_gone(node: int) -> bool:
        if (victim.directory / "training-now").exists() and not victim.is_gone:
            victim.process.kill()
            victim.process.wait()
        return any(device.node == node and device.is_gone for device in devices)

    link = FlowerLink(superlink.address, superlink.ca_pem, superlink.secret)
    with link.run("training-1") as grid:
        come(grid, devices)
        result = secure_round(
            grid,
            [device.node for device in devices],
            request(statistics=("examples", "seen"), poll_s=0.05),
            is_gone=is_gone,
            entropy=bytes(range(32)),
            ca_pem=ca.pem,
            on_stage=on_stage,
        )
    survivors = devices[:3]
    assert result.survivors == tuple(sorted(device.node for device in survivors))
    assert result.refusals == {victim.node: "lost its connection (train)"}
    assert result.total.weight == 30
    assert result.total.statistics["seen"] == pytest.approx(3.0, abs=1e-3)
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, 0.5 * 30), abs=1e-4)
    for device in survivors:  # the run is over
        assert device.process.wait(30) == 0, (device.directory / "log").read_text()
        assert list((device.directory / "training").glob("*.session")) == []


def test_a_child_without_an_enrolled_device_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wildflower.client.trainer", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr


def test_a_child_finds_its_way_back_when_the_superlink_restarts(
    fleet: tuple[SimulatedCa, RunningSuperLink, Callable[[], Device]],
    app: Path,
    tmp_path: Path,
) -> None:
    ca, superlink, _ = fleet
    directory = tmp_path / "device"
    device = enrol(directory, ca, f"https://{superlink.address}", app)
    save_policy(Policy(secagg="allowed"), directory)
    link = FlowerLink(superlink.address, superlink.ca_pem, superlink.secret)
    node, ended = link.register(public_pem(device.key)), list[str]()
    thread = threading.Thread(target=lambda: ended.append(serve(directory)))
    thread.start()
    note = directory / "training" / "node"
    while not note.exists() or note.read_text() != str(node):
        assert thread.is_alive()
    superlink.stop()
    superlink.start()
    with link.run("training-1") as grid:
        result = None
        while result is None:  # until its first heartbeat the node is known, but not reachable
            assert thread.is_alive()
            with contextlib.suppress(RoundAbortedError):
                result = plain_round(
                    grid,
                    [node],
                    request(statistics=("seen",), min_clients=1, poll_s=0.05),
                    is_gone=lambda _: False,
                    algorithm=FedAvg(),
                )
    assert result.total.weight == 10
    thread.join()
    assert ended == ["the run is over"]


def test_a_child_gives_up_when_the_server_is_away_too_long(
    fleet: tuple[SimulatedCa, RunningSuperLink, Callable[[], Device]],
    app: Path,
    tmp_path: Path,
) -> None:
    ca, superlink, _ = fleet
    directory = tmp_path / "device"
    enrol(directory, ca, f"https://{superlink.address}", app)
    save_config(replace(load_config(directory), training_idle_s=1.0))
    with pytest.raises(LinkRefusedError):  # the key was never registered
        serve(directory)
    superlink.stop()
    with pytest.raises(UnreachableError):
        serve(directory)
