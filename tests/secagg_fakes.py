"""A fleet of devices with real keys and certificates, and a session of them without a network."""

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding as Form

from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Encoding, Residues
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.graph import plan_graph
from wildflower.strategies.secagg.keys import device_id_of
from wildflower.strategies.secagg.messages import Delivery, Roster, SessionParams, UnmaskRequest
from wildflower.strategies.secagg.server import Session

NOW = datetime(2030, 1, 1, tzinfo=UTC)
VALID = (NOW - timedelta(days=1), NOW + timedelta(days=1))
Key = ec.EllipticCurvePrivateKey


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Authority:
    """An enrolment CA."""

    key: Key
    certificate: x509.Certificate


def issue(
    signer: Key,
    key: Key | ed25519.Ed25519PrivateKey,
    name: str,
    *,
    valid: tuple[datetime, datetime] = VALID,
    is_ca: bool | None = False,
) -> x509.Certificate:
    """Return a certificate for `key`; is_ca None leaves the constraints out."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("Wildflower test CA"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
    return builder.sign(signer, hashes.SHA256())


def make_authority(valid: tuple[datetime, datetime] = VALID) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(key, issue(key, key, "Wildflower test CA", valid=valid, is_ca=True))


@dataclass(frozen=True)
class Device:
    """A device's identity, as a session sees it."""

    key: Key
    device_id: str
    certificate_der: bytes

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def make_device(authority: Authority, **options: Any) -> Device:
    key = ec.generate_private_key(ec.SECP256R1())
    device = device_id_of(key.public_key())
    certificate = issue(authority.key, key, device, **options)
    return Device(key, device, certificate.public_bytes(Form.DER))


@functools.cache
def _authority() -> Authority:
    return make_authority()


@functools.cache
def _device(number: int) -> Device:
    """Return the device of a number, made once."""
    return make_device(_authority())


def fleet(count: int = 16) -> tuple[Authority, tuple[Device, ...]]:
    """Return a CA and its first devices."""
    return _authority(), tuple(_device(number) for number in range(count))


def make_params(
    clients: int, *, size: int = 5, session: bytes = bytes(32), bits: int = 32, **changes: int
) -> SessionParams:
    graph = plan_graph(clients)
    encoding = Encoding.for_cohort(
        size=size, clip=1.0, max_weight=100.0, clients=clients, statistics=("loss",), bits=bits
    )
    given = {"threshold": graph.threshold, "degree": graph.degree, **changes}
    return SessionParams(session, "t1", 1, encoding=encoding, **given)


def make_update(number: int, size: int) -> Update:
    rng = np.random.default_rng(number)
    vector = rng.normal(0, 0.3, size).astype(np.float32)
    return Update(vector, float(rng.integers(1, 100)), {"loss": float(rng.random())})


def entropy_of(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass
class Play:
    """One session, played through; `gone` says which devices are lost before which trip (1 to 4).

    What clients and server send is turned into its flat form and back, as on the wire.
    """

    params: SessionParams
    gone: Mapping[int, Collection[str]] = field(default_factory=dict)
    tamper: Callable[[str, Any], Any] = lambda _, message: message
    updates: dict[str, Residues] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    sent: list[Any] = field(default_factory=list)
    cast: tuple[Authority, tuple[Device, ...]] | None = None
    silent: Collection[str] = ()  # devices that a test plays itself

    def __post_init__(self) -> None:
        self.authority, devices = self.cast or fleet(self.params.clients)
        self.devices = {each.device_id: each for each in devices[: self.params.clients]}
        self.session = Session(self.params, self.devices.keys(), ca=self.authority.certificate)
        size = self.params.encoding.size
        for number, device in enumerate(self.devices):
            update = make_update(number, size)
            self.updates[device] = self.params.encoding.encode(update, bytes([number]))

    def present(self, trip: int, devices: Iterable[str]) -> list[str]:
        lost = {device for t, those in self.gone.items() if t <= trip for device in those}
        lost |= {*self.refusals, *self.silent}
        return [device for device in devices if device not in lost]

    def reply(self, device: str, message: Any) -> None:
        """Bring a client's message to the server; what it refuses is written down."""
        self.sent.append(message)
        carried = type(message).from_fields(message.to_fields())
        try:
            self.session.receive(device, self.tamper(device, carried), now=NOW)
        except ProtocolError as error:
            self.refusals[device] = str(error)

    def advertise(self) -> dict[str, Roster]:
        for device in self.present(1, self.devices):
            entropy = entropy_of(device, self.params.session)
            state, message = client.advertise(self.params, self.devices[device], entropy=entropy)
            self.states[device] = state
            self.reply(device, message)
        return self.session.rosters(entropy=entropy_of("ring"))

    def share(self, rosters: Mapping[str, Roster]) -> dict[str, Delivery]:
        for device in self.present(2, rosters):
            self.states[device], message = client.share(
                self.states[device],
                Roster.from_fields(rosters[device].to_fields()),
                ca=self.authority.certificate,
                now=NOW,
                entropy=entropy_of("share", device),
            )
            self.reply(device, message)
        return self.session.deliveries()

    def mask(self, deliveries: Mapping[str, Delivery]) -> dict[str, UnmaskRequest]:
        for device in self.present(3, deliveries):
            delivery = Delivery.from_fields(deliveries[device].to_fields())
            opened = client.open_shares(self.states[device], delivery)
            self.states[device], message = client.mask(opened, self.updates[device].copy())
            self.reply(device, message)
        return self.session.requests()

    def unmask(self, requests: Mapping[str, UnmaskRequest]) -> Residues:
        for device in self.present(4, requests):
            request = UnmaskRequest.from_fields(requests[device].to_fields())
            self.states[device] = State.from_bytes(self.states[device].to_bytes())
            self.states[device], message = client.reveal(self.states[device], request)
            self.reply(device, message)
        return self.session.total()

    def run(self) -> Residues:
        return self.unmask(self.mask(self.share(self.advertise())))

    def plain_sum(self) -> Residues:
        """Return the sum of the survivors' residues, added in the open."""
        total = np.zeros(self.params.encoding.length, self.params.encoding.dtype)
        for device in self.session.survivors:
            total += self.updates[device]
        return total
