import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from wildflower.server.api.views import EventView
from wildflower.server.cli.remote import Remote, find_remote
from wildflower.server.cli.rest import events_of
from wildflower.server.errors import RemoteError

TOKEN = "operator-token"
URL = "http://127.0.0.1:8440"
AT = "2026-11-24T12:00:00Z"
DEVICE = {
    "name": "camera",
    "device_id": "d1",
    "device_class": "linux-generic",
    "ring": "default",
    "connected": True,
    "running": "",
    "holds": "",
    "last_outcome": "",
    "last_reason": "",
    "last_seen": AT,
    "enrolled_at": AT,
    "revoked": False,
}

Answer = Callable[[httpx.Request], httpx.Response]


def remote(answer: Answer) -> Remote:
    return Remote(URL, TOKEN, httpx.MockTransport(answer))


def event(number: int, kind: str = "round.recorded") -> str:
    """Return an event in its form on the wire."""
    data = {"number": number, "kind": kind, "subject": "t/1", "fields": {}, "at": AT}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


def test_requests_show_the_token_and_answers_become_views() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(201, json={"token": "t", "ring": "lab", "uses": 2, "expires_at": AT})

    invitation = remote(answer).invite(ring="lab", uses=2, hours=0.5)
    assert (invitation.token, invitation.expires_at.year) == ("t", 2026)
    [request] = asked
    assert (request.method, str(request.url)) == ("POST", f"{URL}/api/v1/tokens")
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(request.content) == {"ring": "lab", "uses": 2, "expires_s": 1800.0}


def test_the_token_is_not_shown_with_a_remote() -> None:
    assert TOKEN not in repr(Remote(URL, TOKEN))


def test_pages_are_read_to_the_last() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode())
        name = "b" if "cursor" in request.url.params else "a"
        following = "" if name == "b" else "d1"
        return httpx.Response(200, json={"items": [DEVICE | {"name": name}], "next": following})

    assert [one.name for one in remote(answer).devices()] == ["a", "b"]
    assert asked == ["", "cursor=d1"]


def test_a_problem_becomes_an_error_with_its_hint() -> None:
    problem = {"type": "t", "title": "Not Found", "status": 404, "detail": "no x", "hint": "try y"}

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json=problem)

    with pytest.raises(RemoteError, match=r"^no x$") as caught:
        remote(answer).training("x")
    assert caught.value.hint == "try y"


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", "null", ""])
def test_a_refusal_that_is_no_problem_is_told_by_its_number(body: str) -> None:
    with pytest.raises(RemoteError, match="the server answered 502"):
        remote(lambda _: httpx.Response(502, text=body)).status()


@pytest.mark.parametrize("body", ["{}", "[]", "<html>", json.dumps(DEVICE)])
def test_an_answer_of_another_kind_is_an_error_that_names_versions(body: str) -> None:
    with pytest.raises(RemoteError, match="cannot be read") as caught:
        remote(lambda _: httpx.Response(200, text=body)).status()
    assert "version" in caught.value.hint


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def test_a_server_that_cannot_be_reached_is_told_by_its_address() -> None:
    with pytest.raises(RemoteError, match=f"{URL} cannot be reached: connection refused") as caught:
        remote(unreachable).status()
    assert "server up" in caught.value.hint
    assert not remote(unreachable).is_ready()


def test_nobody_listens_on_a_port_that_is_closed() -> None:
    with pytest.raises(RemoteError, match="cannot be reached"):
        Remote("http://127.0.0.1:9", TOKEN).status()


@pytest.mark.parametrize(("code", "ready"), [(200, True), (503, False)])
def test_a_server_is_ready_when_it_says_so(code: int, ready: bool) -> None:
    assert remote(lambda _: httpx.Response(code, json={})).is_ready() is ready


def test_blobs_go_and_come_as_bytes() -> None:
    kept: dict[str, bytes] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            kept["d"] = request.read()
            return httpx.Response(201, json={"digest": "d", "length": len(kept["d"])})
        found = kept.get(request.url.path.rpartition("/")[2])
        return httpx.Response(404) if found is None else httpx.Response(200, content=found)

    here = remote(answer)
    assert not here.has_blob("d")
    assert here.put_blob(b"\x00\xff").length == 2
    assert here.has_blob("d")
    assert here.blob("d") == b"\x00\xff"


def test_following_goes_on_after_a_lost_connection_and_tells_nothing_twice() -> None:
    asked: list[str] = []
    streams = [
        lambda: iter([": welcome\n\n", event(4), event(5)]),
        lambda: _broken(event(6)),
        lambda: iter([event(7)]),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["last-event-id"])
        pieces = streams[len(asked) - 1]()
        return httpx.Response(200, stream=Pieces(pieces))

    followed = remote(answer).follow(after=3)
    assert [next(followed).number for _ in range(4)] == [4, 5, 6, 7]
    assert asked == ["3", "5", "6"]


class Pieces(httpx.SyncByteStream):
    """A body that comes in pieces."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return (piece.encode() for piece in self._pieces)


def _broken(first: str) -> Iterator[str]:
    yield first
    raise httpx.ReadError("connection reset")


def test_following_a_server_that_stays_away_ends_with_a_sentence() -> None:
    with pytest.raises(RemoteError, match="cannot be reached"):
        next(remote(unreachable).follow(patience_s=0))


def test_following_is_refused_like_any_request() -> None:
    problem = {"detail": "the operator token is missing or wrong", "hint": ""}
    with pytest.raises(RemoteError, match="token is missing"):
        next(remote(lambda _: httpx.Response(401, json=problem)).follow())


def test_waiting_ends_with_the_event_that_gives_a_result() -> None:
    text = event(1, "round.started") + event(2) + event(3)

    def until(one: EventView) -> int | None:
        return one.number if one.kind == "round.recorded" else None

    here = remote(lambda _: httpx.Response(200, text=text))
    assert here.wait_for(until) == 2


def test_waiting_for_what_does_not_come_ends_with_its_time() -> None:
    here = remote(lambda _: httpx.Response(200, text=": still here\n\n"))
    with pytest.raises(RemoteError, match=r"nothing came of it within 0\.01 s"):
        here.wait_for(lambda _: None, timeout_s=0.01)


def test_events_are_read_past_heartbeats_and_over_several_lines() -> None:
    first, last = event(1), event(2).replace("data: {", "data: {\ndata: ")
    lines = f": welcome\n\n{first}: still here\n\n{last}".splitlines()
    found = list(events_of(iter(lines)))
    assert [one.number if one else None for one in found] == [None, 1, None, 2]


def test_an_event_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(RemoteError, match="cannot be read"):
        list(events_of(iter(["data: {}", ""])))


def test_a_directory_names_its_server(tmp_path: Path) -> None:
    (tmp_path / "operator.json").write_text(json.dumps({"url": URL, "token": TOKEN}))
    assert find_remote("", "", tmp_path) == Remote(URL, TOKEN)


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '"x"'])
def test_a_directory_that_is_no_servers_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "operator.json").write_text(text)
    with pytest.raises(RemoteError, match=r"operator\.json cannot be read") as caught:
        find_remote("", "", tmp_path)
    assert f"server init --dir {tmp_path}" in caught.value.hint


def test_a_url_needs_a_token_and_something_must_be_named(tmp_path: Path) -> None:
    assert find_remote(URL, TOKEN, tmp_path) == Remote(URL, TOKEN)
    with pytest.raises(RemoteError, match="no token"):
        find_remote(URL, "", tmp_path)
    with pytest.raises(RemoteError, match="no server is named"):
        find_remote("", "", None)
