"""The whole way through a real SuperLink: nodes, runs, tasks, grids, restarts."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from tests.flower_fakes import RunningSuperLink, public_pem, running_superlink

from wildflower.server.flower_link import CLIENT_APP, SERVER_APP, FlowerLink
from wildflower.strategies.errors import (
    LinkRefusedError,
    RunEndedError,
    UnreachableError,
)
from wildflower.strategies.flower_compat.fleet import FleetConnection
from wildflower.strategies.flower_compat.messages import name
from wildflower.strategies.flower_compat.superlink import SuperLink, build_fab


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


def announce(device: FleetConnection, reply: Message) -> PushMessagesResponse:
    """Tell the SuperLink of a reply, as `reply` does, and push none of its objects."""
    with inflatable_object.no_object_id_recompute():
        name(reply, reply.object_id)
        return device._client.PushMessages(
            PushMessagesRequest(
                node=device._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[inflatable_object.get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
        )


def test_a_reply_that_is_only_announced_holds_nobody_up_and_counts_when_it_is_there(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    with (
        link.run("a") as grid,
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key) as device,
    ):
        ids = list(grid.push_messages([train_message(node)]))
        message = received(device)
        reply = Message(message.content, reply_to=message)
        announced = announce(device, reply)
        assert list(grid.pull_messages(ids)) == []
        assert list(grid.pull_messages(ids)) == []
        push_object = inflatable_protobuf_utils.make_push_object_fn_protobuf(
            device._push_object, device._node, message.metadata.run_id, announced.session_id
        )
        inflatable_utils.push_objects(inflatable_object.get_all_nested_objects(reply), push_object)
        (found,) = grid.pull_messages(ids)
        assert found.metadata.src_node_id == node
        assert list(found.content) == ["arrays"]


def test_send_and_receive_returns_the_replies(
    superlink: RunningSuperLink, link: FlowerLink, key: ec.EllipticCurvePrivateKey
) -> None:
    node = link.register(public_pem(key))
    with (
        link.run("a") as grid,
        FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key) as device,
    ):

        def answer() -> None:
            message = received(device)
            device.reply(Message(message.content, reply_to=message))

        thread = threading.Thread(target=answer)
        thread.start()
        message = grid.create_message(train_message(node).content, "train", node, "group")
        (reply,) = grid.send_and_receive([message])
        thread.join()
        assert reply.metadata.group_id == "group"


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


def test_a_task_that_does_not_appear_is_not_waited_for_for_ever(operator: SuperLink) -> None:
    with pytest.raises(UnreachableError, match="did not appear"):
        operator.acquire(12345, timeout_s=0.1)
