"""Masks that cancel in the sum.

A mask is a keystream: AES-256 in counter mode from IV 0^12 || 00000002, read as little-endian
residues of 16 or 32 bits. A fixed IV is safe because a key serves one session and one pair (or one
client). The very same bytes are the ciphertext of zeros under AES-256-GCM with a zero nonce, which
is twice as fast where OpenSSL has vector AES, so that is how they are made here.

Client u adds the mask it shares with v if u < v and subtracts it otherwise, so they vanish from the
sum of both; its own mask, which is added, is taken off with the seed its neighbours give back.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, section 4; NIST SP 800-38D, section 7.1 (GCM's counter starts at 2).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wildflower.strategies.fixed_point import Residues

CHUNK: Final = 1 << 17  # bytes: what is masked, the mask and the zeros stay in a core's cache
_ZEROS: Final = bytes(CHUNK)
_NONCE: Final = bytes(12)


def add_masks(residues: Residues, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add and subtract masks in place, modulo 2**32 or 2**16 as the residues' type says.

    Args:
        residues: What is masked or unmasked, shape (length,).
        plus: Keys of the masks to add, 32 bytes each.
        minus: Keys of the masks to subtract.
    """
    steps: list[tuple[Callable[[memoryview, Any], int], Callable[..., Residues]]] = [
        *((_keystream(key), np.add) for key in plus),
        *((_keystream(key), np.subtract) for key in minus),
    ]
    width = residues.dtype.itemsize
    step = CHUNK // width
    # The cipher may ask for one block of room more than it writes.
    buffer = np.empty(CHUNK + 16, np.uint8)
    mask, zeros = buffer[:CHUNK].view(f"<u{width}"), memoryview(_ZEROS)
    for start in range(0, residues.size, step):
        part = residues[start : start + step]
        for update_into, operation in steps:
            update_into(zeros[: width * part.size], buffer)
            operation(part, mask[: part.size], out=part)


def _keystream(key: bytes) -> Callable[[memoryview, Any], int]:
    if len(key) != 32:
        raise ValueError(f"a mask's key has 32 bytes, found {len(key)}")
    return Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor().update_into
