"""A key's stream of random bytes, made at nearly the speed of memory.

It is AES-256 in counter mode from IV 0^12 || 00000002. The very same bytes are the ciphertext of
zeros under AES-256-GCM with a zero nonce, which is faster where OpenSSL has vector AES, so that is
how they are made here. The IV never changes: a key is for one stream.

Source: NIST SP 800-38D, section 7.1 (GCM's counter starts at 2).
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Octets = npt.NDArray[np.uint8]

CHUNK: Final = 1 << 17  # bytes at once: zeros, stream and what it is used on stay in a core's cache
_SPARE: Final = 16  # bytes of room that the cipher asks for and does not use
_LINE: Final = 64  # bytes of a cache line: loads across two of them cost a few percent
_NONCE: Final = bytes(12)


def scratch() -> Octets:
    """Return a buffer to fill again and again, `CHUNK` bytes and what the cipher asks for."""
    room = np.zeros(CHUNK + _SPARE + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + CHUNK + _SPARE]


_ZEROS: Final = memoryview(scratch().data).toreadonly()


class Keystream:
    """The stream of one key; what was drawn once is never drawn again."""

    def __init__(self, key: bytes) -> None:
        """Begin.

        Args:
            key: 32 bytes.
        """
        if len(key) != 32:
            raise ValueError(f"a stream's key has 32 bytes, found {len(key)}")
        self._update_into = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor().update_into

    def fill(self, buffer: Octets, length: int) -> None:
        """Write the next bytes of the stream.

        Args:
            buffer: From `scratch`.
            length: How many, up to `CHUNK`; a multiple of 16 unless it is the last time.
        """
        self._update_into(_ZEROS[:length], buffer.data)
