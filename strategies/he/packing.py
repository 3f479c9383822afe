"""Residues as the slots of BFV plaintexts, two to a slot, with room for the sum of 127 devices.

    slot = residue[i] * 2**23 + residue[i + 4096]         23 bits = 16 of a residue, 7 of headroom

Sums of slots are sums of both lanes, because no lane reaches 2**23: 127 * (2**16 - 1) < 2**23. Two
lanes are 46 bits, below half of the plain modulus: BFV's slots are integers modulo a prime, and a
library gives those above its half as negative ones. The prime is just above 2**47 and 1 modulo
8192, so that a polynomial of degree 4096 has 4096 slots.

    unpack(sum of pack(r)) == sum of r mod 2**16, for up to 127 vectors of residues, bit for bit

That is the very sum that masks leave over in secure aggregation, so every encoding with 16-bit
residues serves here as it is. What is no sum of so many residues is recognised: a ciphertext that
was altered or made for another key decrypts to slots of which half are out of range.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.errors import CapacityError, ProtocolError

SLOTS: Final = 4096
"""Slots of a plaintext: the degree of the polynomials."""
PLAIN_MODULUS: Final = 140_737_488_486_401
"""A prime just above 2**47 that is 1 modulo 2 * `SLOTS`."""
BITS: Final = 16
"""Width of a residue."""
HEADROOM: Final = 7  # bits
MAX_ADDENDS: Final = 2**HEADROOM - 1
"""Most devices in one sum."""

LANE: Final = BITS + HEADROOM
PER_CHUNK: Final = 2 * SLOTS
MAX_CHUNKS: Final = 750
"""Most ciphertexts of one update, 66.5 MB. Flower sends a record in one piece, of which a device's
way to the server (`server.gateway`) takes 64 MiB."""
MAX_LENGTH: Final = MAX_CHUNKS * PER_CHUNK
"""Most residues of one update: six million parameters."""

Slots = npt.NDArray[np.int64]
"""Plaintexts, shape (chunks, `SLOTS`)."""


def require_headroom(addends: int) -> None:
    """Refuse more addends than a slot has room for.

    Raises:
        CapacityError: There are more.
    """
    if addends > MAX_ADDENDS:
        raise CapacityError(
            f"a homomorphic sum has room for {MAX_ADDENDS} devices, found {addends}",
            hint="Draw a smaller cohort, or use secure aggregation, which has no such bound.",
        )


def chunks_of(length: int) -> int:
    """Return how many plaintexts so many residues fill."""
    if not 0 <= length <= MAX_LENGTH:
        raise ValueError(f"length is {length}, allowed are 0 to {MAX_LENGTH} residues")
    return -(-length // PER_CHUNK)


def pack(residues: npt.NDArray[np.uint16]) -> Slots:
    """Return residues as slots.

    Args:
        residues: Shape (length,); the last chunk is filled up with zeros.

    Returns:
        Shape (`chunks_of`(length), `SLOTS`), each slot in [0, 2**39).
    """
    if residues.dtype != np.uint16 or residues.ndim != 1:
        raise ValueError(f"expected 16-bit residues, found {residues.dtype} of {residues.shape}")
    chunks = chunks_of(residues.size)
    lanes = np.zeros(chunks * PER_CHUNK, np.int64)
    lanes[: residues.size] = residues
    high, low = lanes.reshape(chunks, 2, SLOTS).transpose(1, 0, 2)
    packed: Slots = (high << LANE) | low
    return packed


def unpack(slots: Slots, length: int, addends: int) -> npt.NDArray[np.uint16]:
    """Return the residues that slots add up to.

    Args:
        slots: Sum of packed residues, shape (chunks_of(length), `SLOTS`).
        length: How many residues each addend had.
        addends: How many addends there are at most.

    Returns:
        The sum modulo 2**16, shape (length,).

    Raises:
        ProtocolError: No sum of so many vectors of residues.
        CapacityError: More addends than there is room for.
    """
    require_headroom(addends)
    if slots.shape != (chunks_of(length), SLOTS) or slots.dtype != np.int64:
        raise ProtocolError(
            f"expected {chunks_of(length)} x {SLOTS} slots, found {slots.dtype} of {slots.shape}"
        )
    high, low = slots >> LANE, slots & (2**LANE - 1)
    lanes = np.stack((high, low), axis=1).reshape(-1)
    most = addends * (2**BITS - 1)
    if not (((lanes >= 0) & (lanes <= most)).all() and not lanes[length:].any()):
        raise ProtocolError(
            f"the slots are no sum of {addends} updates",
            hint="A ciphertext was altered, or made for another key.",
        )
    return (lanes[:length] & (2**BITS - 1)).astype(np.uint16)
