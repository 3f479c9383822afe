"""The server's way to a helper: what it makes of whatever answers there, over real TLS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.helper_fakes import grid_of
from tests.one_shot_fakes import OneShotPlay, make_one_shot_params
from tests.round_fakes import LAYOUT, request
from tests.secagg_fakes import entropy_of

from wildflower.server import helper_wire
from wildflower.server.helper import create_app
from wildflower.server.helper_link import HelperLink
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import CERTIFICATE_FILE, KEY_FILE, PinnedIdentity
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.errors import HelperError, ProtocolError
from wildflower.strategies.one_shot_round import one_shot_round
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.helper import Helper, MemoryClaims
from wildflower.strategies.secagg.one_shot_keys import make_card

CA = SimulatedCa()
DEVICES = tuple(CA.enrol() for _ in range(4))

Answer = Callable[[], Response]


@dataclass
class Desk:
    """A helper's address, at which anything may answer."""

    folder: Path
    card_answer: Answer | None = None
    other_answer: Answer | None = None
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = PinnedIdentity.make("test", datetime.now(UTC))
        self.identity.save(self.folder)
        private = entropy_of("sealing")
        sealing, sign = keys.public_key(private), self.identity.sign
        self.card = make_card(self.identity.public_der, sealing, 3, sign)
        self.helper = Helper(self.card, private, CA.certificate, MemoryClaims())
        params = make_one_shot_params([self.helper], 4)
        self.play = OneShotPlay(params, devices=DEVICES)

    def application(self) -> Starlette:
        async def card(_: Request) -> Response:
            if self.card_answer is not None:
                return self.card_answer()
            return Response(flat.to_bytes(self.card.to_fields()))

        async def other(asked: Request) -> Response:
            self.asked.append(asked.url.path)
            assert self.other_answer is not None
            return self.other_answer()

        paths = (helper_wire.CHECK, helper_wire.SUM)
        posts = [Route(path, other, methods=["POST"]) for path in paths]
        return Starlette(routes=[Route(helper_wire.CARD, card), *posts])

    @contextmanager
    def link(self, application: Starlette | None = None) -> Iterator[HelperLink]:
        """Connect to what answers at the address."""
        files = TlsFiles(self.folder / KEY_FILE, self.folder / CERTIFICATE_FILE)
        served = Listener(application or self.application(), Place("127.0.0.1", 0, "port"), files)
        with served as listener:
            url = f"https://127.0.0.1:{listener.port}"
            with HelperLink.connect(url, self.card.digest, patience_s=0.0) as link:
                yield link


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def no_card() -> Response:
    return Response(b"{}")


def long_card() -> Response:
    return Response(bytes(helper_wire.MAX_TOLD + 1))


def test_a_helper_without_a_card_of_its_own_is_none(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Desk(tmp_path / "other")
    altered = replace(desk.card, sealing_key=keys.public_key(b"s" * 32))
    for answer, why in (
        (no_card, "shows no card: expected helper-card"),
        (long_card, "more than the 8192 bytes"),
        (lambda: Response(flat.to_bytes(altered.to_fields())), "is not signed by it"),
        (lambda: Response(flat.to_bytes(stranger.card.to_fields())), "shows the card of"),
    ):
        desk.card_answer = answer
        with pytest.raises(HelperError, match=why), desk.link():
            pass


ODD: dict[str, tuple[Answer, type[Exception], str]] = {
    "too short": (lambda: Response(bytes(7)), HelperError, "answers 7 bytes, expected 32"),
    "too long": (lambda: Response(bytes(33)), HelperError, "more than the 32 bytes"),
    "busy": (lambda: Response("busy", 503), HelperError, "does not answer: it answered b'busy'"),
    "a full disk": (
        lambda: JSONResponse({"error": {"type": "E", "message": "disk full", "hint": "h"}}, 503),
        HelperError,
        "does not answer: disk full",
    ),
    "a refusal": (
        lambda: JSONResponse({"error": {"type": "E", "message": "too few", "hint": "h"}}, 403),
        ProtocolError,
        "refuses: too few",
    ),
    "a refusal without words": (lambda: Response(status_code=404), ProtocolError, "refuses: it"),
    "a long refusal": (lambda: Response(bytes(9999), 403), HelperError, "more than the 8192"),
}


@pytest.mark.parametrize(("answer", "kind", "why"), ODD.values(), ids=ODD)
def test_whatever_is_no_sum_is_an_error_that_names_the_helper(
    desk: Desk, answer: Answer, kind: type[Exception], why: str
) -> None:
    desk.other_answer = answer
    with desk.link() as link, pytest.raises(kind, match=why) as error:
        link.sum(desk.play.request(desk.play.answers))
    assert f"helper {desk.card.digest[:12]} at https://127.0.0.1:" in str(error.value)


def test_a_helper_that_is_busy_is_asked_again(desk: Desk) -> None:
    expected = desk.play.params.encoding.length * 4
    answers = iter([Response("busy", 503), Response(bytes(expected))])
    desk.other_answer = lambda: next(answers)
    with desk.link() as link:
        patient = replace(link, patience_s=30.0)
        assert not patient.sum(desk.play.request(desk.play.answers)).any()
    assert desk.asked == [helper_wire.SUM] * 2


def test_a_round_goes_through_a_helper_over_tls(desk: Desk) -> None:
    grid = grid_of(CA, desk.card.digest, 5)
    helper = create_app(desk.helper, now=lambda: datetime.now(UTC))
    with desk.link(helper) as link:
        result = one_shot_round(
            grid,
            list(range(11, 16)),
            request(),
            is_gone=grid.is_gone,
            entropy=bytes(range(32)),
            ca_pem=CA.pem,
            helpers=[link],
        )
    assert result.total.weight == 50.0
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, 25.0), abs=1e-4)
