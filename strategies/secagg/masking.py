"""Masks that cancel in the sum.

A mask is a keystream: AES-256 in counter mode from IV 0^12 || 00000002, read as little-endian
32-bit residues. A fixed IV is safe because a key serves one session and one pair (or one client).
The very same bytes are the ciphertext of zeros under AES-256-GCM with a zero nonce, which is twice
as fast where OpenSSL has vector AES, so that is how they are made here.

Client u adds the mask it shares with v if u < v and subtracts it otherwise, so they vanish from the
sum of both; its own mask, which is added, is taken off with the seed its neighbours give back.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, section 4; NIST SP 800-38D, section 7.1 (GCM's counter starts at 2).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Residues = npt.NDArray[np.uint32]
"""Integers modulo 2**32, shape (length,)."""

CHUNK: Final = 1 << 17  # elements, 512 KiB: the chunk that all masks are added to stays in cache
_ZEROS: Final = bytes(4 * CHUNK)
_NONCE: Final = bytes(12)


def add_masks(residues: Residues, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add and subtract masks in place, modulo 2**32.

    Args:
        residues: What is masked or unmasked, shape (length,).
        plus: Keys of the masks to add, 32 bytes each.
        minus: Keys of the masks to subtract.
    """
    steps: list[tuple[Callable[[memoryview, Any], int], Callable[..., Residues]]] = [
        *((_keystream(key), np.add) for key in plus),
        *((_keystream(key), np.subtract) for key in minus),
    ]
    # The cipher may ask for one block of room more than it writes.
    buffer = np.empty(4 * CHUNK + 16, np.uint8)
    mask, zeros = buffer[: 4 * CHUNK].view("<u4"), memoryview(_ZEROS)
    for start in range(0, residues.size, CHUNK):
        part = residues[start : start + CHUNK]
        for update_into, operation in steps:
            update_into(zeros[: 4 * part.size], buffer)
            operation(part, mask[: part.size], out=part)


def _keystream(key: bytes) -> Callable[[memoryview, Any], int]:
    if len(key) != 32:
        raise ValueError(f"a mask's key has 32 bytes, found {len(key)}")
    return Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor().update_into
