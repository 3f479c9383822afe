"""Between server and key holder: TLS with a pinned key, a token, limits, a holder that is gone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.flower_fakes import free_port
from tests.he_fakes import IDENTITY, OTHER_IDENTITY, make_holder

from wildflower.server import keyholder_http, keyholder_link
from wildflower.server.keyholder import KeyHolder
from wildflower.server.keyholder_home import token_digest
from wildflower.server.keyholder_http import KEYS, SUMS, create_app
from wildflower.server.keyholder_link import KeyHolderLink
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import CERTIFICATE_FILE, KEY_FILE, pinned_context
from wildflower.strategies.errors import KeyHolderError, MissingPackageError, ProtocolError
from wildflower.strategies.he.bfv import PublicKey
from wildflower.strategies.he.messages import SumRequest

TOKEN = "the-servers-token"


@dataclass
class Running:
    """A key holder that listens in this process."""

    holder: KeyHolder
    url: str

    def link(self, **changes: object) -> KeyHolderLink:
        given: dict[str, object] = {
            "url": self.url,
            "digest": IDENTITY.digest,
            "token": TOKEN,
            "patience_s": 0.0,
            **changes,
        }
        return KeyHolderLink(**given)  # type: ignore[arg-type]  # a test's own values


def listening(folder: Path, application: Starlette) -> Listener:
    IDENTITY.save(folder)
    files = TlsFiles(folder / KEY_FILE, folder / CERTIFICATE_FILE)
    return Listener(application, Place("127.0.0.1", 0, "--listen"), files)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    holder = make_holder(tmp_path)
    with listening(tmp_path, create_app(holder, token_digest(TOKEN.encode()))) as listener:
        yield Running(holder, f"https://127.0.0.1:{listener.port}")


def sum_of(link: KeyHolderLink, seeds: range = range(3)) -> tuple[SumRequest, list[int]]:
    key = link.key("t1")
    public = PublicKey.load(key.context)
    rows = [np.random.default_rng(s).integers(0, 2**16, 9, dtype=np.uint16) for s in seeds]
    total = public.zero(9)
    for row in rows:
        total.add(public.encrypt(row))
    request = SumRequest("t1", 1, key.digest, len(rows), 9, total.ciphertexts())
    return request, [int(each) for each in np.array(rows).sum(axis=0, dtype=np.uint16)]


def test_a_sum_is_asked_for_over_tls_and_repeated(running: Running) -> None:
    link = running.link()
    assert link.key("t1") == running.holder.key("t1")
    request, expected = sum_of(link)
    assert link.decrypt(request).tolist() == expected
    link.close()
    assert link.decrypt(request).tolist() == expected
    link.close()


def test_a_refusal_arrives_with_its_reason_and_hint(running: Running) -> None:
    link = running.link()
    request, _ = sum_of(link)
    link.decrypt(request)
    with pytest.raises(KeyHolderError, match=r"refuses: .* answered already") as caught:
        link.decrypt(sum_of(link)[0])
    assert "Resume the training" in caught.value.hint
    foreign = SumRequest("t1", 2, request.key, 3, 9, (b"noise",))
    with pytest.raises(ProtocolError, match="refuses: a ciphertext or key is none"):
        link.decrypt(foreign)
    link.close()


def test_a_wrong_token_is_refused(running: Running) -> None:
    link = running.link(token="guessed")
    with pytest.raises(KeyHolderError, match="the token is missing or wrong"):
        link.key("t1")
    link.close()
    assert list(running.holder.runs()) == []


def test_another_key_at_the_address_is_refused(running: Running) -> None:
    link = running.link(digest=OTHER_IDENTITY.digest)
    with pytest.raises(KeyHolderError, match="answers key"):
        link.key("t1")


def test_a_key_holder_that_is_gone_is_named() -> None:
    link = KeyHolderLink(f"https://127.0.0.1:{free_port()}", IDENTITY.digest, TOKEN, patience_s=0)
    with pytest.raises(KeyHolderError, match="does not answer") as caught:
        link.key("t1")
    assert "wildflower keyholder run" in caught.value.hint


def test_a_key_holder_that_comes_back_in_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyholder_link, "PAUSE_S", 0.01)
    holder, tries = make_holder(tmp_path), list[str]()
    application = create_app(holder, token_digest(TOKEN.encode()))
    with listening(tmp_path, application) as listener:
        port = listener.port
        real = pinned_context

        def late(url: str, digest: str, *, timeout_s: float) -> object:
            tries.append(url)
            if len(tries) < 3:
                raise ConnectionRefusedError("not yet")
            return real(url, digest, timeout_s=timeout_s)

        monkeypatch.setattr(keyholder_link, "pinned_context", late)
        link = KeyHolderLink(f"https://127.0.0.1:{port}", IDENTITY.digest, TOKEN)
        assert link.key("t1") == holder.key("t1")
        link.close()
    assert len(tries) == 3


def client(running: Running, token: str = TOKEN) -> httpx.Client:
    return httpx.Client(
        base_url=running.url, verify=False, headers={"authorization": f"Bearer {token}"}
    )


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"run": 1}', b'"x"', b'{"run": "\\ud800"}'])
def test_a_question_that_is_none_is_refused(running: Running, body: bytes) -> None:
    with client(running) as http:
        answer = http.post(KEYS, content=body)
    assert answer.status_code == 400
    assert "expected the text run" in answer.json()["error"]["message"]


def test_what_anybody_may_know_is_that_it_is_up(running: Running) -> None:
    with client(running, token="none") as http:
        assert http.get("/healthz").json() == {"ready": True}
        assert http.post(SUMS, content=b"").status_code == 401


def test_a_body_that_is_too_long_is_not_read(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyholder_http, "MAX_SUM", 1000)
    with client(running) as http:
        answer = http.post(SUMS, content=bytes(1001))
        assert "at most 1000 bytes" in answer.json()["error"]["message"]
        answer = http.post(KEYS, content=bytes(5000))
        assert "at most 4096 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError(28, "No space left on device"), 503), (MissingPackageError("no tenseal"), 503)],
)
def test_a_holder_that_cannot_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fails(run: str) -> None:
        raise error

    monkeypatch.setattr(running.holder, "key", fails)
    with client(running) as http:
        assert http.post(KEYS, content=b'{"run": "t1"}').status_code == status
    link = running.link()
    with pytest.raises(KeyHolderError, match="refuses: "):
        link.key("t1")
    link.close()


STRANGE = {
    "noise": (200, b"noise", "sends no key"),
    "a page": (502, b"<html>", "answers with status 502"),
    "other JSON": (500, b'{"error": 1}', "answers with status 500"),
    "too much": (200, bytes(800_000), "more than"),
    "short": (200, b"x", "sends"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_answers_are_errors_of_the_key_holder(tmp_path: Path, kind: str) -> None:
    status, body, why = STRANGE[kind]

    async def answer(_: Request) -> Response:
        return Response(body, status)

    routes = [Route(path, answer, methods=["POST"]) for path in (KEYS, SUMS)]
    with listening(tmp_path, Starlette(routes=routes)) as listener:
        link = KeyHolderLink(
            f"https://127.0.0.1:{listener.port}", IDENTITY.digest, TOKEN, patience_s=0
        )
        with pytest.raises(KeyHolderError, match=why):
            link.key("t1")
        if status == 200:
            with pytest.raises(KeyHolderError, match=r"sends|more than"):
                link.decrypt(SumRequest("t1", 1, bytes(32), 3, 9, (b"one",)))
        link.close()


def test_tokens_stay_out_of_reprs_and_refusals(running: Running) -> None:
    link = running.link()
    assert TOKEN not in repr(link)
    with client(running, token=TOKEN + "x") as http:
        assert TOKEN not in json.dumps(http.post(KEYS).json())
