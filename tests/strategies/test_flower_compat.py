"""Flower's insides: the names and signatures we rely on, and the way through a real SuperLink."""

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.serverapp import Grid
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from tests.flower_fakes import RunningSuperLink, public_pem, running_superlink

from wildflower.server.flower_link import CLIENT_APP, SERVER_APP, FlowerLink
from wildflower.strategies.errors import (
    LinkError,
    LinkRefusedError,
    RunEndedError,
    UnreachableError,
)
from wildflower.strategies.flower_compat.fleet import FleetConnection
from wildflower.strategies.flower_compat.superlink import SuperLink, build_fab
from wildflower.strategies.flower_compat.transport import Heartbeat

SIGNATURES: dict[Callable[..., Any], list[str]] = {
    build_fab_from_files: ["files"],
    make_message: ["metadata", "content", "error"],
    remove_content_from_message: ["message"],
    ProtobufClient.__init__: [
        *("self", "base_url", "interceptors", "verify", "timeout", "retry_invoker")
    ],
    NodeAuthHttpInterceptor.__init__: ["self", "private_key", "public_key"],
    SuperExecAuthHttpInterceptor.__init__: ["self", "master_secret", "protected_methods"],
    HttpGrid.__init__: ["self", "runtime_api_address", "insecure", "root_certificates", "token"],
    Run.create_empty: ["run_id"],
    inflatable_object.get_object_tree: ["obj"],
    inflatable_object.get_all_nested_objects: ["obj"],
    inflatable_object.iterate_object_tree: ["tree"],
    inflatable_utils.inflate_object_from_contents: [
        *("object_id", "object_contents", "keep_object_contents", "objects")
    ],
    inflatable_utils.push_objects: [
        *("objects", "push_object_fn", "object_ids_to_push", "keep_objects"),
        "max_concurrent_pushes",
    ],
    inflatable_utils.pull_objects: [
        *("object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time"),
        *("max_tries_per_object", "initial_backoff", "backoff_cap"),
    ],
    inflatable_protobuf_utils.make_push_object_fn_protobuf: [
        *("push_object_protobuf", "node", "run_id", "session_id")
    ],
    inflatable_protobuf_utils.make_pull_object_fn_protobuf: [
        *("pull_object_protobuf", "node", "run_id")
    ],
}

CALLS: dict[type, list[str]] = {
    FleetHttpClient: [
        *("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages"),
        *("PullObject", "PushObject", "ConfirmMessageReceived", "GetRun"),
    ],
    ControlHttpClient: ["ListNodes", "RegisterNode", "StartRun", "StopRun", "ListRuns"],
    RuntimeHttpClient: [
        *("AcquireTask", "PullTaskInput", "PushTaskOutput", "SendTaskHeartbeat"),
    ],
}


def test_flower_is_a_version_this_was_written_for() -> None:
    assert version("flwr").split(".")[:2] in (["1", "41"], ["1", "42"])


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_function_of_flower_takes_what_it_took(function: Callable[..., Any]) -> None:
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]


@pytest.mark.parametrize("client", CALLS, ids=lambda client: client.__name__)
def test_a_client_of_flower_still_makes_the_calls_we_use(client: type) -> None:
    for name in CALLS[client]:
        assert list(inspect.signature(getattr(client, name)).parameters) == ["self", "request"]


def test_the_private_attributes_that_we_touch_exist() -> None:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    assert isinstance(grid._retry_invoker, RetryInvoker)
    assert isinstance(inspect.getattr_static(HttpGrid, "_runtime_client"), property)
    assert hasattr(TaskIdentity, "_task_id")
    assert issubclass(HttpGrid, Grid)


def test_an_app_bundle_holds_no_code_and_is_reproducible() -> None:
    fab = build_fab("app", server=SERVER_APP, client=CLIENT_APP)
    assert fab == build_fab("app", server=SERVER_APP, client=CLIENT_APP)
    assert len(fab) < 1500
    assert b".py" not in fab.replace(b"pyproject", b"")


def test_a_refused_heartbeat_ends_nothing_and_is_told_to_whoever_asks() -> None:
    with Heartbeat(lambda: False, every_s=0.001) as heartbeat:
        while heartbeat.failure is None:
            pass
        with pytest.raises(RunEndedError):
            heartbeat.check()


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with running_superlink(tmp_path_factory.mktemp("flower")) as running:
        yield running


@pytest.fixture
def link(superlink: RunningSuperLink) -> FlowerLink:
    return FlowerLink(superlink.address, superlink.ca_pem, superlink.secret)


@pytest.fixture
def operator(superlink: RunningSuperLink) -> Iterator[SuperLink]:
    with SuperLink(
        superlink.address, ca_pem=superlink.ca_pem, secret=superlink.secret
    ) as connection:
        yield connection


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def received(connection: FleetConnection) -> Message:
    while (message := connection.receive()) is None:
        pass
    return message


def replies(grid: Grid, ids: list[str]) -> list[Message]:
    found: list[Message] = []
    while len(found) < len(ids):
        found += grid.pull_messages(ids)
    return found


def train_message(node: int) -> Message:
    arrays = ArrayRecord({"flat": Array(np.arange(1000, dtype=np.float32))})
    return Message(RecordDict({"arrays": arrays}), node, "train")


def test_a_node_answers_a_message_that_the_grid_sent(
    superlink: RunningSuperLink,
    link: FlowerLink,
    operator: SuperLink,
    key: ec.EllipticCurvePrivateKey,
) -> None:
    node = link.register(public_pem(key))
    assert link.register(public_pem(key)) == node
    with (
        link.run("training-1") as grid,
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key) as device,
    ):
        assert node in list(grid.get_node_ids())
        assert device.receive() is None
        ids = list(grid.push_messages([train_message(node)]))
        message = received(device)
        assert message.metadata.message_type == "train"
        device.reply(Message(message.content, reply_to=message), runtime_s=0.1)
        (reply,) = replies(grid, ids)
        assert reply.metadata.src_node_id == node
        assert reply.content.array_records["arrays"]["flat"].numpy().tolist() == list(range(1000))
        assert device.is_running(grid.run.run_id)
        run_id = grid.run.run_id
    assert operator.runs()[run_id] == "finished:completed"


def test_two_runs_at_once_keep_their_messages_apart(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    with (
        link.run("a") as first,
        link.run("b") as second,
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key) as device,
    ):
        for grid in (first, second):
            ids = list(grid.push_messages([train_message(node)]))
            message = received(device)
            assert message.metadata.run_id == grid.run.run_id
            device.reply(Message(Error(1, "no"), reply_to=message))
            assert replies(grid, ids)[0].error.reason == "no"


def test_send_and_receive_ends_at_its_timeout(
    link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    with link.run("a") as grid:
        assert list(grid.send_and_receive([train_message(node)], timeout=0.01)) == []


def test_an_error_in_the_body_fails_the_run(link: FlowerLink, operator: SuperLink) -> None:
    before = set(operator.runs())

    def fails() -> None:
        with link.run("a"):
            raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        fails()
    assert [status for run, status in operator.runs().items() if run not in before] == [
        "finished:failed"
    ]


def test_a_stopped_run_ends_for_both_sides(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    with (
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key) as device,
        link.run("a") as grid,
    ):
        grid.push_messages([train_message(node)])
        message = received(device)
        link.stop(grid.run.run_id)
        link.stop(grid.run.run_id)
        with pytest.raises(RunEndedError):
            grid.get_node_ids()
        with pytest.raises(RunEndedError):
            device.reply(Message(message.content, reply_to=message))
        assert not device.is_running(message.metadata.run_id)


def test_the_task_of_a_dead_process_is_in_nobodys_way(
    link: FlowerLink, operator: SuperLink
) -> None:
    operator.start_run(build_fab("app", server=SERVER_APP, client=CLIENT_APP))
    with link.run("a") as grid:
        assert isinstance(list(grid.get_node_ids()), list)


def test_a_key_that_was_not_registered_is_refused(
    superlink: RunningSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    connection = FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key)
    with pytest.raises(LinkRefusedError), connection:
        pass


def test_a_bad_key_cannot_be_registered(link: FlowerLink) -> None:
    with pytest.raises(LinkRefusedError):
        link.register("no key")


def test_a_killed_node_comes_back_at_once_if_it_knows_its_id(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    url = f"https://{superlink.address}"
    with FleetConnection(url, tls=superlink.tls, key=key):  # stays online in Flower's view
        with pytest.raises(LinkRefusedError), FleetConnection(url, tls=superlink.tls, key=key):
            pass
        again = FleetConnection(url, tls=superlink.tls, key=key, last_node=node)
        with again:
            assert again.node_id == node


def test_a_task_cannot_be_acquired_without_the_secret(
    superlink: RunningSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    thief = FlowerLink(superlink.address, superlink.ca_pem, b"0" * 64)
    with pytest.raises(LinkRefusedError), thief.run("a"):
        pass


def test_nodes_stay_known_when_the_superlink_restarts(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    superlink.stop()
    with pytest.raises(UnreachableError):
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key).__enter__()
    superlink.start()
    assert link.register(public_pem(key)) == node
    with (
        link.run("a") as grid,
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key),
    ):
        assert node in list(grid.get_node_ids())


def test_every_error_of_the_link_is_a_link_error() -> None:
    assert {LinkRefusedError, RunEndedError, UnreachableError} == set(LinkError.__subclasses__())


def test_only_the_compat_package_imports_what_flower_does_not_publish() -> None:
    public = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
    rooms = [Path(__file__).parents[2] / room for room in ("strategies", "client", "server")]
    for path in [file for room in rooms for file in room.rglob("*.py")]:
        if "flower_compat" in path.parts:
            continue
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].split(".")[0] == "flwr":
                assert words[1] in public or words[1].startswith("flwr.serverapp."), path
