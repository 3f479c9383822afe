"""What server, devices and key holder say to each other in a homomorphic session, version 1.

    key holder -> server -> device   RunKey       a run's public key, with the key holder's word
    server -> device                 Invitation   what is added up, under which key
    device -> server                 Encrypted    the update's ciphertexts, signed by the device
    server -> key holder             SumRequest   the ciphertexts of the sum
    key holder -> server             residues     what they add up to, modulo 2**16

Messages are values; parsing trusts nothing but that signatures are what they claim, which is
`trust`'s business.

    M.from_fields(m.to_fields()) == m    RunKey, Invitation, Encrypted: Flower carries them
    M.from_bytes(m.to_bytes()) == m      RunKey, SumRequest: they go from and to the key holder

The byte form is a header and parts: 4 bytes of length, the header (`secagg.fields`), then each
part behind 4 bytes of its own length. Ciphertexts in JSON would be twice as long.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from wildflower.strategies.encodings import SumEncoding, read_encoding
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.he.packing import BITS, MAX_ADDENDS, MAX_CHUNKS, MAX_LENGTH, chunks_of
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.fields import DEVICE, HEADER, SESSION, Fields, Reader
from wildflower.strategies.secagg.messages import MAX_CERTIFICATE, MAX_NAME, MAX_SIGNATURE

MAX_CIPHERTEXT: Final = 100_000  # bytes; ours have 88,600
MAX_CONTEXT: Final = 300_000  # bytes; a public key of ours has 134,200, with the secret one 204,400
MAX_HEADER: Final = 65_536  # bytes
MAX_RUN: Final = MAX_NAME + 32  # characters: a training's id and a number
IDENTITY: Final = 91  # bytes of a P-256 SubjectPublicKeyInfo with an uncompressed point
DIGEST: Final = 32  # bytes
SMALLEST: Final = 3  # devices in a sum: that of two tells each what the other one sent
LATEST: Final = 2**40  # seconds since 1970
NO_SESSION: Final = bytes(SESSION)
"""In the header of what belongs to no session: keys and sums belong to trainings."""
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class RunKey:
    """A run's public key, and what its key holder promises of it.

    Attributes:
        run: What the key is for: one run of one training.
        context: The public key, as `bfv.PublicKey` reads it.
        min_cohort: Fewest updates whose sum is decrypted.
        expires: When the secret key is erased, seconds since 1970.
        identity: The key holder's P-256 key, SubjectPublicKeyInfo in DER; its digest is pinned.
        signature: By that key, over `trust.promise_bytes`.
    """

    run: str
    context: bytes = field(repr=False)
    min_cohort: int
    expires: int
    identity: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no run's key."""
        if not 1 <= len(self.run) <= MAX_RUN or not 1 <= len(self.context) <= MAX_CONTEXT:
            raise ValueError(f"a run of 1 to {MAX_RUN} characters and its key are expected")
        if not SMALLEST <= self.min_cohort <= MAX_ADDENDS or not 0 <= self.expires <= LATEST:
            raise ValueError(
                f"min_cohort is {self.min_cohort}, allowed are {SMALLEST} to {MAX_ADDENDS};"
                f" expires is {self.expires}, allowed are 0 to {LATEST} seconds"
            )
        if len(self.identity) != IDENTITY or not 1 <= len(self.signature) <= MAX_SIGNATURE:
            raise ValueError("a key holder's identity is a P-256 key, and signs")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the public key, 32 bytes."""
        return hashlib.sha256(self.context).digest()

    @property
    def holder(self) -> str:
        """The key holder's id: SHA-256 of its identity, hex."""
        return hashlib.sha256(self.identity).hexdigest()

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        own = {name: getattr(self, name) for name in _RUN_KEY}
        return {**flat.header("run-key", NO_SESSION), **own}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No run's key.
        """
        reader = Reader("run-key", fields, _RUN_KEY)
        try:
            return cls(
                reader.text("run", MAX_RUN),
                reader.octets("context", MAX_CONTEXT),
                reader.integer("min_cohort"),
                reader.integer("expires"),
                reader.octets("identity", IDENTITY),
                reader.octets("signature", MAX_SIGNATURE),
            )
        except ValueError as error:
            raise ProtocolError(f"no run's key: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return join(self.to_fields(), ())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            ProtocolError: No run's key.
        """
        header, parts = cut(data, max_header=4 * MAX_CONTEXT)
        if parts:
            raise ProtocolError("a run's key has no further parts")
        return cls.from_fields(header)


_RUN_KEY: Final = ("run", "context", "min_cohort", "expires", "identity", "signature")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a device is asked for: its update, encrypted.

    Attributes:
        session: Id of the session, 32 random bytes.
        round: Number of the round in the training, from 1.
        key: The run's key.
        encoding: How updates become residues; it holds the largest number of clients.
    """

    session: bytes
    round: int
    key: RunKey
    encoding: SumEncoding

    def __post_init__(self) -> None:
        """Refuse what a homomorphic sum cannot hold."""
        clients, bits = self.encoding.clients, self.encoding.bits
        length = self.encoding.length
        if len(self.session) != SESSION or self.round < 0:
            raise ValueError(f"a session of {SESSION} bytes and a round >= 0 are expected")
        if bits != BITS or not SMALLEST <= clients <= MAX_ADDENDS or length > MAX_LENGTH:
            raise ValueError(
                f"{clients} clients with {length} residues of {bits} bits: a homomorphic sum has"
                f" {SMALLEST} to {MAX_ADDENDS} with at most {MAX_LENGTH} of {BITS} bits"
            )

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that was asked, 32 bytes; a device signs it."""
        return flat.digest({**self.to_fields(), "key_context": self.key.digest})

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        key = {name: getattr(self.key, of) for name, of in _KEY.items()}
        header = flat.header("invitation", self.session)
        return {**header, "round": self.round, **key, **self.encoding.to_fields()}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No invitation.
            CapacityError: The cohort's sums do not fit into the residues.
        """
        own = {*HEADER, "round", *_KEY}
        encoding = {name: value for name, value in fields.items() if name not in own}
        reader = Reader("invitation", fields, ("round", *_KEY, *encoding))
        key = {of: fields[name] for name, of in _KEY.items()}
        try:
            return cls(
                reader.session,
                reader.integer("round"),
                RunKey.from_fields({**flat.header("run-key", NO_SESSION), **key}),
                read_encoding(encoding),
            )
        except ValueError as error:
            raise ProtocolError(f"no invitation: {error}") from error


_KEY: Final = {f"key_{name}": name for name in _RUN_KEY}
"""An invitation's names of what the key's are: the encoding has names of its own."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A device's update, encrypted under the key it was invited with.

    Attributes:
        session: The session's id.
        device: The device's id.
        ciphertexts: One for each chunk of the residues.
        certificate: The device's certificate, DER.
        signature: By the device's key, over `trust.update_bytes`.
    """

    session: bytes
    device: str
    ciphertexts: tuple[bytes, ...] = field(repr=False)
    certificate: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the ciphertexts' digests, 32 bytes."""
        return digest_of(self.ciphertexts)

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        return {
            **flat.header("encrypted", self.session),
            "device": bytes.fromhex(self.device),
            "certificate": self.certificate,
            "signature": self.signature,
            "ciphertexts": list(self.ciphertexts),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_fields` wrote.

        Raises:
            ProtocolError: No encrypted update.
        """
        reader = Reader("encrypted", fields, _ENCRYPTED)
        found = fields["ciphertexts"]
        count = len(found) if isinstance(found, list) else 0
        if not 1 <= count <= MAX_CHUNKS:
            raise reader.error("ciphertexts", "a list that is not empty", type(found).__name__)
        return cls(
            reader.session,
            reader.parts("device", DEVICE, exactly=1)[0].hex(),
            reader.octet_lists("ciphertexts", count, MAX_CIPHERTEXT),
            reader.octets("certificate", MAX_CERTIFICATE),
            reader.octets("signature", MAX_SIGNATURE),
        )


_ENCRYPTED: Final = ("device", "certificate", "signature", "ciphertexts")


@dataclass(frozen=True, slots=True)
class SumRequest:
    """What a key holder is asked to decrypt.

    Attributes:
        run: Id of the run.
        round: Number of the round in the training.
        key: Digest of the public key, 32 bytes.
        addends: How many updates are in the sum, by the server's word.
        length: Residues of one update.
        ciphertexts: The sum.
    """

    run: str
    round: int
    key: bytes
    addends: int
    length: int
    ciphertexts: tuple[bytes, ...] = field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the request, 32 bytes."""
        return flat.digest({**self._header(), "ciphertexts": digest_of(self.ciphertexts)})

    def _header(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _SUM}
        return {**flat.header("sum", NO_SESSION), **own}

    def to_bytes(self) -> bytes:
        """Return what is sent."""
        return join(self._header(), self.ciphertexts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            ProtocolError: No request.
        """
        header, parts = cut(data)
        reader = Reader("sum", header, _SUM)
        length, addends = reader.integer("length"), reader.integer("addends")
        if not 0 < length <= MAX_LENGTH or len(parts) != chunks_of(length):
            raise reader.error("length", f"1 to {MAX_LENGTH}, and of the ciphertexts", length)
        return cls(
            reader.text("run", MAX_RUN),
            reader.integer("round"),
            reader.parts("key", DIGEST, exactly=1)[0],
            addends,
            length,
            parts,
        )


_SUM: Final = ("run", "round", "key", "addends", "length")


def digest_of(ciphertexts: Sequence[bytes]) -> bytes:
    """Return the SHA-256 of the ciphertexts' digests, 32 bytes."""
    return hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in ciphertexts)).digest()


def join(header: Fields, parts: Sequence[bytes]) -> bytes:
    """Return the byte form of a header and parts."""
    pieces = [flat.to_bytes(header), *parts]
    return b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)


def cut(data: bytes, *, max_header: int = MAX_HEADER) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """Return the header and the parts, each of 1 to `MAX_CIPHERTEXT` bytes.

    Raises:
        ProtocolError: Not what `join` wrote.
    """
    pieces: list[bytes] = []
    start, most = 0, max_header
    while start < len(data):
        (length,) = _LENGTH.unpack_from(data, start) if len(data) - start >= 4 else (0,)
        start += _LENGTH.size
        if not 1 <= length <= min(most, len(data) - start):
            raise ProtocolError(f"a piece of {length} bytes, allowed are 1 to {most} that follow")
        pieces.append(data[start : start + length])
        start, most = start + length, MAX_CIPHERTEXT
    if not pieces:
        raise ProtocolError("a message of no bytes")
    return flat.from_bytes(pieces[0]), tuple(pieces[1:])
