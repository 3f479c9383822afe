"""What a key holder serves: HTTPS, a token, two questions. The other end is `keyholder_link`.

    GET  /healthz     whether it is up
    POST /v1/keys     {"run"}                  -> `RunKey`, its byte form
    POST /v1/sums     `SumRequest`, its bytes  -> residues, little-endian, 2 bytes each

The server shows a token of which the key holder knows the digest: who may have sums decrypted is
not everybody. Both questions may be repeated: the answer is the same. A refusal is
`{"error": {"type", "message", "hint"}}` with a status from 400 on.
"""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wildflower.server.keyholder import KeyHolder
from wildflower.strategies.errors import (
    KeyHolderError,
    MissingPackageError,
    ProtocolError,
    StrategyError,
)
from wildflower.strategies.he.messages import MAX_CIPHERTEXT, MAX_HEADER, SumRequest
from wildflower.strategies.he.packing import MAX_CHUNKS

log = logging.getLogger(__name__)

HEALTH: Final = "/healthz"
KEYS: Final = "/v1/keys"
SUMS: Final = "/v1/sums"
MAX_ASKED: Final = 4096  # bytes of a question for a key
MAX_SUM: Final = MAX_HEADER + MAX_CHUNKS * (MAX_CIPHERTEXT + 4)  # bytes
BODY_S: Final = 60.0  # seconds in which a request's body must have come


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
            except OSError as error:
                log.error("not answered: %s", error)
                return _refusal(503, KeyHolderError(f"its disk fails: {error.strerror}"))

        return answer

    return Starlette(
        routes=[
            Route(HEALTH, get_health),
            Route(KEYS, guarded(post_keys), methods=["POST"]),
            Route(SUMS, guarded(post_sums), methods=["POST"]),
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
