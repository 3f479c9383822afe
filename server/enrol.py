"""The enrolment listener (:8442): a device with a join token gets an identity. Nothing else.

    GET  /v1/ca      the CA's certificate; the device compares its digest with the token's
    POST /v1/enrol   {"secret", "csr", "self_report", "name"} -> certificate, class, endpoints

The cheap checks come first: size, then the token, and only then what costs a signature. A token
is spent when everything else is in order, so that a mistake of the device's costs nobody a token.
A device whose answer got lost asks again with the same key and token and gets the same
certificate: it proves the key anew, and a certificate is no secret.

The device's Flower node is registered here where the link is up, else by `register_missing`.
"""

import asyncio
import base64
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wildflower.ota.device.profile import SelfReport, classify
from wildflower.ota.errors import FormatError, IncompatibleError, OtaError
from wildflower.server import tokens
from wildflower.server.ca import Authority, device_id_of, read_csr
from wildflower.server.errors import EnrolmentError, ServerError
from wildflower.server.records import Device, Event, JoinToken
from wildflower.server.store import Store
from wildflower.strategies.errors import LinkError

log = logging.getLogger(__name__)

MAX_BODY: Final = 65_536  # bytes; a request has about 3 kB, most of it CPU flags
BODY_S: Final = 10.0  # seconds in which a request's body must have come
MAX_NAME: Final = 100  # characters
PASSABLE: Final = (OtaError, ServerError)


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """What a device asks with. `from_json` is the only way in from outside.

    Attributes:
        secret: The join token's.
        csr: PKCS #10, PEM, signed with the device's key.
        self_report: `ota.device.profile.SelfReport`, canonical text.
        name: What people shall call the device; "" takes the start of its id.
    """

    secret: str = field(repr=False)
    csr: str
    self_report: str
    name: str

    @classmethod
    def from_json(cls, data: bytes) -> "EnrolRequest":
        """Parse a request from outside.

        Raises:
            FormatError: Not such a request.
        """
        try:
            found = json.loads(data)
            request = cls(found["secret"], found["csr"], found["self_report"], found["name"])
            request.name.encode()
            request.csr.encode()
            request.self_report.encode()
            request.secret.encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                "not an enrolment request: expected the texts secret, csr, self_report and name"
            ) from error
        if len(request.name) > MAX_NAME or not request.name.isprintable():
            raise FormatError(f"name: at most {MAX_NAME} printable characters")
        return request


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the device gets, field by field its JSON answer."""

    device_id: str
    certificate: str
    device_class: str
    root: str
    endpoints: Mapping[str, str]
    ring: str
    model: str


class Enrolment:
    """Decides who becomes a device. Safe to use from several threads.

    Args:
        store: Where devices and tokens live.
        authority: Signs the certificates.
        root: Bytes of the first TUF root.
        endpoints: {"device": URL, "channel": host:port} as devices reach them.
        register: Registers a public key (PEM) with Flower, returns its node id; raises
            `LinkError` while the link is down (`server.flower_link`).
        now: The clock, UTC.
        days: How long certificates hold.
        model: Name of the model's line, with which a device finds its target group.
    """

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        root: bytes,
        endpoints: Mapping[str, str],
        register: Callable[[str], int],
        now: Callable[[], datetime],
        days: int,
        model: str = "",
    ) -> None:
        self._store = store
        self._authority = authority
        self._root = base64.b64encode(root).decode()
        self._endpoints = dict(endpoints)
        self._register = register
        self._now = now
        self._days = days
        self._model = model

    @property
    def ca_pem(self) -> bytes:
        """The CA's certificate."""
        return self._authority.certificate_pem

    def enrol(self, request: EnrolRequest) -> Enrolled:
        """Turn a request into a device, or say why not.

        Raises:
            EnrolmentError: The token is unknown, used up or expired, the CSR is none, or the
                device was revoked.
            FormatError: The self-report cannot be read.
            IncompatibleError: The device asks for a class that it does not fit.
        """
        now = self._now()
        token = self._find(request.secret)
        csr = request.csr.encode()
        known = self._store.get(Device, device_id_of(read_csr(csr)))
        if known is not None and known.revoked:
            raise EnrolmentError(
                f"device {known.device_id} was revoked", hint="Enrol with a new key."
            )
        if known is not None and token.uses_left < 1:
            return self._answer(known)
        _require_usable(token, now)
        report = SelfReport.from_bytes(request.self_report.encode())
        device_class = classify(report).name
        if self._store.spend(token.token_id, now) is None:
            raise _used_up()  # somebody was faster
        issued = self._authority.issue_device(csr, now, self._days)
        device = Device(
            device_id=issued.device_id,
            name=request.name or issued.device_id[:12],
            public_key=issued.public_key,
            certificate=issued.certificate,
            device_class=device_class,
            ring=token.ring,
            node_id=0,
            self_report=report.to_bytes(),
            enrolled_at=now,
            last_seen=now,
        )
        stored = self._remember(device)
        log.info("device enrolled", extra={"device": device.device_id, "class": device_class})
        self._try_to_register(stored)
        return self._answer(stored)

    def register_missing(self) -> int:
        """Register the devices that Flower does not know yet; return how many still are not."""
        missing = [device for device in self._store.all(Device, node_id=0) if not device.revoked]
        return sum(not self._try_to_register(device) for device in missing)

    def _remember(self, device: Device) -> Device:
        """Store a device; of one that is known keep what others say of it, above all revoked."""
        enrolled = [_enrolled_event(device)]
        told = ("name", "certificate", "device_class", "ring", "self_report", "last_seen")
        anew = {name: getattr(device, name) for name in told}
        known = self._store.change(Device, device.device_id, events=enrolled, **anew)
        if known is None:
            self._store.put(device, events=enrolled)
        return known or device

    def _find(self, secret: str) -> JoinToken:
        token = self._store.get(JoinToken, tokens.token_id_of(secret))
        if token is None or not tokens.opens(secret, token):
            raise EnrolmentError(
                "the join token is unknown", hint="Ask for a new one: wildflower device invite"
            )
        return token

    def _try_to_register(self, device: Device) -> bool:
        if device.node_id:
            return True
        try:
            node_id = self._register(device.public_key)
        except LinkError as error:
            log.warning(
                "Flower node not registered yet: %s", error, extra={"device": device.device_id}
            )
            return False
        self._store.change(Device, device.device_id, node_id=node_id)
        return True

    def _answer(self, device: Device) -> Enrolled:
        return Enrolled(
            device.device_id,
            device.certificate,
            device.device_class,
            self._root,
            self._endpoints,
            device.ring,
            self._model,
        )


class Patience:
    """Counts failures per address and says when an address has had enough of them.

    It bounds what guessing costs us; the secret's 256 bits make guessing itself hopeless. Failures
    only: a thousand devices behind one address may enrol at once.

    Args:
        failures: How many an address may have within the window.
        window_s: The window, in seconds.
        addresses: How many addresses are remembered, the latest ones.
    """

    def __init__(self, failures: int = 20, window_s: float = 60.0, addresses: int = 10_000) -> None:
        self._most = failures
        self._window_s = window_s
        self._addresses = addresses
        self._failures: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    def is_exhausted(self, address: str, now: datetime) -> bool:
        """Whether the address must wait."""
        since, count = self._failures.get(address, (now, 0))
        return count >= self._most and (now - since).total_seconds() < self._window_s

    def count(self, address: str, now: datetime) -> None:
        """Count a failure of an address."""
        since, count = self._failures.pop(address, (now, 0))
        if (now - since).total_seconds() >= self._window_s:
            since, count = now, 0
        self._failures[address] = (since, count + 1)
        while len(self._failures) > self._addresses:
            self._failures.popitem(last=False)

    @property
    def retry_after_s(self) -> int:
        """What a refused address is told to wait, in seconds."""
        return int(self._window_s)


def create_app(
    enrolment: Enrolment, *, now: Callable[[], datetime], patience: Patience | None = None
) -> Starlette:
    """Return the application of the enrolment listener."""
    failures = patience or Patience()

    async def get_ca(_: Request) -> Response:
        return Response(enrolment.ca_pem, media_type="application/x-pem-file")

    async def post_enrol(request: Request) -> Response:
        address = request.client.host if request.client else ""
        if failures.is_exhausted(address, now()):
            wait = {"Retry-After": str(failures.retry_after_s)}
            return _refusal(429, "EnrolmentError", "too many failed attempts", headers=wait)
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(request)
            asked = EnrolRequest.from_json(body)
            enrolled = await run_in_threadpool(enrolment.enrol, asked)
        except TimeoutError:
            return _refusal(408, "FormatError", f"no whole request within {BODY_S:.0f} s")
        except PASSABLE as error:
            status = _status(error)
            if status < 500:
                failures.count(address, now())
            log.info("enrolment refused: %s", error)
            return _refusal(status, type(error).__name__, str(error), error.hint)
        return JSONResponse(asdict(enrolled))

    routes = [Route("/v1/ca", get_ca), Route("/v1/enrol", post_enrol, methods=["POST"])]
    return Starlette(routes=routes)


async def _body(request: Request) -> bytes:
    """Read the body, and no byte more than is allowed."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise FormatError(f"a request has at most {MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise FormatError("the request broke off") from error
    return bytes(body)


def _status(error: Exception) -> int:
    match error:
        case FormatError():
            return 400
        case EnrolmentError():
            return 403
        case IncompatibleError():
            return 422
        case _:
            return 503


def _refusal(
    status: int, kind: str, message: str, hint: str = "", headers: dict[str, str] | None = None
) -> Response:
    told: dict[str, Any] = {"error": {"type": kind, "message": message, "hint": hint}}
    return JSONResponse(told, status, headers=headers)


def _require_usable(token: JoinToken, now: datetime) -> None:
    if token.expires_at <= now:
        raise EnrolmentError(
            f"the join token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC",
            hint="Ask for a new one: wildflower device invite",
        )
    if token.uses_left < 1:
        raise _used_up()


def _used_up() -> EnrolmentError:
    return EnrolmentError(
        "the join token is used up", hint="Ask for a new one: wildflower device invite"
    )


def _enrolled_event(device: Device) -> Event:
    told = {"name": device.name, "device_class": device.device_class, "ring": device.ring}
    return Event(0, "device.enrolled", device.device_id, told, device.enrolled_at)
