"""The model behind a Unix socket, asked by a client that knows no Python of ours."""

import http.client
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client_fakes import FakeServer, until
from tests.slots_fakes import LABELS, WIDTH, commit, scaling_model

from wildflower.client.errors import AgentError
from wildflower.client.hold import Holds
from wildflower.client.serve_http import MAX_CONNECTIONS, Server, serving
from wildflower.client.spool import Spool
from wildflower.client.tensors import MAX_BODY, to_npy
from wildflower.ota.observe.summary import Summary

BRIGHT = np.ones((1, WIDTH), np.float32)
NPY = {"Content-Type": "application/x-npy"}


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("model", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(
    path: Path, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send one request; return the status and what was said."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    with closing(Connection(path)) as connection:
        with suppress(BrokenPipeError):  # refused before all of it was sent; the answer is there
            connection.request(method, target, data, headers or {})
        answer = connection.getresponse()
        said = answer.read()
    is_json = answer.getheader("Content-Type") == "application/json"
    return answer.status, json.loads(said) if is_json else said


@contextmanager
def served(directory: Path, path: Path) -> Iterator[Server]:
    with serving(directory, path) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    commit(tmp_path, scaling_model(1))
    with served(tmp_path, tmp_path / "s"):
        yield tmp_path


def test_a_program_asks_in_json(place: Path) -> None:
    status, told = ask(place / "s", "POST", "/v1/infer", {"inputs": BRIGHT.tolist()})
    assert (status, told["predicted"], told["outputs"]) == (200, [1], [[-4, 4]])
    assert (told["labels"], len(told["release"])) == (list(LABELS), 64)
    assert 0.99 < told["confidence"][0] <= 1.0


def test_a_program_asks_in_npy_and_may_be_answered_so(place: Path) -> None:
    status, told = ask(place / "s", "POST", "/v1/infer", to_npy(BRIGHT), NPY)
    assert (status, told["predicted"]) == (200, [1])
    accept = NPY | {"Accept": "application/x-npy"}
    status, said = ask(place / "s", "POST", "/v1/infer", to_npy(BRIGHT), accept)
    assert (status, np.load(io.BytesIO(said)).tolist()) == (200, [[-4, 4]])


def test_answers_are_counted_and_labels_too(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with served(tmp_path, tmp_path / "s"):
        ask(tmp_path / "s", "POST", "/v1/infer", {"inputs": BRIGHT.tolist(), "labels": [1]})
    ((_, data),) = Spool(tmp_path / "spool").pending(10)
    assert (Summary.from_bytes(data).n, Summary.from_bytes(data).correct) == (1, 1)


def test_the_model_says_what_it_is_and_follows_a_release(place: Path) -> None:
    _, before = ask(place / "s", "GET", "/v1/model")
    commit(place, scaling_model(3), order=2)

    def after() -> Any:
        ask(place / "s", "POST", "/v1/infer", to_npy(BRIGHT), NPY)
        return ask(place / "s", "GET", "/v1/model")[1]

    until(lambda: after()["artifact"] != before["artifact"])
    assert (before["refusal"], before["holds"]) == ("", [])
    assert ask(place / "s", "GET", "/healthz") == (200, {"ready": True})


def test_a_program_holds_and_lets_go(place: Path) -> None:
    hold = {"reason": "measuring", "max_s": 60}
    status, told = ask(place / "s", "POST", "/v1/hold", hold)
    (found,) = Holds(place).standing()
    assert (status, found.name, found.reason) == (201, told["id"], "measuring")
    assert "measuring" in ask(place / "s", "GET", "/v1/model")[1]["holds"][0]
    released = ask(place / "s", "DELETE", f"/v1/hold?id={told['id']}")
    assert (released[0], Holds(place).standing()) == (200, ())
    assert ask(place / "s", "DELETE", f"/v1/hold?id={told['id']}")[0] == 404


def test_a_hold_ends_by_itself_and_with_the_server(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with served(tmp_path, tmp_path / "s"):
        _, told = ask(tmp_path / "s", "POST", "/v1/hold", {"reason": "a", "max_s": 0.05})
        until(lambda: Holds(tmp_path).standing() == ())
        ask(tmp_path / "s", "POST", "/v1/hold", {"reason": "b", "max_s": 60})
        assert ask(tmp_path / "s", "DELETE", f"/v1/hold?id={told['id']}")[0] == 404
        assert len(Holds(tmp_path).standing()) == 1
    assert Holds(tmp_path).standing() == ()


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status", "told"),
    [
        ("GET", "/", None, {}, 404, "no GET /"),
        ("GET", "/v1/infer", None, {}, 405, "no GET"),
        ("POST", "/v1/model", b"x", {}, 405, "no POST"),
        ("POST", "/v1/infer", b"{", {}, 400, "not JSON"),
        ("POST", "/v1/infer", b"x", NPY, 400, "not an array"),
        ("POST", "/v1/infer", b"x", {"Content-Type": "text/plain"}, 415, "text/plain"),
        ("POST", "/v1/infer", {"inputs": [[1, 2, 3]]}, {}, 400, "cannot answer"),
        ("POST", "/v1/infer", b"", {"Content-Length": "-1"}, 400, "Content-Length"),
        ("POST", "/v1/infer", b"", {"Content-Length": str(MAX_BODY + 1)}, 400, "at most"),
        ("POST", "/v1/infer", b"", {"Transfer-Encoding": "chunked"}, 400, "Transfer-Encoding"),
        ("POST", "/v1/hold", {"reason": "a", "max_s": True}, {}, 400, "expected"),
        ("POST", "/v1/hold", {"reason": "a", "max_s": 10**400}, {}, 400, "expected"),
        ("POST", "/v1/hold", {"reason": "", "max_s": 1}, {}, 400, "a reason is"),
        ("POST", "/v1/hold", {"reason": "a", "for": 1}, {}, 400, "unknown key 'for'"),
        ("DELETE", "/v1/hold", None, {}, 404, "no such hold"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    place: Path,
    method: str,
    target: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    told: str,
) -> None:
    found, said = ask(place / "s", method, target, body, headers)
    assert (found, told in said["error"]["message"]) == (status, True)
    assert ask(place / "s", "GET", "/healthz")[0] == 200


def test_a_device_without_a_model_says_so_until_there_is_one(tmp_path: Path) -> None:
    with served(tmp_path, tmp_path / "s"):
        for method, target in (("GET", "/healthz"), ("GET", "/v1/model")):
            status, said = ask(tmp_path / "s", method, target)
            assert (status, said["error"]["type"]) == (503, "RefusedError")
        commit(tmp_path, scaling_model(1))
        assert ask(tmp_path / "s", "GET", "/healthz")[0] == 200


def test_one_connection_carries_many_questions(place: Path) -> None:
    connection = Connection(place / "s")
    for _ in range(3):
        connection.request("POST", "/v1/infer", to_npy(BRIGHT), NPY)
        assert json.loads(connection.getresponse().read())["predicted"] == [1]
    connection.close()


def test_more_connections_than_places_are_closed(place: Path) -> None:
    taken = [Connection(place / "s") for _ in range(MAX_CONNECTIONS)]
    for one in taken:
        one.request("GET", "/healthz")
        assert one.getresponse().read()
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(place / "s", "GET", "/healthz")
    for one in taken:
        one.close()
    until(lambda: _answers(place / "s"))


def _answers(path: Path) -> bool:
    try:
        return ask(path, "GET", "/healthz")[0] == 200
    except (http.client.HTTPException, OSError):
        return False


def test_a_body_that_ends_early_is_told(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(place / "s"))
        raw.sendall(b"POST /v1/infer HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        raw.shutdown(socket.SHUT_WR)
        said = raw.makefile("rb").read()
    assert b"ended after 3 of 10 bytes" in said


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda end: b"POST /v1/infer HTTP/1.1\r\n" + end),
        st.binary(max_size=60).map(
            lambda body: b"POST /v1/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        ),
        st.binary(max_size=60).map(
            lambda end: b"DELETE /v1/hold?id=" + end + b" HTTP/1.1\r\nHost: model\r\n\r\n"
        ),
    )
)
def test_whatever_comes_the_next_question_is_answered(place: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(place / "s"))
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        said = raw.makefile("rb").read()
    assert b"Traceback" not in said
    assert ask(place / "s", "GET", "/healthz")[0] == 200


def test_the_socket_is_for_its_user_and_group(place: Path) -> None:
    assert stat.S_IMODE((place / "s").stat().st_mode) == 0o660


def test_a_socket_that_was_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with served(tmp_path, path):
        with pytest.raises(AgentError, match="listens"), serving(tmp_path, path):
            pass
        assert path.is_socket()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(AgentError, match="no socket"), serving(tmp_path, path):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(AgentError, match="no socket at"), serving(tmp_path, tmp_path / ("a" * 120)):
        pass


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "server") as server:
        directory = server.enrol(tmp_path / "device")
    commit(directory, scaling_model(1))
    path = tmp_path / "s"
    command = ["-m", "wildflower.cli", "agent", "serve", "--dir", str(directory), "--socket"]
    with subprocess.Popen([sys.executable, *command, str(path)], env=dict(os.environ)) as process:
        try:
            until(lambda: path.exists() and _answers(path))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert not path.exists()
