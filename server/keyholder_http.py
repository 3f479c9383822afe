"""The way between server and key holder: HTTPS, a token, two questions. Both ends are here.

    GET  /healthz     whether it is up
    POST /v1/keys     {"run"}                  -> `RunKey`, its byte form
    POST /v1/sums     `SumRequest`, its bytes  -> residues, little-endian, 2 bytes each

The key holder's key is the one whose digest was configured, or there is no link (`server.pinned`).
The server shows a token of which the key holder knows the digest: who may have sums decrypted is
not everybody. Both questions may be repeated: the answer is the same.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wildflower.server.errors import PinError
from wildflower.server.keyholder import KeyHolder
from wildflower.server.pinned import pinned_context
from wildflower.strategies.errors import (
    KeyHolderError,
    MissingPackageError,
    ProtocolError,
    StrategyError,
)
from wildflower.strategies.he.messages import MAX_CIPHERTEXT, MAX_HEADER, RunKey, SumRequest
from wildflower.strategies.he.packing import MAX_LENGTH, chunks_of

log = logging.getLogger(__name__)

MAX_ASKED: Final = 4096  # bytes of a question for a key
MAX_SUM: Final = MAX_HEADER + chunks_of(MAX_LENGTH) * (MAX_CIPHERTEXT + 4)  # bytes
BODY_S: Final = 300.0  # seconds in which a request's body must have come
TIMEOUT_S: Final = 300.0  # of one question; a sum of 67 million residues takes a minute
CONNECT_S: Final = 5.0
PATIENCE_S: Final = 20.0  # in which a key holder that does not answer may come back
PAUSE_S: Final = 0.5


class KeyHolderLink:
    """A key holder as the server reaches it; see `strategies.he_round.KeyHolder`.

    Args:
        url: Where it listens, `https://host:port`.
        digest: SHA-256 of its key, hex: what `wildflower keyholder init` printed.
        token: What it knows the server by.
        patience_s: In which a key holder that does not answer may come back, in seconds.
    """

    def __init__(
        self, url: str, digest: str, token: str, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._url, self._digest, self._patience_s = url, digest, patience_s
        self._authorization = {"authorization": f"Bearer {token}"}
        self._http: httpx.Client | None = None

    def key(self, run: str) -> RunKey:
        """Return a training's public key.

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
        """
        try:
            return RunKey.from_bytes(self._ask("/v1/keys", json.dumps({"run": run}).encode()))
        except ProtocolError as error:
            raise KeyHolderError(f"{self._name} sends no key: {error}") from error

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.uint16]:
        """Return the residues of a sum modulo 2**16, shape (request.length,).

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
            ProtocolError: The ciphertexts hold no such sum.
        """
        found = self._ask("/v1/sums", request.to_bytes())
        if len(found) != 2 * request.length:
            raise KeyHolderError(
                f"{self._name} sends {len(found)} bytes, expected {2 * request.length}"
            )
        residues: npt.NDArray[np.uint16] = np.frombuffer(found, "<u2").astype(np.uint16, copy=False)
        return residues

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _ask(self, path: str, body: bytes) -> bytes:
        """Ask until there is an answer, or patience is over."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                self._http = self._http or self._connect()
                return self._read(self._http.post(path, content=body))
            except PinError as error:
                raise KeyHolderError(f"{self._name}: {error}", hint=error.hint) from error
            except (httpx.TransportError, OSError) as error:
                self.close()
                if time.monotonic() > end:
                    raise KeyHolderError(
                        f"{self._name} does not answer: {error}",
                        hint="Start it: wildflower keyholder run --dir DIR",
                    ) from error
                threading.Event().wait(PAUSE_S)

    def _connect(self) -> httpx.Client:
        context = pinned_context(self._url, self._digest, timeout_s=CONNECT_S)
        return httpx.Client(
            base_url=self._url,
            verify=context,
            headers=self._authorization,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=False,
        )

    @property
    def _name(self) -> str:
        return f"key holder {self._digest[:12]} at {self._url}"

    def _read(self, response: httpx.Response) -> bytes:
        if response.is_success:
            return response.content
        try:
            told = response.json()["error"]
            kind, message, hint = (str(told[name]) for name in ("type", "message", "hint"))
        except (ValueError, KeyError, TypeError) as error:
            raise KeyHolderError(
                f"{self._name} answers with status {response.status_code}"
            ) from error
        error_type = ProtocolError if kind == "ProtocolError" else KeyHolderError
        raise error_type(f"{self._name} refuses: {message}", hint=hint)


def create_app(holder: KeyHolder, token_digest: str) -> Starlette:
    """Return the application that a key holder serves.

    Args:
        holder: Decides.
        token_digest: SHA-256 of the token that the server shows, hex.
    """

    async def get_health(_: Request) -> Response:
        return JSONResponse({"ready": True})

    async def post_keys(request: Request) -> Response:
        run = _run_of(await _body(request, MAX_ASKED))
        key = await run_in_threadpool(holder.key, run)
        return Response(key.to_bytes(), media_type="application/octet-stream")

    async def post_sums(request: Request) -> Response:
        asked = SumRequest.from_bytes(await _body(request, MAX_SUM))
        residues = await run_in_threadpool(holder.decrypt, asked)
        return Response(residues.astype("<u2").tobytes(), media_type="application/octet-stream")

    def guarded(
        act: Callable[[Request], Awaitable[Response]],
    ) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not _is_known(request, token_digest):
                return _refusal(401, KeyHolderError("the token is missing or wrong"))
            try:
                return await act(request)
            except StrategyError as error:
                log.warning("refused: %s", error)
                return _refusal(_status(error), error)

        return answer

    return Starlette(
        routes=[
            Route("/healthz", get_health),
            Route("/v1/keys", guarded(post_keys), methods=["POST"]),
            Route("/v1/sums", guarded(post_sums), methods=["POST"]),
        ]
    )


def _run_of(body: bytes) -> str:
    try:
        run = json.loads(body)["run"]
        run.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError("not a question for a key: expected the text run") from error
    return str(run)


async def _body(request: Request, most: int) -> bytes:
    """Read the body, and no byte more than is allowed."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise ProtocolError(f"a request has at most {most} bytes")
    except (ClientDisconnect, TimeoutError) as error:
        raise ProtocolError("the request broke off") from error
    return bytes(body)


def _is_known(request: Request, token_digest: str) -> bool:
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    found = hashlib.sha256(shown.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(found, token_digest)


def _status(error: StrategyError) -> int:
    match error:
        case KeyHolderError():
            return 403
        case MissingPackageError():
            return 503
        case _:
            return 400


def _refusal(status: int, error: StrategyError) -> Response:
    told = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
    return JSONResponse({"error": told}, status)
