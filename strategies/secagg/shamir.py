"""Shamir's secret sharing of 32-byte secrets over one prime field.

The prime is 2**256 + 297: every 32-byte string is an element, and one share needs 33 bytes. Any
`threshold` shares give the secret, fewer say nothing about it. There is no check of the shares in
here: who combines must know how to tell the secret (by its public key or its digest).

Source: Shamir, "How to share a secret", CACM 1979.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from wildflower.strategies.errors import ProtocolError

PRIME: Final = 2**256 + 297
SECRET: Final = 32  # bytes
SHARE: Final = 33  # bytes
WIDE: Final = 48  # bytes drawn for one coefficient; the bias of the remainder is below 2**-127


def split_secret(
    secret: bytes, threshold: int, points: Sequence[int], *, entropy: bytes
) -> tuple[bytes, ...]:
    """Split a secret.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back, 1 to len(points).
        points: Distinct places of the shares, from 1.
        entropy: 32 or more secret random bytes, for this secret only.

    Returns:
        One share of 33 bytes for each point.
    """
    if len(secret) != SECRET or not 1 <= threshold <= len(set(points)) == len(points):
        raise ValueError(f"a secret of {SECRET} bytes, 1 <= {threshold} <= distinct {points}")
    if min(points) < 1 or len(entropy) < 32:
        raise ValueError("points are 1 or more; entropy has at least 32 bytes")
    drawn = hashlib.shake_256(b"wildflower/shamir" + entropy).digest(WIDE * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[start : start + WIDE], "big") % PRIME
        for start in range(0, len(drawn), WIDE)
    ]
    coefficients.append(int.from_bytes(secret, "big"))
    return tuple(_evaluate(coefficients, point).to_bytes(SHARE, "big") for point in points)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of at least `threshold` shares, by their points.

    Raises:
        ProtocolError: Too few shares, or they do not come from one 32-byte secret.
    """
    if len(shares) < threshold:
        raise ProtocolError(f"{len(shares)} shares, {threshold} are needed")
    points = tuple(sorted(shares)[:threshold])
    secret = sum(
        weight * int.from_bytes(shares[point], "big")
        for point, weight in zip(points, _lagrange(points), strict=True)
    )
    try:
        return (secret % PRIME).to_bytes(SECRET, "big")
    except OverflowError as error:
        raise ProtocolError("the shares do not belong to one secret") from error


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


@functools.lru_cache(maxsize=4096)
def _lagrange(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights that interpolate at 0; many secrets of one session share their points."""
    weights = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
