"""Flower's SecAgg+ masks, lifted: a regression that shows why ours are made otherwise.

Flower 1.41 folds a key into 32 bits and seeds the Mersenne Twister with them. A mask is then one of
2**32 (2**28, since the key is base64 text, whose bytes have a zero top bit), and a few elements of
a masked vector tell which: an update is small, and under the right mask it is seen to be.

Here the twister's first outputs are computed for many seeds at once, which needs no more of its
624 words than the first few and those 397 further on. A space of 2**16 takes a tenth of a second;
the 2**28 of the real thing takes minutes on one core.

Source: Matsumoto & Nishimura, "Mersenne Twister", 1998; flwr 1.41,
`common/secure_aggregation/secaggplus_utils.py` (what `flower_mask` restates).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Seeds = npt.NDArray[np.uint32]
"""Seeds of the twister, shape (seeds,)."""

PROBE: Final = 8
"""Elements that are looked at: each lets a wrong seed pass with probability largest/modulus."""

CHUNK: Final = 1 << 16  # seeds at once: a handful of arrays of 256 KiB each

_SHIFT: Final = 397  # words between the two that an output is made of


def folded(key: bytes) -> int:
    """Return the 32 bits that are left of a key.

    Raises:
        ValueError: Its length is no multiple of 4.
    """
    if len(key) % 4:
        raise ValueError(f"a key of {len(key)} bytes, expected a multiple of 4")
    return int(np.bitwise_xor.reduce(np.frombuffer(key, "<u4"), initial=0))


def flower_mask(key: bytes, modulus: int, size: int) -> npt.NDArray[np.int64]:
    """Return the mask that Flower 1.41 makes of a key, shape (size,), in [0, modulus - 2]."""
    generator = np.random.RandomState(folded(key))
    return generator.randint(0, modulus - 1, size, dtype=np.int64)


def search_seeds(
    masked: npt.NDArray[np.int64],
    *,
    modulus: int,
    largest: int,
    seeds: Sequence[int],
    sign: int = 1,
) -> int | None:
    """Return the seed of the mask on a vector, or None.

    Args:
        masked: The vector modulo `modulus` under one mask; shape (n,), its first `PROBE` count.
        modulus: A power of two, at most 2**32.
        largest: Largest element of an update; far below the modulus.
        seeds: The space that is searched, such as `range(2**16)`.
        sign: 1 if the mask was added, -1 if it was subtracted.

    Raises:
        ValueError: Not a power of two.
    """
    if modulus & (modulus - 1) or not 2 <= modulus <= 2**32:
        raise ValueError(f"modulus {modulus}, allowed are powers of two up to 2**32")
    probe = masked[:PROBE]
    for start in range(0, len(seeds), CHUNK):
        part = np.array(seeds[start : start + CHUNK], np.uint32)
        masks = first_outputs(part, len(probe)).astype(np.int64) & (modulus - 1)
        fits = (((probe - sign * masks) & (modulus - 1)) <= largest).all(axis=1)
        if fits.any():
            return int(part[int(fits.argmax())])
    return None


def first_outputs(seeds: Seeds, count: int) -> npt.NDArray[np.uint32]:
    """Return the first outputs of `RandomState(seed)` for each seed, shape (seeds, count).

    Args:
        seeds: The seeds.
        count: Outputs of each, at most 226: later ones depend on earlier ones.
    """
    words = _words(seeds, count)
    outputs = np.empty((len(seeds), count), np.uint32)
    for index in range(count):
        joined = (words[index] & np.uint32(0x80000000)) | (words[index + 1] & np.uint32(0x7FFFFFFF))
        twisted = words[index + _SHIFT] ^ (joined >> np.uint32(1))
        twisted ^= (joined & np.uint32(1)) * np.uint32(0x9908B0DF)
        outputs[:, index] = _tempered(twisted)
    return outputs


def _words(seeds: Seeds, count: int) -> dict[int, Seeds]:
    """Return those of the twister's initial words that its first outputs are made of."""
    kept: dict[int, Seeds] = {}
    word = seeds.astype(np.uint32)
    for index in range(_SHIFT + count):
        if index:
            mixed = word ^ (word >> np.uint32(30))
            word = mixed * np.uint32(1812433253) + np.uint32(index)
        if index <= count or index >= _SHIFT:
            kept[index] = word
    return kept


def _tempered(word: Seeds) -> Seeds:
    word = word ^ (word >> np.uint32(11))
    word = word ^ ((word << np.uint32(7)) & np.uint32(0x9D2C5680))
    word = word ^ ((word << np.uint32(15)) & np.uint32(0xEFC60000))
    return word ^ (word >> np.uint32(18))
