"""Frozen sessions of secure aggregation: fixed seeds, all messages, the sum, as JSON.

Another implementation that makes these messages of these seeds, and refuses what is listed as
refused, speaks version 1 of the protocol. All parts are reproducible: identities are derived from
numbers, and ECDSA signs as RFC 6979 says.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as Form
from tests.secagg_fakes import (
    NOW,
    VALID,
    Authority,
    Device,
    Key,
    Play,
    entropy_of,
    make_params,
    named,
)

from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)

Json = dict[str, Any]
KINDS: Mapping[str, type] = {
    "params": SessionParams,
    "advertisement": Advertisement,
    "roster": Roster,
    "shares": Shares,
    "delivery": Delivery,
    "masked": Masked,
    "unmask": UnmaskRequest,
    "reveal": Reveal,
}


def fixed_key(*parts: object) -> Key:
    return ec.derive_private_key(
        int.from_bytes(entropy_of("identity", *parts)) % 2**255 + 1, ec.SECP256R1()
    )


def fixed_certificate(signer: Key, key: Key, name: str, *, is_ca: bool) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("Wildflower vectors"))
        .public_key(key.public_key())
        .serial_number(int.from_bytes(entropy_of("serial", name)[:8]) + 1)
        .not_valid_before(VALID[0])
        .not_valid_after(VALID[1])
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    )


@dataclass(frozen=True)
class RepeatableDevice(Device):
    """A device whose signatures are the same every time."""

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


@functools.cache
def cast(count: int, name: str = "Wildflower vectors") -> tuple[Authority, tuple[Device, ...]]:
    """Return a CA and devices that are the same in every run."""
    root = fixed_key(name)
    authority = Authority(root, fixed_certificate(root, root, name, is_ca=True))
    made = []
    for number in range(count):
        key = fixed_key(name, number)
        device = keys.device_id_of(key.public_key())
        der = fixed_certificate(root, key, device, is_ca=False).public_bytes(Form.DER)
        made.append(RepeatableDevice(key, device, der))
    return authority, tuple(made)


@dataclass
class Recorded(Play):
    """A play of fixed seeds that keeps all messages and the states between them."""

    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, State]] = field(default_factory=dict)

    def reply(self, device: str, message: Any) -> None:
        kind = message.to_fields()["kind"]
        self.said.setdefault(kind, {})[device] = message
        super().reply(device, message)

    def record(self) -> "Recorded":
        """Play; return itself."""
        self.said["roster"] = rosters = self.advertise()
        self.before["roster"] = dict(self.states)
        self.said["delivery"] = deliveries = self.share(rosters)
        self.before["delivery"] = dict(self.states)
        self.said["unmask"] = requests = self.mask(deliveries)
        self.before["unmask"] = dict(self.states)
        self.total = self.unmask(requests)
        self.before["over"] = dict(self.states)
        return self


def session(name: str, bits: int, *, clients: int, degree: int, threshold: int) -> Recorded:
    """Return a recorded session that lost one client before each of the last three trips."""
    params = make_params(
        clients,
        size=5,
        bits=bits,
        session=entropy_of("session", name),
        degree=degree,
        threshold=threshold,
    )
    made = cast(clients)
    ids = [device.device_id for device in made[1]]
    play = Recorded(params, gone={2: [ids[0]], 3: [ids[1]], 4: [ids[2]]}, cast=made)
    for number, device in enumerate(play.devices):
        drawn = entropy_of("residues", name, number) * 4
        encoding = params.encoding
        play.updates[device] = np.frombuffer(
            drawn[: encoding.length * bits // 8], f"<u{bits // 8}"
        ).astype(encoding.dtype)
    return play.record()


@functools.cache
def complete(bits: int) -> Recorded:
    return session(f"complete-{bits}", bits, clients=7, degree=6, threshold=4)


@functools.cache
def ring() -> Recorded:
    return session("ring-32", 32, clients=12, degree=8, threshold=4)


SESSIONS: Mapping[str, Callable[[], Recorded]] = {
    "complete-32": lambda: complete(32),
    "complete-16": lambda: complete(16),
    "ring-32": ring,
}


def plain(message: Any) -> Json:
    """Return a message's flat form as JSON: bytes are {"x": digits}."""
    found: Json = json.loads(flat.to_bytes(message.to_fields()))
    return found


def rich(kind: str, found: Json) -> Any:
    """Return the message of a JSON form; refuse as the protocol does."""
    return KINDS[kind].from_fields(flat.from_bytes(json.dumps(found).encode()))  # type: ignore[attr-defined]


def vector_of(play: Recorded) -> Json:
    """Return a session as it is frozen."""
    return {
        "now": NOW.isoformat(),
        "ca": play.authority.certificate.public_bytes(Form.DER).hex(),
        "params": plain(play.params),
        "ring_entropy": entropy_of("ring").hex(),
        "clients": {
            device: {
                "identity": f"{each.key.private_numbers().private_value:064x}",
                "entropy_advertise": entropy_of(device, play.params.session).hex(),
                "entropy_share": entropy_of("share", device).hex(),
                "residues": play.updates[device]
                .astype(play.updates[device].dtype.newbyteorder("<"))
                .tobytes()
                .hex(),
            }
            for device, each in play.devices.items()
        },
        "messages": {
            kind: {device: plain(message) for device, message in sorted(said.items())}
            for kind, said in sorted(play.said.items())
        },
        "survivors": list(play.session.survivors),
        "sum": play.total.astype(play.total.dtype.newbyteorder("<")).tobytes().hex(),
    }


# What is refused: name -> (kind, the message, part of the reason).

Refusal = tuple[str, Any, str]


def refusals(play: Recorded, device: str) -> dict[str, Refusal]:
    """Return what one client of a session refuses, and what no one would even read."""
    return {
        **_bad_params(play),
        **_bad_rosters(play, device),
        **_bad_deliveries(play, device),
        **_bad_requests(play, device),
    }


def _bad_params(play: Recorded) -> dict[str, Refusal]:
    fields = play.params.to_fields()

    def changed(**changes: Any) -> "Raw":
        return Raw({**fields, **changes})

    return {
        "params: a minority as threshold": ("params", changed(threshold=3), "threshold 3, allowed"),
        "params: more than all as threshold": ("params", changed(threshold=8), "threshold 8"),
        "params: two clients": ("params", changed(clients=2), "at least 3 are needed"),
        "params: an odd ring": ("params", changed(degree=5), "degree is even"),
        "params: another version": ("params", changed(version=2), "of version 1"),
        "params: a version that is no number": ("params", changed(version=True), "of version 1"),
        "params: residues of 24 bits": ("params", changed(bits=24), "bits is 24"),
        "params: a clip of nothing": ("params", changed(clip=0.0), "found 0.0"),
        "params: weights that wrap": ("params", changed(max_weight=1e10), "do not fit"),
        "params: one field too many": ("params", changed(extra=1), "not an encoding"),
    }


@dataclass(frozen=True)
class Raw:
    """A message that cannot be built: its fields."""

    fields: Json

    def to_fields(self) -> Json:
        return self.fields


def _bad_rosters(play: Recorded, device: str) -> dict[str, Refusal]:
    roster: Roster = play.said["roster"][device]
    own = play.said["advertisement"][device]
    first, second, *rest = roster.neighbours
    _, (stranger,) = cast(1, "another CA")
    foreign = replace(first, device=stranger.device_id, certificate=stranger.certificate_der)
    signed = replace(foreign, signature=stranger.sign(keys.signed_bytes(play.params, foreign)))
    low = replace(first, sealing_key=bytes(32))

    def of(*neighbours: Advertisement, session: bytes = roster.session) -> Roster:
        return Roster(session, tuple(sorted(neighbours, key=lambda each: each.device)))

    return {
        "roster: another session": (
            "roster",
            replace(roster, session=bytes(32)),
            "another session",
        ),
        "roster: the client itself": ("roster", of(own, *roster.neighbours), "its own neighbour"),
        "roster: too few": ("roster", of(first, second), "a roster of 2 neighbours"),
        "roster: a key that was exchanged": (
            "roster",
            of(replace(first, masking_key=second.masking_key), second, *rest),
            "not signed by it",
        ),
        "roster: a weak key in place of a signed one": (
            "roster",
            of(low, second, *rest),
            "not signed by it",
        ),
        "roster: another's certificate": (
            "roster",
            of(replace(first, certificate=second.certificate), second, *rest),
            "shows the certificate of",
        ),
        "roster: a device of another CA": (
            "roster",
            of(signed, second, *rest),
            "not signed by the pinned CA",
        ),
        "roster: a signature over another threshold": (
            "roster",
            of(_signed_for(play, first, threshold=5), second, *rest),
            "not signed by it",
        ),
    }


def _signed_for(play: Recorded, said: Advertisement, **changes: int) -> Advertisement:
    """Return an advertisement that its device signed for other parameters."""
    other = replace(play.params, **changes)  # type: ignore[arg-type]  # numbers only
    signature = play.devices[said.device].sign(keys.signed_bytes(other, said))
    return replace(said, signature=signature)


def _bad_deliveries(play: Recorded, device: str) -> dict[str, Refusal]:
    delivery: Delivery = play.said["delivery"][device]
    sealed = dict(delivery.sealed)
    first, second, *_ = sorted(sealed)
    flipped = sealed[first][:-1] + bytes([sealed[first][-1] ^ 1])
    swapped = {**sealed, first: sealed[second], second: sealed[first]}
    stranger = {**sealed, "00" * 32: sealed[first]}

    def of(shares: Mapping[str, bytes], session: bytes = delivery.session) -> Delivery:
        return Delivery(session, shares)

    return {
        "delivery: another session": ("delivery", of(sealed, bytes(32)), "another session"),
        "delivery: one bit flipped": ("delivery", of({**sealed, first: flipped}), "forged"),
        "delivery: two swapped": ("delivery", of(swapped), "misdirected"),
        "delivery: of a stranger": ("delivery", of(stranger), "1 unknown clients"),
        "delivery: too few": ("delivery", of({first: sealed[first]}), "2 clients are left"),
    }


def _bad_requests(play: Recorded, device: str) -> dict[str, Refusal]:
    request: UnmaskRequest = play.said["unmask"][device]
    alive, dead = list(request.alive), list(request.dead)
    other = next(each for each in alive if each != device)
    few = [device, *(each for each in alive if each != device)][: play.params.threshold - 1]

    def of(alive: list[str], dead: list[str], session: bytes = request.session) -> UnmaskRequest:
        return UnmaskRequest(session, tuple(sorted(alive)), tuple(sorted(dead)))

    return {
        "unmask: another session": ("unmask", of(alive, dead, bytes(32)), "another session"),
        "unmask: alive and dead at once": ("unmask", of(alive, [*dead, other]), "listed twice"),
        "unmask: the client itself as dead": (
            "unmask",
            of([each for each in alive if each != device], [*dead, device]),
            "not among the alive",
        ),
        "unmask: a stranger": ("unmask", of(alive, [*dead, "00" * 32]), "unknown here"),
        "unmask: too few alive": (
            "unmask",
            of(few, [*dead, *(set(alive) - set(few))]),
            "3 clients are left in the sum",
        ),
    }
