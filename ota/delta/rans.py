"""A static range coder (rANS) over bytes, fast enough in numpy because many lanes run side by side.

    decoder of (encoder of blocks) gives the blocks again, for any number of lanes

One stream codes many blocks, each with its own `Table`; symbol i of a block belongs to lane
i mod lanes. The lanes' states go on from block to block, so their cost, four bytes each, is paid
once per stream and not once per block.

Sources: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; F. Giesen, "Interleaved entropy
coders", arXiv:1402.3392. As there, the encoder works backwards and 16 bits move at a time; here
the state has 32 bits and a table 12, so that one product stays below 2**32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.errors import DeltaError

Symbols = npt.NDArray[np.uint8]
Wide = npt.NDArray[np.int64]

BITS: Final = 12  # of a table; 4096 * 4 * 3 bytes of look-up stay in a core's own cache
SCALE: Final = 1 << BITS
SYMBOLS: Final = 256
LOW: Final = 1 << 16  # a state is in [2**16, 2**32)
MAX_LANES: Final = 1 << 13
MAX_WEIGHT: Final = 1 << 20


@dataclass(frozen=True)  # no slots: the look-ups are made once and kept
class Table:
    """How likely each symbol is, as runs of symbols that are equally likely.

    Attributes:
        runs: Pairs of length and weight, from symbol 0 on; symbols after the last run do not
            occur. Only the ratios of weights matter.
    """

    runs: tuple[tuple[int, int], ...]

    def check(self) -> None:
        """Check what came from outside.

        Raises:
            DeltaError: Too many symbols, an empty run, or no symbol that can occur.
        """
        lengths, weights = zip(*self.runs, strict=True) if self.runs else ((), ())
        is_table = sum(lengths) <= SYMBOLS and 0 not in lengths and any(weights)
        if not is_table or max(weights) > MAX_WEIGHT:
            raise DeltaError("a table of the delta is not one")

    @cached_property
    def weights(self) -> Wide:
        """Weight of each symbol, shape (256,)."""
        every = [weight for length, weight in self.runs for _ in range(length)]
        return np.array(every + [0] * (SYMBOLS - len(every)), np.int64)

    @cached_property
    def frequencies(self) -> Wide:
        """Slots of each symbol, shape (256,); they add up to `SCALE`.

        Whole numbers throughout, so that every machine finds the same.
        """
        weights = self.weights
        slots = np.where(weights > 0, np.maximum(1, weights * SCALE // weights.sum()), 0)
        missing = SCALE - int(slots.sum())
        while missing:  # the most likely symbol pays, and never with its last slot
            largest = int(slots.argmax())
            change = max(missing, 1 - int(slots[largest]))
            slots[largest] += change
            missing -= change
        return slots

    @cached_property
    def starts(self) -> Wide:
        """First slot of each symbol, shape (256,)."""
        return np.cumsum(self.frequencies) - self.frequencies

    @cached_property
    def lookup(self) -> tuple[Symbols, Wide, Wide]:
        """By slot, shape (SCALE,) each: its symbol, that symbol's slots, and its place in them."""
        symbols = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), self.frequencies)
        return (
            symbols,
            self.frequencies[symbols],
            np.arange(SCALE, dtype=np.int64) - self.starts[symbols],
        )

    @cached_property
    def bits(self) -> npt.NDArray[np.float64]:
        """What each symbol costs, in bits, shape (256,); infinite where it does not occur."""
        with np.errstate(divide="ignore"):
            return BITS - np.log2(self.frequencies.astype(np.float64))


def encode(blocks: Sequence[tuple[Symbols, Table]], lanes: int) -> bytes:
    """Return the stream of some blocks: the lanes' states, then 16-bit words, little-endian.

    Args:
        blocks: Symbols and the table they are coded with; each occurs in its table.
        lanes: How many symbols are decoded at once, in [1, `MAX_LANES`].
    """
    state = np.full(lanes, LOW, np.int64)
    words: list[npt.NDArray[np.uint16]] = []
    for symbols, table in reversed(blocks):
        frequencies, starts = table.frequencies[symbols], table.starts[symbols]
        for begin in reversed(range(0, len(symbols), lanes)):
            step = slice(begin, begin + lanes)
            frequency, x = frequencies[step], state[: len(symbols[step])]
            is_full = x >= frequency << (32 - BITS)
            words.append((x[is_full] & 0xFFFF).astype("<u2"))
            x[is_full] >>= 16
            quotient, rest = np.divmod(x, frequency)
            x[:] = (quotient << BITS) + rest + starts[step]
    return state.astype("<u4").tobytes() + b"".join(one.tobytes() for one in reversed(words))


class Decoder:
    """Takes block after block out of a stream."""

    def __init__(self, stream: memoryview, lanes: int) -> None:
        """Begin.

        Raises:
            DeltaError: The stream is too short, or not of whole words.
        """
        if not 1 <= lanes <= MAX_LANES or len(stream) < 4 * lanes or len(stream) % 2:
            raise DeltaError(f"{len(stream)} bytes are no coded stream of {lanes} lanes")
        self._state = np.frombuffer(stream[: 4 * lanes], "<u4").astype(np.int64)
        self._words = np.frombuffer(stream[4 * lanes :], "<u2")
        self._at = 0
        self._lanes = lanes
        if (self._state < LOW).any():
            raise DeltaError("the coded stream does not begin with the states of its lanes")

    def take(self, count: int, table: Table) -> Symbols:
        """Return the next block, shape (count,).

        Raises:
            DeltaError: The stream has ended.
        """
        symbols, frequencies, places = table.lookup
        found = np.empty(count, np.uint16)
        for begin in range(0, count, self._lanes):
            part = found[begin : begin + self._lanes]
            x = self._state[: len(part)]
            slots = x & (SCALE - 1)
            part[:] = slots
            x >>= BITS
            x *= frequencies.take(slots)
            x += places.take(slots)
            self._refill(x)
        return symbols.take(found)

    def finish(self) -> None:
        """Check that the stream ends here.

        Raises:
            DeltaError: Something is left, or what was decoded is not what was coded.
        """
        if self._at != len(self._words) or (self._state != LOW).any():
            raise DeltaError("the coded stream does not end where it should")

    def _refill(self, x: Wide) -> None:
        """Give the states that fell below `LOW` their next words, in the order of the lanes."""
        low = (x < LOW).nonzero()[0]
        if not low.size:
            return
        words = self._words[self._at : self._at + low.size]
        if words.size < low.size:
            raise DeltaError("the coded stream ends too early")
        self._at += low.size
        x[low] = (x[low] << 16) | words
