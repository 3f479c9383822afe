"""A helper of one-shot sessions: a process of its own, with its own directory, keys and opinion.

    identity.key, identity.pem    who it is; the digest of the key is what people pin
    sealing.key                   X25519, what devices seal their seeds to
    card.json                     both, signed: what devices are shown
    ca.pem                        the enrolment CA whose devices it believes
    answered.db                   which request each session belongs to, for ever

Run it where the server's operator cannot read its files: on a machine of the devices' owners, of
a partner, of an auditor. What it promises then: of each session one sum of masks, of no fewer
devices than its own minimum and those devices' policies demand. It needs no access to a server, a
store or a model, and learns nothing about updates.

The claim of a session is on the disk before its answer is computed (`secagg.helper`), so a helper
may be killed at any time. Who asks does not matter: what may be asked is signed by devices.
"""

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wildflower.server import helper_wire
from wildflower.server.ca import write_secret
from wildflower.server.errors import ConflictError, StartError, StoreError
from wildflower.server.home import beside, claimed
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import CERTIFICATE_FILE, KEY_FILE, PinnedIdentity
from wildflower.strategies.errors import ProtocolError, SecAggError
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.helper import Helper
from wildflower.strategies.secagg.messages import KEY, Masked
from wildflower.strategies.secagg.one_shot_keys import check_card, make_card
from wildflower.strategies.secagg.one_shot_messages import HelperCard

log = logging.getLogger(__name__)

SEALING_FILE: Final = "sealing.key"
CARD_FILE: Final = "card.json"
CA_FILE: Final = "ca.pem"
CLAIMS_FILE: Final = "answered.db"
BUSY_S: Final = 30.0
REQUEST_S: Final = 60.0  # in which a request's body must have come
CONCURRENCY: Final = 64  # connections; a server keeps one


@dataclass(frozen=True, slots=True)
class HelperHome:
    """A helper's directory, read.

    Attributes:
        identity: Who it is.
        helper: What answers; its claims are on the disk.
        ca: SHA-256 of the CA's certificate, hex.
        answered: How many sessions it has answered.
    """

    identity: PinnedIdentity
    helper: Helper
    ca: str
    answered: int


class SqlClaims:
    """Claims in an SQLite file, each on the disk before `claim` returns; safe among threads."""

    def __init__(self, path: Path) -> None:
        """Open the file; it is made if needed.

        Raises:
            StartError: It cannot be opened.
        """
        self._turn = threading.Lock()
        try:
            self._database = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answered"
                " (session BLOB PRIMARY KEY, request BLOB NOT NULL, at TEXT NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise StartError(f"{path} cannot be opened: {error}") from error

    def claim(self, session: bytes, request: bytes, *, now: datetime) -> bytes:
        """Claim a session for a request, unless it is claimed already; see `helper.Claims`.

        Raises:
            StoreError: The disk is full, or fails.
        """
        row = (session, request, now.isoformat())
        try:
            with self._turn:
                self._database.execute("INSERT OR IGNORE INTO answered VALUES (?, ?, ?)", row)
                found = self._database.execute(
                    "SELECT request FROM answered WHERE session = ?", (session,)
                ).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"the session cannot be claimed: {error}") from error
        return bytes(found[0])

    def count(self) -> int:
        """Return how many sessions are claimed."""
        with self._turn:
            found = self._database.execute("SELECT count(*) FROM answered").fetchone()
        return int(found[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def make_helper(
    directory: Path, *, ca_pem: bytes, min_cohort: int, entropy: bytes, now: datetime
) -> HelperCard:
    """Make a directory a helper; return its card.

    Args:
        directory: It may exist, but must be empty.
        ca_pem: The enrolment CA whose devices the helper believes, PEM.
        min_cohort: Fewest devices whose masks it adds up.
        entropy: 32 secret random bytes, for its sealing key.
        now: From when its certificate holds.

    Raises:
        ConflictError: The directory is not empty.
        StartError: `ca_pem` is no CA's, or the minimum is out of range.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError(f"{directory} is not empty", hint="Choose another --dir.")
    identity = PinnedIdentity.make("Wildflower helper", now)
    private = keys.derive(entropy, b"", b"helper/sealing")
    try:
        keys.load_ca(ca_pem)
        card = make_card(identity.public_der, keys.public_key(private), min_cohort, identity.sign)
    except ValueError as error:
        raise StartError(f"no helper can be made: {error}") from error
    with beside(directory) as place:
        identity.save(place)
        write_secret(place / SEALING_FILE, private)
        (place / CA_FILE).write_bytes(ca_pem)
        (place / CARD_FILE).write_bytes(flat.to_bytes(card.to_fields()))
        SqlClaims(place / CLAIMS_FILE).close()
    return card


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[HelperHome]:
    """Read a helper's directory, for as long as the block lasts.

    Raises:
        StartError: It is none, or a file is damaged.
    """
    identity = PinnedIdentity.load(directory)
    try:
        private = (directory / SEALING_FILE).read_bytes()
        ca_pem = (directory / CA_FILE).read_bytes()
        card = HelperCard.from_fields(flat.from_bytes((directory / CARD_FILE).read_bytes()))
        ca = keys.load_ca(ca_pem)
        check_card(card)
    except (OSError, ValueError, ProtocolError) as error:
        raise StartError(
            f"{directory} is no helper: {error}",
            hint="Make one: wildflower helper init --dir DIR --ca CA.pem",
        ) from error
    fits = len(private) == KEY and keys.public_key(private) == card.sealing_key
    if not fits or card.digest != identity.digest:
        raise StartError(f"{directory}: {CARD_FILE} is not the card of the keys beside it")
    claims = SqlClaims(directory / CLAIMS_FILE)
    try:
        digest = hashlib.sha256(ca.public_bytes(Encoding.DER)).hexdigest()
        yield HelperHome(identity, Helper(card, private, ca, claims), digest, claims.count())
    finally:
        claims.close()


def run_helper(directory: Path, place: Place, stopping: threading.Event) -> None:
    """Answer until told to stop.

    Raises:
        StartError: The directory is no helper, one runs in it already, or the port is in use.
    """
    files = TlsFiles(directory / KEY_FILE, directory / CERTIFICATE_FILE)
    with opened(directory) as home, claimed(directory, what="a helper", hint="One is enough."):
        application = create_app(home.helper, now=lambda: datetime.now(UTC))
        with Listener(application, place, files, concurrency=CONCURRENCY) as listener:
            log.info("helper ready", extra={"port": listener.port, "key": home.helper.card.digest})
            stopping.wait()


def create_app(helper: Helper, *, now: Callable[[], datetime]) -> Starlette:
    """Return the application of a helper's listener."""

    def check(body: bytes) -> Response:
        helper.check(helper_wire.read_request(body), now=now())
        return Response(status_code=204)

    def add_up(body: bytes) -> Response:
        request = helper_wire.read_request(body)
        total = helper.sum(request, now=now())
        log.info(
            "session answered",
            extra={"session": request.params.session.hex(), "devices": len(request.seeds)},
        )
        masked = Masked.of(request.params.session, total)
        return Response(masked.residues, media_type="application/octet-stream")

    async def get_card(_: Request) -> Response:
        return Response(flat.to_bytes(helper.card.to_fields()), media_type="application/json")

    async def post_check(request: Request) -> Response:
        return await _answered(request, check)

    async def post_sum(request: Request) -> Response:
        return await _answered(request, add_up)

    return Starlette(
        routes=[
            Route(helper_wire.CARD, get_card),
            Route(helper_wire.CHECK, post_check, methods=["POST"]),
            Route(helper_wire.SUM, post_sum, methods=["POST"]),
        ]
    )


async def _answered(request: Request, act: Callable[[bytes], Response]) -> Response:
    """Read a request's body and act on it, or say why not."""
    try:
        async with asyncio.timeout(REQUEST_S):
            body = await _body(request)
        return await run_in_threadpool(act, body)
    except TimeoutError:
        error = ProtocolError(f"no whole request within {REQUEST_S:.0f} s")
        return JSONResponse(helper_wire.write_error(error), 408)
    except SecAggError as error:
        log.warning("refused: %s", error)
        return JSONResponse(helper_wire.write_error(error), 403)
    except StoreError as error:
        log.error("not answered: %s", error)
        return JSONResponse(helper_wire.write_error(error), 503)


async def _body(request: Request) -> bytes:
    """Read the body, and no byte more than is allowed."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > helper_wire.MAX_REQUEST:
                raise ProtocolError(f"a request has at most {helper_wire.MAX_REQUEST} bytes")
    except ClientDisconnect as error:
        raise ProtocolError("the request broke off") from error
    return bytes(body)
