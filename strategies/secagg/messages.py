"""What the two halves of a secure-aggregation session say to each other, version 1.

    trip  server -> client   client -> server
    1     SessionParams      Advertisement     keys, signed by the device's identity
    2     Roster             Shares            the keys of the neighbours; sealed secret shares
    3     Delivery           Masked            the sealed shares of the neighbours; the update
    4     UnmaskRequest      Reveal            who is alive and who is gone; the shares that fit

Messages are values. `to_fields` gives the flat form that a configuration record of Flower carries,
`from_fields` parses it and trusts nothing: names, types, lengths and counts are checked before
anything is kept (`secagg.fields` does it).

    M.from_fields(m.to_fields()) == m    for every message

Ids are device ids: 64 lower-case hex digits, 32 bytes on the wire.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020,
figure 2. We deviate in that every message names the session, that advertisements are signed, and
that they hold a digest of the self-mask's seed, so that a wrong share is noticed.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np

from wildflower.strategies.encodings import SumEncoding, read_encoding
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import MAX_CLIENTS, MAX_SIZE, Residues
from wildflower.strategies.secagg.fields import (
    HEADER,
    SESSION,
    Fields,
    Reader,
    digest,
    header,
    join_ids,
    split,
)

KEY: Final = 32  # bytes of an X25519 public key, of a seed and of a digest
SHARE: Final = 33  # bytes of a Shamir share: the prime has 257 bits
SEALED: Final = 12 + 2 * SHARE + 16  # bytes: nonce, both shares, tag
MAX_CERTIFICATE: Final = 4096  # bytes of DER; ours have about 450
MAX_SIGNATURE: Final = 72  # bytes of a DER-encoded P-256 signature
MAX_NAME: Final = 200  # characters of a training's id


@dataclass(frozen=True, slots=True)
class SessionParams:
    """What all clients of one session agree on; each signs its digest.

    Attributes:
        session: Id of the session, 32 random bytes.
        training: Id of the training.
        round: Number of the round in the training, from 1.
        threshold: How many of a client's share holders (its neighbours and itself) must answer.
        degree: Neighbours of a client: even, or one less than the clients (everyone).
        encoding: How updates become residues; it holds the largest number of clients.
    """

    session: bytes
    training: str
    round: int
    threshold: int
    degree: int
    encoding: SumEncoding

    def __post_init__(self) -> None:
        """Refuse what would make no session."""
        clients = self.encoding.clients
        if len(self.session) != SESSION or len(self.training) > MAX_NAME or self.round < 0:
            raise ValueError(f"session of {SESSION} bytes, training <= {MAX_NAME}, round >= 0")
        if clients < 3 or not 2 <= self.degree < clients:
            raise ValueError(f"{clients} clients of degree {self.degree}: at least 3 are needed")
        if self.degree % 2 and not self.is_complete:
            raise ValueError(f"a ring's degree is even, found {self.degree}")
        lowest = clients // 2 + 1 if self.is_complete else 3
        if not lowest <= self.threshold <= self.degree + 1:
            raise ValueError(
                f"threshold {self.threshold}, allowed are {lowest} to {self.degree + 1}"
            )

    @property
    def clients(self) -> int:
        """Upper bound of the cohort's size."""
        return self.encoding.clients

    @property
    def is_complete(self) -> bool:
        """True if everyone is everyone's neighbour."""
        return self.degree == self.clients - 1

    @property
    def digest(self) -> bytes:
        """SHA-256 of the stored form, 32 bytes."""
        return _digest(self)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **header("params", self.session),
            "training": self.training,
            "round": self.round,
            "threshold": self.threshold,
            "degree": self.degree,
            **self.encoding.to_fields(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No parameters of a session.
            CapacityError: The cohort's sums do not fit into the residues.
        """
        own = ("training", "round", "threshold", "degree")
        rest = {name: fields[name] for name in fields if name not in {*own, *HEADER}}
        reader = Reader("params", fields, (*own, *rest))
        try:
            return cls(
                reader.session,
                reader.text("training", MAX_NAME),
                reader.integer("round"),
                reader.integer("threshold"),
                reader.integer("degree"),
                read_encoding(rest),
            )
        except ValueError as error:
            raise ProtocolError(f"no session parameters: {error}") from error


@functools.lru_cache(maxsize=64)
def _digest(params: SessionParams) -> bytes:
    """Return the parameters' digest, kept: the signature of every neighbour covers it."""
    return digest(params.to_fields())


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A client's public keys for one session, signed by its device identity.

    Attributes:
        session: The session's id.
        device: The client's device id.
        sealing_key: X25519 public key; shares for this client are sealed to it.
        masking_key: X25519 public key; pairwise masks come from it.
        seed_digest: Digest of the seed of the client's own mask.
        certificate: The device's certificate, DER.
        signature: By the device's key, over `keys.signed_bytes`.
    """

    session: bytes
    device: str
    sealing_key: bytes
    masking_key: bytes
    seed_digest: bytes
    certificate: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **header("advertisement", self.session),
            "device": bytes.fromhex(self.device),
            "keys": self.sealing_key + self.masking_key + self.seed_digest,
            "certificate": self.certificate,
            "signature": self.signature,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No advertisement.
        """
        reader = Reader("advertisement", fields, ("device", "keys", "certificate", "signature"))
        sealing, masking, seed = reader.parts("keys", KEY, exactly=3)
        return cls(
            reader.session,
            reader.parts("device", 32, exactly=1)[0].hex(),
            sealing,
            masking,
            seed,
            reader.octets("certificate", MAX_CERTIFICATE),
            reader.octets("signature", MAX_SIGNATURE),
        )


@dataclass(frozen=True, slots=True)
class Roster:
    """The advertisements of one client's neighbours, sorted by device id."""

    session: bytes
    neighbours: tuple[Advertisement, ...]

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **header("roster", self.session),
            "devices": join_ids(each.device for each in self.neighbours),
            "keys": b"".join(
                each.sealing_key + each.masking_key + each.seed_digest for each in self.neighbours
            ),
            "certificates": [each.certificate for each in self.neighbours],
            "signatures": [each.signature for each in self.neighbours],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No roster.
        """
        reader = Reader("roster", fields, ("devices", "keys", "certificates", "signatures"))
        devices = reader.ids("devices")
        keys = reader.parts("keys", 3 * KEY, exactly=len(devices))
        certificates = reader.octet_lists("certificates", len(devices), MAX_CERTIFICATE)
        signatures = reader.octet_lists("signatures", len(devices), MAX_SIGNATURE)
        rows = zip(devices, keys, certificates, signatures, strict=True)
        return cls(reader.session, tuple(_listed(reader.session, *row) for row in rows))


@dataclass(frozen=True, slots=True)
class Shares:
    """A client's sealed secret shares, one for each neighbour: device id to `SEALED` bytes."""

    session: bytes
    sealed: Mapping[str, bytes] = field(repr=False)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return _sealed_fields("shares", self.session, self.sealed)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No shares.
        """
        return cls(*_parse_sealed("shares", fields))


@dataclass(frozen=True, slots=True)
class Delivery:
    """The shares that neighbours sealed for one client: device id to `SEALED` bytes."""

    session: bytes
    sealed: Mapping[str, bytes] = field(repr=False)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return _sealed_fields("delivery", self.session, self.sealed)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No delivery.
        """
        return cls(*_parse_sealed("delivery", fields))


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked update.

    Attributes:
        session: The session's id.
        residues: The masked residues, little-endian, as wide as the session's encoding says.
    """

    session: bytes
    residues: bytes = field(repr=False)

    @classmethod
    def of(cls, session: bytes, vector: Residues) -> Self:
        """Return the message that carries masked residues."""
        return cls(session, vector.astype(f"<u{vector.itemsize}", copy=False).tobytes())

    def vector(self, dtype: "np.dtype[Any]") -> Residues:
        """Return the residues as a read-only array, shape (length,), of a type they fill."""
        little = np.frombuffer(self.residues, dtype.newbyteorder("<"))
        found: Residues = little.astype(dtype, copy=False)
        return found

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {**header("masked", self.session), "residues": self.residues}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No masked update.
        """
        reader = Reader("masked", fields, ("residues",))
        return cls(reader.session, reader.octets("residues", 4 * (MAX_SIZE + MAX_CLIENTS)))


@dataclass(frozen=True, slots=True)
class UnmaskRequest:
    """Which of a client's neighbours (and itself) are in the sum, and which are gone; sorted."""

    session: bytes
    alive: tuple[str, ...]
    dead: tuple[str, ...]

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **header("unmask", self.session),
            "alive": join_ids(self.alive),
            "dead": join_ids(self.dead),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No unmask request.
        """
        reader = Reader("unmask", fields, ("alive", "dead"))
        return cls(reader.session, reader.ids("alive"), reader.ids("dead"))


@dataclass(frozen=True, slots=True)
class Reveal:
    """What a client gives up: seed shares of the alive, masking-key shares of the dead.

    Attributes:
        session: The session's id.
        seeds: Device id to its share of that device's seed, `SHARE` bytes.
        keys: Device id to its share of that device's masking key, `SHARE` bytes.
    """

    session: bytes
    seeds: Mapping[str, bytes] = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **header("reveal", self.session),
            "alive": join_ids(sorted(self.seeds)),
            "seeds": b"".join(self.seeds[device] for device in sorted(self.seeds)),
            "dead": join_ids(sorted(self.keys)),
            "keys": b"".join(self.keys[device] for device in sorted(self.keys)),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No reveal.
        """
        reader = Reader("reveal", fields, ("alive", "seeds", "dead", "keys"))
        alive, dead = reader.ids("alive"), reader.ids("dead")
        seeds = reader.parts("seeds", SHARE, exactly=len(alive))
        keys = reader.parts("keys", SHARE, exactly=len(dead))
        return cls(
            reader.session,
            dict(zip(alive, seeds, strict=True)),
            dict(zip(dead, keys, strict=True)),
        )


def _sealed_fields(kind: str, session: bytes, sealed: Mapping[str, bytes]) -> dict[str, Any]:
    devices = sorted(sealed)
    return {
        **header(kind, session),
        "devices": join_ids(devices),
        "sealed": b"".join(sealed[device] for device in devices),
    }


def _parse_sealed(kind: str, fields: Fields) -> tuple[bytes, dict[str, bytes]]:
    reader = Reader(kind, fields, ("devices", "sealed"))
    devices = reader.ids("devices")
    sealed = reader.parts("sealed", SEALED, exactly=len(devices))
    return reader.session, dict(zip(devices, sealed, strict=True))


def _listed(
    session: bytes, device: str, keys: bytes, certificate: bytes, signature: bytes
) -> Advertisement:
    sealing, masking, seed = split(keys, KEY)
    return Advertisement(session, device, sealing, masking, seed, certificate, signature)
