"""BFV with TenSEAL: who can encrypt, who can add, and who can decrypt.

    KeyPair      the key holder's: decrypts
    PublicKey    a device's: encrypts;     the server's: adds up, and nothing else
    Accumulator  a sum that grows as ciphertexts arrive

Parameters: polynomials of degree 4096 over a modulus of 109 bits, SEAL's choice for 128 bits of
security, and the plain modulus of `packing`. A sum of 127 has at most 2**7 times the noise of a
fresh ciphertext, and 2**17 times that is still decrypted without error: sums are exact.

A sum starts at a fresh encryption of zero. So it is no bare function of what devices sent, and a
ciphertext that does not fit is the fault of who sent it, even of the first to arrive.

TenSEAL writes to the process's own standard output when a vector needs more than one ciphertext,
and Python cannot keep it from that: every plaintext here has exactly `packing.SLOTS` slots.

Ciphertexts from outside are limited in size before TenSEAL reads them and must have the one shape
that is ours; SEAL checks the rest. A well-formed ciphertext may still hold anything: who made it is
for signatures to say (`messages`), whether a sum makes sense is seen when it is decrypted.

Source: Fan and Vercauteren, "Somewhat Practical Fully Homomorphic Encryption", 2012.
"""

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.strategies.errors import MissingPackageError, ProtocolError
from wildflower.strategies.he.messages import MAX_CIPHERTEXT, MAX_CONTEXT
from wildflower.strategies.he.packing import (
    PLAIN_MODULUS,
    SLOTS,
    Slots,
    chunks_of,
    pack,
    require_headroom,
    unpack,
)

PARAMETERS: Final = (
    65860738258831948,
    583706335006950357,
    14964058713620283536,
    13963476057179751938,
)
"""SEAL's digest of scheme, degree and both moduli: a key of other parameters is none of ours."""
REFUSALS: Final = (ValueError, RuntimeError, TypeError, IndexError, MemoryError)
"""What TenSEAL raises about bytes that it cannot use."""


def tenseal() -> ModuleType:
    """Return the library, which the core of Wildflower does without.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import tenseal as found
    except ImportError as error:
        raise MissingPackageError(
            "homomorphic aggregation needs tenseal, which is not installed",
            hint="pip install 'wildflower[he]'",
        ) from error
    module: ModuleType = found
    return module


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What encrypts and adds, and cannot decrypt.

    Attributes:
        data: TenSEAL's serialised context, without a secret key.
    """

    data: bytes = field(repr=False)
    _context: Any = field(repr=False, compare=False)

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read a public key.

        Raises:
            ProtocolError: None, one of other parameters, or one that holds a secret.
            MissingPackageError: TenSEAL is not installed.
        """
        context = _read_context(data)
        if context.is_private():
            raise ProtocolError("a public key holds the secret one")
        return cls(data, context)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key, 32 bytes."""
        return hashlib.sha256(self.data).digest()

    def encrypt(self, residues: npt.NDArray[np.uint16]) -> tuple[bytes, ...]:
        """Return one ciphertext for each chunk of the residues; two calls never give the same."""
        return tuple(self._encrypted(chunk).serialize() for chunk in pack(residues))

    def _encrypted(self, slots: npt.NDArray[np.int64]) -> Any:
        return tenseal().bfv_vector(self._context, slots.tolist())

    def zero(self, length: int) -> "Accumulator":
        """Return the sum of nothing, for updates of so many residues."""
        nothing = np.zeros(SLOTS, np.int64)
        return Accumulator(self, [self._encrypted(nothing) for _ in range(chunks_of(length))])


class Accumulator:
    """A sum of ciphertexts that its holder cannot decrypt.

    Attributes:
        addends: How many updates are in it.
    """

    def __init__(self, key: PublicKey, chunks: list[Any]) -> None:
        self._key, self._chunks = key, chunks
        self.addends = 0

    def add(self, ciphertexts: Sequence[bytes]) -> None:
        """Add one update: all of its ciphertexts, or none.

        Raises:
            ProtocolError: Not ciphertexts of an update under this key.
            CapacityError: There is no room for another addend.
        """
        require_headroom(self.addends + 1)
        if len(ciphertexts) != len(self._chunks):
            raise ProtocolError(
                f"an update has {len(self._chunks)} ciphertexts, found {len(ciphertexts)}"
            )
        found = [_read_ciphertext(self._key._context, data) for data in ciphertexts]
        self._chunks = [
            _attempt("cannot be added", partial(operator.add, chunk, addend))
            for chunk, addend in zip(self._chunks, found, strict=True)
        ]
        self.addends += 1

    def ciphertexts(self) -> tuple[bytes, ...]:
        """Return the sum."""
        return tuple(chunk.serialize() for chunk in self._chunks)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key holder's key pair.

    Attributes:
        public: What devices and server get.
        data: TenSEAL's serialised context with the secret key, to be stored.
    """

    public: PublicKey
    data: bytes = field(repr=False)
    _context: Any = field(repr=False, compare=False)

    @classmethod
    def make(cls) -> Self:
        """Make a key pair; SEAL draws it from the system's entropy.

        Raises:
            MissingPackageError: TenSEAL is not installed.
        """
        library = tenseal()
        context = library.context(
            library.SCHEME_TYPE.BFV,
            poly_modulus_degree=SLOTS,
            plain_modulus=PLAIN_MODULUS,
            n_threads=1,
        )
        return cls._of(context, _serialised(context, secret=True))

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read what `data` was stored as.

        Raises:
            ProtocolError: No key pair of ours.
            MissingPackageError: TenSEAL is not installed.
        """
        context = _read_context(data)
        if not context.is_private():
            raise ProtocolError("a key pair lacks its secret key")
        return cls._of(context, data)

    @classmethod
    def _of(cls, context: Any, data: bytes) -> Self:
        return cls(PublicKey.load(_serialised(context, secret=False)), data, context)

    def decrypt(
        self, ciphertexts: Sequence[bytes], length: int, addends: int
    ) -> npt.NDArray[np.uint16]:
        """Return the sum of the residues of so many updates modulo 2**16, shape (length,).

        Raises:
            ProtocolError: No sum of so many updates that were encrypted under this key.
            CapacityError: More addends than a sum has room for.
        """
        require_headroom(addends)
        if len(ciphertexts) != chunks_of(length):
            raise ProtocolError(
                f"{length} residues are {chunks_of(length)} ciphertexts, found {len(ciphertexts)}"
            )
        return unpack(self._slots(ciphertexts), length, addends)

    def _slots(self, ciphertexts: Sequence[bytes]) -> Slots:
        slots = np.empty((len(ciphertexts), SLOTS), np.int64)
        for row, data in zip(slots, ciphertexts, strict=True):
            found = _read_ciphertext(self._context, data)
            row[:] = _attempt("cannot be decrypted", found.decrypt)
        return slots


def _serialised(context: Any, *, secret: bool) -> bytes:
    data: bytes = context.serialize(
        save_public_key=True,
        save_secret_key=secret,
        save_galois_keys=False,  # 90 MB that rotate slots, which nobody here does
        save_relin_keys=False,
    )
    return data


def _read_context(data: bytes) -> Any:
    """Return a context of our parameters and no others."""
    if len(data) > MAX_CONTEXT:
        raise ProtocolError(f"a key of {len(data)} bytes, at most {MAX_CONTEXT} are read")
    library = tenseal()
    context = _attempt("is no key", lambda: library.context_from(data, n_threads=1))
    if tuple(context.seal_context().data.key_parms_id()) != PARAMETERS:
        raise ProtocolError("a key has other parameters than those of homomorphic aggregation")
    return context


def _read_ciphertext(context: Any, data: bytes) -> Any:
    """Return one ciphertext of `SLOTS` slots."""
    if not 0 < len(data) <= MAX_CIPHERTEXT:
        raise ProtocolError(f"a ciphertext of {len(data)} bytes, allowed are 1 to {MAX_CIPHERTEXT}")
    found = _attempt("is none", lambda: tenseal().bfv_vector_from(context, data))
    if found.size() != SLOTS or len(found.ciphertext()) != 1:
        raise ProtocolError(f"a ciphertext of {found.size()} slots, expected {SLOTS}")
    return found


def _attempt(what: str, act: Callable[[], Any]) -> Any:
    """Have TenSEAL do something with bytes from outside."""
    try:
        return act()
    except REFUSALS as error:
        raise ProtocolError(f"a ciphertext or key {what}: {error}") from error
