"""A helper: its directory, its application, its commands, and its real process over real TLS."""

import asyncio
import json
import random
import signal
import stat
import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.asgi_fakes import AsgiTransport
from tests.helper_fakes import grid_of, helper_directory, helper_process
from tests.one_shot_fakes import OneShotPlay, make_one_shot_params
from tests.round_fakes import request as asked
from tests.secagg_fakes import entropy_of

from wildflower.cli import main
from wildflower.server import helper_wire
from wildflower.server.errors import ConflictError, StartError, StoreError
from wildflower.server.helper import (
    CA_FILE,
    CARD_FILE,
    CLAIMS_FILE,
    SEALING_FILE,
    SqlClaims,
    create_app,
    make_helper,
    opened,
    run_helper,
)
from wildflower.server.helper_link import HelperLink
from wildflower.server.listener import Place as Socket
from wildflower.server.ports import choose_ports
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.errors import HelperError, ProtocolError, RoundAbortedError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.one_shot_round import one_shot_round
from wildflower.strategies.secagg.helper import Helper
from wildflower.strategies.secagg.one_shot_messages import HelperCard

CA = SimulatedCa()
DEVICES = tuple(CA.enrol() for _ in range(5))
NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Place:
    """A helper's directory and port."""

    directory: Path
    port: int
    card: HelperCard

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def connect(self, patience_s: float = 20.0) -> HelperLink:
        return HelperLink.connect(self.url, self.card.digest, patience_s=patience_s)

    def play(self, *parts: object) -> OneShotPlay:
        """Return a session of five devices with this helper."""
        with opened(self.directory) as home:
            params = make_one_shot_params([home.helper], 5, session=entropy_of("session", *parts))
        return OneShotPlay(params, devices=DEVICES)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    [port] = choose_ports(1, ["127.0.0.1"], random.Random())
    return Place(tmp_path / "helper", port, helper_directory(tmp_path / "helper", CA.pem))


def unmasked(play: OneShotPlay, mask: Residues, devices: list[str]) -> bool:
    """Whether a mask is the one that was missing."""
    dtype = play.params.encoding.dtype
    total = np.zeros(play.params.encoding.length, dtype)
    for device in devices:
        total += play.answers[device].masked.vector(dtype)
    return np.array_equal(total - mask, play.plain_sum(devices))


def test_a_directory_is_made_once_and_its_secrets_are_its_owners(place: Place) -> None:
    for name in (SEALING_FILE, "identity.key"):
        assert stat.S_IMODE((place.directory / name).stat().st_mode) == 0o600
    with opened(place.directory) as home:
        assert home.helper.card == place.card
        assert home.identity.digest == place.card.digest
        assert home.answered == 0
        assert repr(home.helper.private)[2:-1] not in repr(home)
    with pytest.raises(ConflictError, match="is not empty"):
        helper_directory(place.directory, CA.pem)


@pytest.mark.parametrize(("ca", "min_cohort", "why"), [(b"no CA", 3, "PEM"), (CA.pem, 2, "is 2")])
def test_what_makes_no_helper_is_told_and_nothing_is_left(
    tmp_path: Path, ca: bytes, min_cohort: int, why: str
) -> None:
    with pytest.raises(StartError, match=why):
        make_helper(tmp_path / "h", ca_pem=ca, min_cohort=min_cohort, entropy=bytes(32), now=NOW)
    assert list(tmp_path.iterdir()) == []


DAMAGES: dict[str, tuple[str, bytes]] = {
    "no card": (CARD_FILE, b""),
    "no CA": (CA_FILE, b"none"),
    "a short key": (SEALING_FILE, b"short"),
    "another key": (SEALING_FILE, b"k" * 32),
    "no claims": (CLAIMS_FILE, b"this is no database" * 100),
}


@pytest.mark.parametrize(("name", "data"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_directory_does_not_start(place: Place, name: str, data: bytes) -> None:
    (place.directory / name).write_bytes(data)
    with pytest.raises(StartError), opened(place.directory):
        pass


def test_the_first_claim_wins_among_threads_and_after_a_restart(tmp_path: Path) -> None:
    claims = SqlClaims(tmp_path / "answered.db")
    requests = [bytes([number]) * 32 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda each: claims.claim(b"s" * 32, each, now=NOW), requests))
    assert len(found) == 1
    claims.close()
    again = SqlClaims(tmp_path / "answered.db")
    assert again.claim(b"s" * 32, b"other" * 6, now=NOW) in found
    assert again.claim(b"t" * 32, b"other" * 6, now=NOW) == b"other" * 6
    assert again.count() == 2
    again.close()


def test_a_disk_that_fails_is_no_claim(tmp_path: Path) -> None:
    claims = SqlClaims(tmp_path / "answered.db")
    claims.close()
    with pytest.raises(StoreError, match="cannot be claimed"):
        claims.claim(b"s" * 32, b"r" * 32, now=NOW)


def post(helper: Helper, path: str, body: bytes) -> tuple[int, bytes]:
    """Return what a helper's application answers to a body."""
    application = create_app(helper, now=lambda: datetime.now(UTC))
    with httpx.Client(transport=AsgiTransport(application), base_url="http://helper") as client:
        answer = client.post(path, content=body)
        return answer.status_code, answer.content


@pytest.fixture
def desk(place: Place) -> Callable[[str, bytes], tuple[int, bytes]]:
    """Return what posts a body to the application, without a network."""

    def send(path: str, body: bytes) -> tuple[int, bytes]:
        with opened(place.directory) as home:
            return post(home.helper, path, body)

    return send


def test_a_request_that_is_in_order_is_answered(
    place: Place, desk: Callable[[str, bytes], tuple[int, bytes]]
) -> None:
    play = place.play()
    body = helper_wire.write_request(play.request(play.answers))
    assert desk(helper_wire.CHECK, body) == (204, b"")
    status, found = desk(helper_wire.SUM, body)
    assert status == 200
    assert unmasked(play, np.frombuffer(found, "<u4"), sorted(play.answers))


def test_a_refusal_says_why_in_words(
    place: Place, desk: Callable[[str, bytes], tuple[int, bytes]]
) -> None:
    play = place.play()
    few = helper_wire.write_request(play.request(sorted(play.answers)[:2]))
    status, found = desk(helper_wire.SUM, few)
    assert status == 403
    assert "2 devices are in the sum, 3 are needed" in str(helper_wire.read_error(found))
    assert helper_wire.read_error(found).hint


def test_a_body_that_is_too_long_is_refused(
    desk: Callable[[str, bytes], tuple[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper_wire, "MAX_REQUEST", 1000)
    status, found = desk(helper_wire.SUM, bytes(1001))
    assert status == 403
    assert "at most 1000 bytes" in str(helper_wire.read_error(found))


def test_a_body_that_does_not_come_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wildflower.server.helper.REQUEST_S", 0.01)
    told: list[tuple[int, str]] = []

    async def silent() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def ended() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if "status" in message:
            told.append((message["status"], ""))
        else:
            told.append((0, json.loads(message["body"])["error"]["message"]))

    path = {"path": helper_wire.SUM, "query_string": b""}
    with opened(place.directory) as home:
        application = create_app(home.helper, now=lambda: datetime.now(UTC))
        for receive in (silent, ended):
            scope = {"type": "http", "method": "POST", "headers": [], **path}
            asyncio.run(application(scope, receive, send))
    assert told == [
        (408, ""),
        (0, "no whole request within 0 s"),
        (403, ""),
        (0, "the request broke off"),
    ]


OBJECTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@given(st.one_of(st.binary(max_size=200), OBJECTS.map(lambda each: json.dumps(each).encode())))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_makes_it_stumble(
    desk: Callable[[str, bytes], tuple[int, bytes]], body: bytes
) -> None:
    status, found = desk(helper_wire.SUM, body)
    assert status == 403
    assert json.loads(found)["error"]["type"] == "ProtocolError"


@given(st.binary(max_size=100))
def test_any_refusal_can_be_read(body: bytes) -> None:
    assert isinstance(helper_wire.read_error(body), ProtocolError)


def test_a_store_that_fails_is_told_as_our_own_fault(place: Place) -> None:
    play = place.play()
    with opened(place.directory) as home:
        broken = SqlClaims(place.directory / "other.db")
        broken.close()
        helper = replace(home.helper, claims=broken)
        body = helper_wire.write_request(play.request(play.answers))
        status, found = post(helper, helper_wire.SUM, body)
    assert status == 503
    assert json.loads(found)["error"]["type"] == "StoreError"


def test_a_real_helper_answers_a_session_once(place: Place) -> None:
    play = place.play()
    devices = sorted(play.answers)
    with helper_process(place.directory, place.port) as process, place.connect() as link:
        assert link.card == place.card
        link.check(play.request(devices[:1]))
        mask = link.sum(play.request(devices))
        assert unmasked(play, mask, devices)
        assert np.array_equal(link.sum(play.request(devices)), mask)
        with pytest.raises(
            ProtocolError, match=f"helper {place.card.digest[:12]} .* refuses: this"
        ):
            link.sum(play.request(devices[1:]))
        with pytest.raises(ProtocolError, match="2 devices are in the sum"):
            link.sum(place.play("other").request(devices[:2]))
        assert process.poll() is None
        with pytest.raises(StartError, match=f"a helper runs in {place.directory} already"):
            run_helper(place.directory, Socket("127.0.0.1", 0, "--listen"), threading.Event())
    assert process.returncode == 0


def test_a_helper_killed_between_claim_and_answer_answers_the_same_when_it_is_back(
    place: Place,
) -> None:
    play = place.play()
    devices = sorted(play.answers)
    with ThreadPoolExecutor(1) as pool:
        with helper_process(place.directory, place.port, deadly=True) as process:
            link = place.connect(patience_s=60.0)
            asked = pool.submit(link.sum, play.request(devices))
            assert process.wait(60.0) == -signal.SIGKILL
        assert not asked.done()
        with opened(place.directory) as home:
            assert home.answered == 1
        with helper_process(place.directory, place.port):
            assert unmasked(play, asked.result(60.0), devices)
            with pytest.raises(ProtocolError, match="answered already"):
                link.sum(play.request(devices[1:]))
            link.close()


def test_a_helper_that_is_gone_is_told_by_name_and_address(place: Place) -> None:
    gone = f"helper {place.card.digest[:12]} at {place.url} does not answer"
    with pytest.raises(HelperError, match=gone):
        place.connect(patience_s=0.0)
    with helper_process(place.directory, place.port):
        link = place.connect(patience_s=0.0)
    grid = grid_of(CA, place.card.digest, 4)
    with link, pytest.raises(RoundAbortedError, match=gone):
        one_shot_round(
            grid,
            list(range(11, 15)),
            asked(),
            is_gone=grid.is_gone,
            entropy=bytes(range(32)),
            ca_pem=CA.pem,
            helpers=[link],
        )


def test_another_helper_at_its_address_is_not_asked(place: Place) -> None:
    with helper_process(place.directory, place.port), pytest.raises(HelperError, match="pinned is"):
        HelperLink.connect(place.url, "0" * 64, patience_s=0.0)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["helper", *words, "--format", "json"])
    return int(caught.value.code or 0), json.loads(capsys.readouterr().out)


def test_init_and_show_tell_the_digest_that_people_pin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    where = ["--dir", str(tmp_path / "h")]
    code, made = command(
        capsys, "init", *where, "--ca", str(tmp_path / "ca.pem"), "--min-cohort", "20"
    )
    assert (code, made["min_cohort"], made["answered"]) == (0, 20, 0)
    with opened(tmp_path / "h") as home:
        assert made["digest"] == home.helper.card.digest
    assert command(capsys, "show", *where) == (0, made)


BAD: dict[str, tuple[list[str], str]] = {
    "no CA file": (["init", "--ca", "nowhere.pem"], "nowhere.pem cannot be read"),
    "no helper": (["show"], "the identity in"),
    "no port": (["run", "--listen", "127.0.0.1"], "--listen = '127.0.0.1' is not allowed"),
    "a port too high": (["run", "--listen", "[::1]:65536"], "is not allowed"),
}


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_told(
    words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = command(capsys, *words, "--dir", str(tmp_path / "h"))
    assert code == 1
    assert why in str(told["error"])
