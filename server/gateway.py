"""The device HTTPS listener (:8443): releases for everybody, Flower for those we know.

    /tuf/metadata/…  /tuf/targets/…   TUF's files
    /blobs/<digest>                   files named by their digest
    /v1/fleet/<call>                  mutual TLS; forwarded to the SuperLink on loopback

The first two are static, need no certificate and may be cached by anybody: TUF's signatures and
the digests protect them, on whatever way they come. Behind /v1 the client certificate counts, and
a call passes only under the key of that certificate (header `flwr-public-key`): a device cannot
speak to Flower as another, whatever it signs. The other APIs of the SuperLink are not forwarded.

A refusal is 403 and never 401, not even when the SuperLink says 401: flwr's client ends its own
process on a 401. While the SuperLink is down the answer is 503, which flwr tries again.
"""

import base64
import hmac
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from wildflower.server.blobs import BlobStore
from wildflower.server.ca import device_id_of, public_pem
from wildflower.server.errors import NotFoundError
from wildflower.server.records import Device
from wildflower.server.store import Store
from wildflower.server.tls_compat import peer_certificate

log = logging.getLogger(__name__)

FOREVER: Final = "public, max-age=31536000, immutable"
AFRESH: Final = "no-cache"
VERSIONED: Final = re.compile(r"metadata/\d+\..+\.json|targets/(.*/)?[0-9a-f]{64}\..+")
"""Names that never hold other bytes (TUF, section 3.6: consistent snapshots)."""
CALL: Final = re.compile(r"[a-z-]{1,64}")
KEY_HEADER: Final = "flwr-public-key"
MAX_CALL: Final = 64 << 20  # bytes; flwr cuts arrays into pieces of 5 MiB
SENT_ON: Final = re.compile(r"flwr-.*|content-type|content-length|accept|user-agent")
SENT_BACK: Final = re.compile(r"flwr-.*|content-type|content-length|retry-after")
PATIENCE: Final = httpx.Timeout(60.0, connect=5.0)  # seconds; flwr's own limit is 30
ROUTES_UP: Final = httpx.Limits(max_connections=256, max_keepalive_connections=64)


class Tuf(StaticFiles):
    """TUF's files. StaticFiles keeps to its directory and answers Range and If-None-Match."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, with how long it may be cached."""
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            # a client asks for the next root until there is none: that answer must not be kept
            raise HTTPException(error.status_code, headers={"Cache-Control": AFRESH}) from error
        fixed = VERSIONED.fullmatch(path)
        response.headers["Cache-Control"] = FOREVER if fixed else AFRESH
        return response


class Fleet:
    """The way to Flower's Fleet API, for devices under their own key.

    Args:
        store: Knows the devices, and which are revoked.
        superlink: `host:port` of the SuperLink.
        superlink_ca: The CA of its certificate, PEM.
    """

    def __init__(self, store: Store, superlink: str, superlink_ca: Path) -> None:
        self._store = store
        context = ssl.create_default_context(cafile=superlink_ca)
        self._http = httpx.AsyncClient(
            base_url=f"https://{superlink}",
            verify=context,
            timeout=PATIENCE,
            limits=ROUTES_UP,
            # or what Flower sets for one device would be sent for all
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,  # a proxy of the environment has no business between us and loopback
        )

    async def close(self) -> None:
        """Close the connections to the SuperLink."""
        await self._http.aclose()

    async def forward(self, request: Request) -> Response:
        """Check who calls, then forward the call."""
        refused = await self._refuse(request)
        if refused:
            log.warning("fleet call refused: %s", refused, extra={"path": request.url.path})
            return _problem(403, refused)
        call = request.path_params["call"]
        if not CALL.fullmatch(call):
            return _problem(404, "Flower's Fleet API has no such call")
        if int(request.headers.get("content-length", "0")) > MAX_CALL:
            return _problem(413, f"a call has at most {MAX_CALL} bytes")
        headers = [(k, v) for k, v in request.headers.items() if SENT_ON.fullmatch(k)]
        headers.append(("Accept-Encoding", "identity"))
        sent = self._http.build_request(
            "POST", f"/v1/fleet/{call}", headers=headers, content=_limited(request)
        )
        try:
            answer = await self._http.send(sent, stream=True)
        except _TooLongError:
            return _problem(413, f"a call has at most {MAX_CALL} bytes")
        except ClientDisconnect:
            return _problem(400, "the call broke off")
        except httpx.TransportError as error:
            log.warning("SuperLink unreachable: %s", type(error).__name__)
            return _problem(503, "Flower's SuperLink is down", {"Retry-After": "1"})
        return _relay(answer)

    async def _refuse(self, request: Request) -> str:
        """Return why a call is refused, "" if it is not."""
        certificate = peer_certificate(request.scope)
        if certificate is None:
            return "a client certificate is required"
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return "the client certificate has no EC key"
        device = await run_in_threadpool(self._store.get, Device, device_id_of(key))
        if device is None or device.revoked:
            return "the device is unknown or revoked"
        # One header, or a second one would be the SuperLink's to choose from.
        claimed = request.headers.getlist(KEY_HEADER)
        own = base64.b64encode(public_pem(key).encode())
        if len(claimed) != 1 or not hmac.compare_digest(claimed[0].encode(), own):
            return f"{KEY_HEADER} is not the key of the client certificate"
        return ""


def create_app(tuf: Path, blobs: BlobStore, fleet: Fleet) -> Starlette:
    """Return the application of the device HTTPS listener.

    Args:
        tuf: The directory with `metadata/` and `targets/`.
        blobs: The content-addressed files.
        fleet: The way to Flower; closed when the application ends.
    """

    def get_blob(request: Request) -> Response:
        digest = request.path_params["digest"]
        try:
            path = blobs.path(digest)
        except NotFoundError:
            return Response("no such blob\n", 404, headers={"Cache-Control": AFRESH})
        headers = {"Cache-Control": FOREVER, "ETag": f'"{digest}"'}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    async def no_such_api(request: Request) -> Response:
        if peer_certificate(request.scope) is None:
            return _problem(403, "a client certificate is required")
        return _problem(404, "no such call")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await fleet.close()

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[
            Mount("/tuf", Tuf(directory=tuf)),
            Route("/blobs/{digest}", get_blob),
            Route("/v1/fleet/{call}", fleet.forward, methods=["POST"]),
            Route("/v1/{rest:path}", no_such_api, methods=every),
        ],
        lifespan=lifespan,
    )


class _TooLongError(Exception):
    """The body is longer than its header said, or had none."""


async def _limited(request: Request) -> AsyncIterator[bytes]:
    count = 0
    async for piece in request.stream():
        count += len(piece)
        if count > MAX_CALL:
            raise _TooLongError
        yield piece


def _relay(answer: httpx.Response) -> Response:
    """Return the SuperLink's answer as it comes; a 401 becomes a 403."""

    async def body() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()

    status = 403 if answer.status_code == 401 else answer.status_code
    relayed = StreamingResponse(body(), status)
    for name, value in answer.headers.multi_items():
        if SENT_BACK.fullmatch(name.lower()):
            relayed.headers.append(name, value)
    return relayed


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers=headers)
