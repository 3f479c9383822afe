"""What devices, server and helpers say to each other in a one-shot session, version 1.

    server -> device    OneShotParams    what is added up, and the cards of the helpers
    device -> server    OneShotAnswer    the masked update; its seeds, each sealed to one helper
    server -> helper    SumRequest       the sealed seeds of everyone in the sum
    helper -> server    residues         the sum of the masks, as `secagg.messages.Masked` has them

Messages are values. `to_fields` gives the flat form, `from_fields` parses it and trusts nothing but
that keys and signatures are what they claim, which is `one_shot_keys`' business.

    M.from_fields(m.to_fields()) == m    for every message

Not in here: the server may choose the session's id, the encoding and the cohort. What it may not
choose is the helpers' keys; devices hold their owners' list against the cards (`one_shot`).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final, Self

from wildflower.strategies.encodings import SumEncoding, read_encoding
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import MAX_CLIENTS, MAX_SIZE
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.fields import DEVICE, SESSION, Fields, Reader
from wildflower.strategies.secagg.messages import (
    KEY,
    MAX_CERTIFICATE,
    MAX_NAME,
    MAX_SIGNATURE,
    Masked,
)

MAX_HELPERS: Final = 8  # each adds one mask to every device's work
SMALLEST: Final = 3  # devices in a sum: that of two tells each what the other one sent
LARGEST_COHORT: Final = 10**6  # what a policy may demand
IDENTITY: Final = 91  # bytes of a P-256 SubjectPublicKeyInfo with an uncompressed point
SEALED_SEED: Final = 12 + 32 + 16  # bytes: nonce, seed, tag
MAX_PARAMS: Final = 32_768  # bytes of stored parameters: 64 statistics and 8 cards
NO_SESSION: Final = bytes(SESSION)
_COUNT: Final = 4  # bytes of a number


@dataclass(frozen=True, slots=True)
class HelperCard:
    """Who a helper is, and to which key seeds are sealed.

    Attributes:
        identity: Public P-256 key, SubjectPublicKeyInfo in DER; its digest is what people pin.
        sealing_key: X25519 public key.
        min_cohort: Fewest devices whose masks it adds up.
        signature: By the identity's key, over `one_shot_keys.card_bytes`.
    """

    identity: bytes
    sealing_key: bytes
    min_cohort: int
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no card."""
        if len(self.identity) != IDENTITY or len(self.sealing_key) != KEY:
            raise ValueError(f"an identity has {IDENTITY} bytes and a sealing key {KEY}")
        if not SMALLEST <= self.min_cohort <= LARGEST_COHORT:
            raise ValueError(
                f"min_cohort is {self.min_cohort}, allowed are {SMALLEST} to {LARGEST_COHORT}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, 64 hex digits: the pin of the helper."""
        return hashlib.sha256(self.identity).hexdigest()

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form; a card belongs to no session, so its header names none."""
        return {
            **flat.header("helper-card", NO_SESSION),
            "identity": self.identity,
            "sealing_key": self.sealing_key,
            "min_cohort": self.min_cohort,
            "signature": self.signature,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No card.
        """
        names = ("identity", "sealing_key", "min_cohort", "signature")
        reader = Reader("helper-card", fields, names)
        if reader.session != NO_SESSION:
            raise reader.error("session", "zeros", reader.session)
        try:
            return cls(
                reader.octets("identity", IDENTITY),
                reader.octets("sealing_key", KEY),
                reader.integer("min_cohort"),
                reader.octets("signature", MAX_SIGNATURE),
            )
        except ValueError as error:
            raise ProtocolError(f"not a helper's card: {error}") from error


@dataclass(frozen=True, slots=True)
class OneShotParams:
    """What everyone in a one-shot session agrees on; each device signs its digest.

    Attributes:
        session: Id of the session, 32 random bytes.
        training: Id of the training.
        round: Number of the round in the training.
        encoding: How updates become residues; it holds the largest number of devices.
        helpers: Whose masks hide an update: all of them together, sorted by digest.
    """

    session: bytes
    training: str
    round: int
    encoding: SumEncoding
    helpers: tuple[HelperCard, ...]

    def __post_init__(self) -> None:
        """Refuse what would make no session."""
        if len(self.session) != SESSION or not 1 <= len(self.training) <= MAX_NAME:
            raise ValueError(f"a session of {SESSION} bytes, a training of 1 to {MAX_NAME}")
        if self.round < 0:
            raise ValueError(f"round is {self.round}, allowed are 0 and above")
        if self.encoding.clients < SMALLEST:
            raise ValueError(f"{self.encoding.clients} devices, at least {SMALLEST} are needed")
        digests = [card.digest for card in self.helpers]
        if not 1 <= len(digests) <= MAX_HELPERS or digests != sorted(set(digests)):
            raise ValueError(f"1 to {MAX_HELPERS} helpers, sorted and distinct: {digests}")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the stored form, 32 bytes."""
        return flat.digest(self.to_fields())

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **flat.header("one-shot-params", self.session),
            "training": self.training,
            "round": self.round,
            "sums": flat.to_bytes(self.encoding.to_fields()),
            "helpers": [flat.to_bytes(card.to_fields()) for card in self.helpers],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No parameters of a one-shot session.
            CapacityError: The cohort's sums do not fit into the residues.
        """
        reader = Reader("one-shot-params", fields, ("training", "round", "sums", "helpers"))
        helpers = fields["helpers"]
        if not isinstance(helpers, list) or not 1 <= len(helpers) <= MAX_HELPERS:
            raise reader.error("helpers", f"a list of 1 to {MAX_HELPERS} cards", helpers)
        cards = reader.octet_lists("helpers", len(helpers), 1024)
        try:
            return cls(
                reader.session,
                reader.text("training", MAX_NAME),
                reader.integer("round"),
                read_encoding(flat.from_bytes(reader.octets("sums", MAX_PARAMS))),
                tuple(HelperCard.from_fields(flat.from_bytes(card)) for card in cards),
            )
        except ValueError as error:
            raise ProtocolError(f"no parameters of a one-shot session: {error}") from error


@dataclass(frozen=True, slots=True)
class SealedSeeds:
    """The seeds of one device's masks, each sealed to one helper, signed by the device.

    Attributes:
        device: The device's id.
        smallest: Fewest devices in a sum that its policy lets it join; helpers hold to it.
        ephemeral: X25519 public key that was made for this session only.
        sealed: For each helper, in the order of the parameters, `SEALED_SEED` bytes.
        certificate: The device's certificate, DER.
        signature: By the device's key, over `one_shot_keys.signed_bytes`.
    """

    device: str
    smallest: int
    ephemeral: bytes
    sealed: tuple[bytes, ...] = field(repr=False)
    certificate: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OneShotAnswer:
    """What a device sends: its masked update, and the seeds of the masks for the helpers."""

    seeds: SealedSeeds
    masked: Masked

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **flat.header("one-shot", self.masked.session),
            "device": bytes.fromhex(self.seeds.device),
            "smallest": self.seeds.smallest,
            "ephemeral": self.seeds.ephemeral,
            "sealed": b"".join(self.seeds.sealed),
            "certificate": self.seeds.certificate,
            "signature": self.seeds.signature,
            "residues": self.masked.residues,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No answer.
        """
        seeds = ("device", "smallest", "ephemeral", "sealed", "certificate", "signature")
        reader = Reader("one-shot", fields, (*seeds, "residues"))
        smallest = reader.integer("smallest")
        if not SMALLEST <= smallest <= LARGEST_COHORT:
            raise reader.error("smallest", f"{SMALLEST} to {LARGEST_COHORT}", smallest)
        sealed = SealedSeeds(
            reader.parts("device", DEVICE, exactly=1)[0].hex(),
            smallest,
            reader.parts("ephemeral", KEY, exactly=1)[0],
            reader.parts("sealed", SEALED_SEED),
            reader.octets("certificate", MAX_CERTIFICATE),
            reader.octets("signature", MAX_SIGNATURE),
        )
        residues = reader.octets("residues", 4 * (MAX_SIZE + MAX_CLIENTS))
        return cls(sealed, Masked(reader.session, residues))


@dataclass(frozen=True, slots=True)
class SumRequest:
    """What a helper is asked: the sum of the masks that these devices sealed to it.

    Attributes:
        params: The session's parameters, as each device signed them.
        seeds: Of each device in the sum, sorted by device id.
    """

    params: OneShotParams
    seeds: tuple[SealedSeeds, ...] = field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the stored form, 32 bytes."""
        return flat.digest(self.to_fields())

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **flat.header("one-shot-sum", self.params.session),
            "params": flat.to_bytes(self.params.to_fields()),
            "devices": flat.join_ids(each.device for each in self.seeds),
            "smallest": b"".join(each.smallest.to_bytes(_COUNT, "big") for each in self.seeds),
            "ephemerals": b"".join(each.ephemeral for each in self.seeds),
            "sealed": b"".join(part for each in self.seeds for part in each.sealed),
            "certificates": [each.certificate for each in self.seeds],
            "signatures": [each.signature for each in self.seeds],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No request for a sum.
        """
        lists = ("smallest", "ephemerals", "sealed", "certificates", "signatures")
        reader = Reader("one-shot-sum", fields, ("params", "devices", *lists))
        stored = flat.from_bytes(reader.octets("params", MAX_PARAMS))
        params = OneShotParams.from_fields(stored)
        if params.session != reader.session:
            raise ProtocolError("a request for a sum names another session than its parameters")
        devices = reader.ids("devices")
        count = len(devices)
        rows = zip(
            devices,
            (int.from_bytes(each) for each in reader.parts("smallest", _COUNT, exactly=count)),
            reader.parts("ephemerals", KEY, exactly=count),
            reader.parts("sealed", SEALED_SEED * len(params.helpers), exactly=count),
            reader.octet_lists("certificates", count, MAX_CERTIFICATE),
            reader.octet_lists("signatures", count, MAX_SIGNATURE),
            strict=True,
        )
        seeds = (
            SealedSeeds(device, smallest, ephemeral, flat.split(sealed, SEALED_SEED), *signed)
            for device, smallest, ephemeral, sealed, *signed in rows
        )
        return cls(params, tuple(seeds))
