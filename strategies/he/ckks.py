"""CKKS with TenSEAL: approximate sums of float vectors, for comparison, behind a warning.

Homomorphic rounds use BFV (`bfv`): it is exact, a third of the bytes, and without the problem that
`WARNING` states. CKKS is here for who must compare with systems that use it; no round of ours does.

    keys = make_keys(i_understand=I_UNDERSTAND)
    total = keys.add(keys.encrypt(one), keys.encrypt(two))
    keys.decrypt(total, one.size)    # one + two, to about 2**-20

The parameters are like those of NVFlare's `he` (whose last prime has 40 bits): degree 8192, primes
of 60, 40 and 60 bits, scale 2**40, and one secret key for all clients, which also encrypts
(symmetric) by default, because that is faster.

Source: Li and Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers",
EUROCRYPT 2021.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.arrays import Vector
from wildflower.strategies.he.bfv import tenseal

DEGREE: Final = 8192
SLOTS: Final = DEGREE // 2
COEFFICIENT_BITS: Final = (60, 40, 60)
SCALE: Final = 2.0**40
I_UNDERSTAND: Final = "who sees a decrypted sum and its ciphertexts can compute the secret key"
"""What a caller of `make_keys` must say."""
WARNING: Final = (
    "CKKS is not secure where decrypted sums reach whoever holds the ciphertexts, as a federated"
    " learning server does: the approximation error of a decrypted sum gives the secret key away"
    " (IND-CPA-D, Li and Micciancio 2021). Use BFV, which homomorphic rounds do."
)


class ApproximateWarning(UserWarning):
    """An approximate scheme was chosen, whose decrypted sums give its key away."""


@dataclass(frozen=True, slots=True)
class CkksKeys:
    """Keys and parameters; whoever holds them can decrypt."""

    _context: Any = field(repr=False)

    def encrypt(self, vector: Vector) -> tuple[bytes, ...]:
        """Return one ciphertext for each `SLOTS` elements of a vector, shape (n,)."""
        return tuple(
            tenseal().ckks_vector(self._context, vector[start : start + SLOTS].tolist()).serialize()
            for start in range(0, vector.size, SLOTS)
        )

    def add(self, *addends: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the sum of encrypted vectors of one length."""
        return tuple(self._sum(chunk).serialize() for chunk in zip(*addends, strict=True))

    def decrypt(self, ciphertexts: Sequence[bytes], size: int) -> npt.NDArray[np.float64]:
        """Return what ciphertexts hold, about, shape (size,)."""
        parts = [np.array(self._read(each).decrypt(), np.float64) for each in ciphertexts]
        found: npt.NDArray[np.float64] = np.concatenate([np.empty(0), *parts])
        if found.size != size:
            raise ValueError(f"the ciphertexts hold {found.size} elements, expected {size}")
        return found

    def _sum(self, chunk: Sequence[bytes]) -> Any:
        total, *others = map(self._read, chunk)
        for other in others:
            total += other
        return total

    def _read(self, data: bytes) -> Any:
        return tenseal().ckks_vector_from(self._context, data)


def make_keys(*, i_understand: str, symmetric: bool = True) -> CkksKeys:
    """Make keys, and warn.

    Args:
        i_understand: `I_UNDERSTAND`, word for word.
        symmetric: Encrypt with the secret key, which is faster, instead of a public one.

    Raises:
        ValueError: `i_understand` is anything else.
        MissingPackageError: TenSEAL is not installed.
    """
    if i_understand != I_UNDERSTAND:
        raise ValueError(f"{WARNING} To use it all the same, pass i_understand={I_UNDERSTAND!r}")
    warnings.warn(WARNING, ApproximateWarning, stacklevel=2)
    library = tenseal()
    kinds = library.ENCRYPTION_TYPE
    context = library.context(
        library.SCHEME_TYPE.CKKS,
        DEGREE,
        coeff_mod_bit_sizes=list(COEFFICIENT_BITS),
        encryption_type=kinds.SYMMETRIC if symmetric else kinds.ASYMMETRIC,
        n_threads=1,
    )
    context.global_scale = SCALE
    return CkksKeys(context)
