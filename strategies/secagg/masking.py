"""Masks that cancel in the sum.

A mask is a `Keystream`, read as little-endian residues of 16 or 32 bits; its key serves one session
and one pair (or one client).

Client u adds the mask it shares with v if u < v and subtracts it otherwise, so they vanish from the
sum of both; its own mask, which is added, is taken off with the seed its neighbours give back.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, section 4.
"""

from collections.abc import Sequence

import numpy as np

from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.keystream import CHUNK, Keystream, scratch


def add_masks(residues: Residues, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add and subtract masks in place, modulo 2**32 or 2**16 as the residues' type says.

    Args:
        residues: What is masked or unmasked, shape (length,).
        plus: Keys of the masks to add, 32 bytes each.
        minus: Keys of the masks to subtract.
    """
    steps = [
        *((Keystream(key), np.add) for key in plus),
        *((Keystream(key), np.subtract) for key in minus),
    ]
    width = residues.dtype.itemsize
    buffer = scratch()
    mask = buffer[:CHUNK].view(f"<u{width}")
    for start in range(0, residues.size, CHUNK // width):
        part = residues[start : start + CHUNK // width]
        for stream, operation in steps:
            stream.fill(buffer, part.nbytes)
            operation(part, mask[: part.size], out=part)
