"""Noise that nobody can predict: drawn from an AES keystream, never from a simulation's generator.

    words      AES-256 keystream under a key that HKDF derives from secret entropy
    gaussians  two 53-bit uniforms each pair, after Box and Muller 1958
    release    value and noise are both rounded to one grid, then added exactly

Floating-point noise can be told apart from other noise by its last bits (Mironov 2012). Here the
grid is a power of two that depends on public numbers only: whatever the value, the result lies on
that grid, and adding is exact. Rounding the noise is post-processing: round(x + N) = x + round(N)
for x on the grid, so the accounting of the continuous Gaussian holds. Rounding the value moves each
element by at most one grid step between neighbours, which `release` adds to the sensitivity.

What remains: a Gaussian from 53-bit uniforms ends at 8.57 standard deviations (probability 1e-17 an
element), and logarithm and cosine are right to 2^-52. And time: this does not run in constant time.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wildflower.strategies.keystream import CHUNK as STREAM_CHUNK
from wildflower.strategies.keystream import Keystream, scratch

KEY: Final = 32  # bytes
GRID: Final = 2.0**-28
"""Grid step of a release over its sensitivity: 2^28 elements add 0.006 % to the sensitivity."""
_BLOCK: Final = 16  # bytes that the cipher makes at once; the rest of a last one is dropped
CHUNK: Final = 1 << 15  # elements; the few float64 buffers of a chunk stay in a core's cache


def derive(entropy: bytes, purpose: bytes) -> bytes:
    """Return a 32-byte key for one purpose (HKDF-SHA256).

    Raises:
        ValueError: Fewer than 32 bytes of entropy.
    """
    if len(entropy) < KEY:
        raise ValueError(f"noise needs {KEY} secret random bytes, found {len(entropy)}")
    return HKDF(hashes.SHA256(), KEY, None, b"wildflower/dp/1/" + purpose).derive(entropy)


class Words:
    """Pseudo-random words of one key; what was taken once is never given again."""

    def __init__(self, key: bytes) -> None:
        self._stream, self._buffer = Keystream(key), scratch()

    def take(self, count: int, dtype: str = "<u8") -> npt.NDArray[Any]:
        """Return the next `count` words of an unsigned little-endian type, shape (count,)."""
        size = count * np.dtype(dtype).itemsize
        octets = np.empty(-(-size // _BLOCK) * _BLOCK, np.uint8)
        for start in range(0, octets.size, STREAM_CHUNK):
            part = octets[start : start + STREAM_CHUNK]
            self._stream.fill(self._buffer, part.size)
            part[:] = self._buffer[: part.size]
        return octets[:size].view(dtype)


def gaussians(stream: Words, count: int) -> npt.NDArray[np.float64]:
    """Return standard Gaussians, shape (count,)."""
    found = np.empty(count + count % 2, np.float64)
    for start in range(0, found.size, CHUNK):
        part = found[start : start + CHUNK]
        half = part.size // 2
        uniform = ((stream.take(part.size) >> np.uint64(11)) + 1) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:half]))
        angle = 2.0 * math.pi * uniform[half:]
        part[:half], part[half:] = radius * np.cos(angle), radius * np.sin(angle)
    return found[:count]


def signs(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Return the signs that a key stands for, each -1 or 1, shape (count,); no secret."""
    octets = Words(key).take(-(-count // 8), "u1")
    return np.unpackbits(octets, count=count).astype(np.float64) * 2.0 - 1.0


def release(
    values: npt.NDArray[np.float64], *, sensitivity: float, noise_multiplier: float, entropy: bytes
) -> npt.NDArray[np.float64]:
    """Return values with Gaussian noise on each element, shape as `values`.

    Args:
        values: A sum, of which one unit changes at most `sensitivity`, in L2 norm.
        sensitivity: Above 0.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        entropy: 32 or more secret random bytes, for this call only.

    Raises:
        ValueError: Fewer than 32 bytes of entropy.
    """
    step = grid_of(sensitivity)
    found = on_grid(
        values.size,
        sensitivity=sensitivity,
        noise_multiplier=noise_multiplier,
        key=derive(entropy, b"gaussian"),
    )
    found += np.rint(values / step)
    found *= step
    return found


def grid_of(sensitivity: float) -> float:
    """Return the grid's step, a power of two."""
    return 2.0 ** math.floor(math.log2(sensitivity * GRID))


def on_grid(
    count: int, *, sensitivity: float, noise_multiplier: float, key: bytes
) -> npt.NDArray[np.float64]:
    """Return Gaussian noise in whole steps of the grid, shape (count,).

    Args:
        count: Elements of the sum.
        sensitivity: Of the sum before it is rounded to the grid.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        key: 32 secret bytes, for this noise only.
    """
    step = grid_of(sensitivity)
    deviation = noise_multiplier * (sensitivity + math.sqrt(count) * step)
    found = gaussians(Words(key), count)
    found *= deviation / step
    return np.rint(found, out=found)
