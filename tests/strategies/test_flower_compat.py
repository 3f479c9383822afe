"""Flower's insides: the names and signatures we rely on, and the way through a real SuperLink."""

import inspect
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp import Grid
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.server.flower_link import CLIENT_APP, SERVER_APP
from wildflower.strategies.errors import (
    LinkError,
    LinkRefusedError,
    RunEndedError,
    UnreachableError,
)
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.flower_compat.superlink import build_fab
from wildflower.strategies.flower_compat.transport import Heartbeat, call, pull, translated


def train_message(node: int) -> Message:
    arrays = ArrayRecord({"flat": Array(np.arange(1000, dtype=np.float32))})
    return Message(RecordDict({"arrays": arrays}), node, "train")


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
    for call_name in CALLS[client]:
        assert list(inspect.signature(getattr(client, call_name)).parameters) == ["self", "request"]


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


def answered(status: int, text: str = "", *, token: bool = False) -> httpx.HTTPStatusError:
    headers = {TASK_TOKEN_HEADER: "t"} if token else {}
    request = httpx.Request("POST", "https://host/v1/x", headers=headers)
    return httpx.HTTPStatusError(
        "", request=request, response=httpx.Response(status, text=text, request=request)
    )


RUN_OVER = json.dumps({"code": ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "detail": "over"})
OTHER = json.dumps({"code": ApiErrorCode.PUBLIC_KEY_NOT_VALID, "detail": "not a key"})


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (httpx.ConnectError("refused"), UnreachableError, "does not answer"),
        (answered(503), UnreachableError, "503"),
        (answered(403, RUN_OVER), RunEndedError, "over"),
        (answered(401, token=True), RunEndedError, "stopped"),
        (answered(401), LinkRefusedError, "401 to /v1/x"),
        (answered(400, OTHER), LinkRefusedError, "not a key"),
        (answered(500, "<html>"), LinkRefusedError, "<html>"),
        (inflatable_utils.ObjectPullError("id", "gone"), LinkRefusedError, "lost"),
        (RunNotRunningException(), RunEndedError, "over"),
    ],
    ids=str,
)
def test_only_link_errors_get_out(raised: BaseException, kind: type[LinkError], says: str) -> None:
    with pytest.raises(kind, match=says), translated():
        raise raised


def test_a_call_is_repeated_until_it_is_answered() -> None:
    answers: list[BaseException | str] = [httpx.ConnectError("no"), answered(502), "yes"]

    def what(request: str) -> str:
        match answers.pop(0):
            case BaseException() as error:
                raise error
            case text:
                return text

    assert call(what, "?", patience_s=60.0) == "yes"


def test_a_heartbeat_that_is_not_answered_is_no_failure() -> None:
    beats: list[bool] = []

    def beat() -> bool:
        beats.append(True)
        raise httpx.ConnectError("no")

    with Heartbeat(beat, every_s=0.001) as heartbeat:
        while len(beats) < 3:
            pass
        heartbeat.check()


def test_a_refused_heartbeat_tells_the_reason() -> None:
    def beat() -> bool:
        raise answered(403, OTHER)

    with Heartbeat(beat, every_s=0.001) as heartbeat:
        while heartbeat.failure is None:
            pass
        with pytest.raises(LinkRefusedError, match="not a key"):
            heartbeat.check()


def objects_of(message: Message) -> tuple[ObjectTree, dict[str, bytes]]:
    tree = inflatable_object.get_object_tree(message)
    nested = inflatable_object.get_all_nested_objects(message)
    return tree, {key: each.deflate() for key, each in nested.items()}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_altered_objects_are_refused_whatever_they_hold(data: st.DataObject) -> None:
    assume_identity()
    tree, objects = objects_of(train_message(7))
    key = data.draw(st.sampled_from(sorted(objects)))
    objects[key] = data.draw(st.one_of(st.binary(max_size=30), st.just(objects[key][:-1])))
    with pytest.raises(LinkRefusedError):
        pull(tree, objects.__getitem__, wait_s=0.0)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["Message", "RecordDict", "ArrayRecord", "Array", "X"]), st.binary(max_size=30)
)
def test_objects_that_hash_right_and_hold_nonsense_are_refused(kind: str, body: bytes) -> None:
    content = f"{kind} {len(body)}\0".encode() + body
    key = inflatable_object.get_object_id(content)
    with pytest.raises(LinkRefusedError):
        pull(ObjectTree(object_id=key), {key: content}.__getitem__, wait_s=0.0)


def test_an_untouched_message_is_put_together() -> None:
    assume_identity()
    message = train_message(7)
    tree, objects = objects_of(message)
    found = pull(tree, objects.__getitem__, wait_s=0.0)
    assert found.content == message.content
    assert found.metadata.message_id == tree.object_id


def test_a_part_of_a_message_is_no_message() -> None:
    content = RecordDict()
    tree = inflatable_object.get_object_tree(content)
    with pytest.raises(LinkRefusedError, match="found RecordDict"):
        pull(tree, lambda _: content.deflate(), wait_s=0.0)


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
