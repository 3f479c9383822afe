"""The device's ClientApp as Flower's own SuperNode loads it: app, mod and policy from its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import ConfigRecord, Context, Message, RecordDict
from tests.flower_fakes import pem_of
from tests.round_fakes import LAYOUT, request
from tests.tiny_task import points, task

from wildflower.client.app import DIRECTORY, app, device_app, guard_of
from wildflower.client.config import AgentConfig, save_config
from wildflower.client.errors import ClientError
from wildflower.client.policy import Policy, save_policy
from wildflower.simulation.fleet import STATISTICS
from wildflower.simulation.grid import InProcessGrid
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.initial import initial_model
from wildflower.strategies.round_request import RoundRequest
from wildflower.strategies.trips import plain_round, secure_round


def enrolled(directory: Path, ca: SimulatedCa, *, secagg: str, seed: int) -> Path:
    """Write what enrolment leaves in a device's directory."""
    device = ca.enrol()
    folder = directory / "identity"
    folder.mkdir(parents=True)
    certificate = x509.load_der_x509_certificate(device.certificate_der)
    (folder / "key.pem").write_bytes(pem_of(device.key))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "root.json").write_bytes(b"{}")
    points(40, seed=seed).save(directory / "data.npz")
    save_policy(Policy(secagg=secagg), directory)
    save_config(
        AgentConfig(
            device_id=device.device_id,
            endpoints_device="https://127.0.0.1:1",
            endpoints_channel="127.0.0.1:1",
            app="tests.tiny_task:task",
            data=str(directory / "data.npz"),
            directory=directory,
        )
    )
    return directory


class Nodes:
    """Nodes that Flower's SuperNode would run: each calls `app` with its node config."""

    def __init__(self, tmp_path: Path, secagg: str) -> None:
        self.ca = SimulatedCa()
        self.directories = [
            enrolled(tmp_path / f"device-{i}", self.ca, secagg=secagg, seed=i) for i in range(3)
        ]
        self.grid = InProcessGrid(
            {11 + index: self._node(path) for index, path in enumerate(self.directories)}
        )

    def _node(self, directory: Path) -> Callable[[Message, Context], Message]:
        def call(message: Message, context: Context) -> Message:
            context.node_config = {DIRECTORY: str(directory)}
            return app(message, context)

        return call


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Nodes:
    return Nodes(tmp_path, request.param)


def asked() -> RoundRequest:
    model = initial_model(task, 0)
    layout = Layout.of(model)
    return request(layout=layout, vector=layout.pack(model), statistics=STATISTICS, config={})


@pytest.mark.parametrize("nodes", ["required"], indirect=True)
def test_devices_train_securely_and_keep_their_sessions_on_disk(nodes: Nodes) -> None:
    result = secure_round(
        nodes.grid,
        [11, 12, 13],
        asked(),
        is_gone=nodes.grid.is_gone,
        entropy=bytes(32),
        ca_pem=nodes.ca.pem,
    )
    assert result.refusals == {}
    assert result.total.weight == 3 * 36
    for directory in nodes.directories:
        assert len(list((directory / "training").glob("*.session"))) == 1


@pytest.mark.parametrize("nodes", ["required", "allowed"], indirect=True)
def test_the_policy_file_decides_about_plain_rounds(
    nodes: Nodes, request: pytest.FixtureRequest
) -> None:
    def go() -> float:
        return plain_round(
            nodes.grid, [11, 12, 13], asked(), is_gone=nodes.grid.is_gone, algorithm=FedAvg()
        ).total.weight

    if request.node.callspec.params["nodes"] == "allowed":
        assert go() == 3 * 36
    else:
        with pytest.raises(RoundAbortedError, match="demands secure aggregation"):
            go()


def test_a_node_without_a_device_directory_says_so(tmp_path: Path) -> None:
    context = Context(1, 11, {DIRECTORY: str(tmp_path)}, RecordDict(), {})
    with pytest.raises(ClientError):
        app(Message(RecordDict(), 11, "train"), context)
    with pytest.raises(ClientError):
        guard_of(tmp_path)


@pytest.mark.parametrize(
    "kind", [wire.TRAIN, wire.EVALUATE, wire.ADVERTISE, wire.SHARE, wire.UNMASK]
)
def test_every_kind_of_message_of_a_round_is_answered(kind: str) -> None:
    def echo(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    assume_identity()
    content = RecordDict({"c": ConfigRecord({"size": LAYOUT.size})})
    context = Context(1, 11, {}, RecordDict(), {})
    answer = device_app(lambda _: echo)(Message(content, 11, kind), context)
    assert answer.content is content
