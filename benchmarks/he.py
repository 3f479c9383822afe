"""Homomorphic aggregation beside CKKS with NVFlare-like parameters: `python -m benchmarks.he`.

Both sides begin with a float32 update and end with the bytes that leave a device: ours weighs and
quantises, packs two residues to a slot, encrypts (BFV, public key) and serialises; CKKS 8192 with
primes of 60, 40 and 60 bits encrypts and serialises. CKKS is measured in both of its modes and
counts with the faster one. The sides take turns in every pass; ratios are taken within a pass, and
medians of them are told with their quartiles. Times are CPU times of one thread.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks._outcome import tell
from wildflower.strategies.arrays import Update
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.he import ckks
from wildflower.strategies.he.bfv import KeyPair
from wildflower.strategies.he.packing import MAX_ADDENDS, PER_CHUNK

CLIENTS: Final = 100
OURS, SYMMETRIC, ASYMMETRIC = "BFV, packed", "CKKS 8192, symmetric", "CKKS 8192, asymmetric"


Encrypt = Callable[[np.ndarray], tuple[bytes, ...]]
"""From a float32 vector to the bytes that leave a device."""


@dataclass
class Side:
    """One way to encrypt an update, and what it took.

    Attributes:
        encrypt: The way.
        seconds: CPU time of each pass.
        made: What the last pass made.
    """

    encrypt: Encrypt
    seconds: list[float] = field(default_factory=list)
    made: tuple[bytes, ...] = ()

    def measure(self, vector: np.ndarray) -> None:
        """Encrypt once."""
        start = time.process_time()
        self.made = self.encrypt(vector)
        self.seconds.append(time.process_time() - start)

    @property
    def sent(self) -> int:
        """Bytes of an update."""
        return sum(map(len, self.made))

    @property
    def median_s(self) -> float:
        """Median of the passes."""
        return statistics.median(self.seconds)


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200,000 parameters, 3 passes")
    options = parser.parse_args()
    size, passes = (200_000, 3) if options.quick else (1_000_000, 9)
    pair, encoding = KeyPair.make(), _encoding(size)
    sides = {
        OURS: Side(_ours(pair, encoding)),
        SYMMETRIC: Side(_ckks(symmetric=True).encrypt),
        ASYMMETRIC: Side(_ckks(symmetric=False).encrypt),
    }
    _take_turns(sides, size, passes)
    add_s, decrypt_s = _server(pair, encoding, sides[OURS].made)
    best = min((SYMMETRIC, ASYMMETRIC), key=lambda name: sides[name].median_s)
    pairs = zip(sides[best].seconds, sides[OURS].seconds, strict=True)
    low, speedup, high = statistics.quantiles([theirs / own for theirs, own in pairs], n=4)
    exact, scale = _exact_addends(pair), 1e9 / size  # seconds to milliseconds for a million
    rows = [
        (name, f"{_spread(side.seconds, scale)} ms/1M  {side.sent / size:6.2f} B/param")
        for name, side in sides.items()
    ]
    rows += [
        ("add one update", f"{add_s * scale:7.1f} ms/1M"),
        ("decrypt the sum", f"{decrypt_s * scale:7.1f} ms/1M"),
        (f"speedup over {best}", f"{speedup:7.2f} ({low:.2f} to {high:.2f}), {passes} passes"),
        ("addends, all extremes, exact", f"{exact:4d}"),
    ]
    figures = {
        "bytes_per_param": sides[OURS].sent / size,
        "enc_speedup_vs_ckks_8192": speedup,
        "enc_ms_per_1m": sides[OURS].median_s * scale,
        "add_ms_per_1m": add_s * scale,
        "decrypt_ms_per_1m": decrypt_s * scale,
        "ckks_bytes_over_ours": sides[best].sent / sides[OURS].sent,
        "exact_addends": exact,
    }
    tell("he", {name: round(value, 3) for name, value in figures.items()}, rows)


def _encoding(size: int) -> Encoding:
    return Encoding.for_cohort(
        size=size,
        clip=1.0,
        max_weight=1000.0,
        clients=CLIENTS,
        statistics=("examples", "loss"),
        bits=16,
    )


def _ours(pair: KeyPair, encoding: Encoding) -> Encrypt:
    def encrypt(values: np.ndarray) -> tuple[bytes, ...]:
        update = Update(values, 10.0, {"examples": 10.0, "loss": 1.0})
        return pair.public.encrypt(encoding.encode(update, os.urandom(32)))

    return encrypt


def _take_turns(sides: Mapping[str, Side], size: int, passes: int) -> None:
    """Have every side encrypt once a pass, in one order and in the other; the first warms up."""
    vector = np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)
    for number in range(passes + 1):
        for side in list(sides.values())[:: 1 if number % 2 else -1]:
            side.measure(vector)
    for side in sides.values():
        del side.seconds[0]


def _ckks(*, symmetric: bool) -> ckks.CkksKeys:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ckks.ApproximateWarning)
        return ckks.make_keys(i_understand=ckks.I_UNDERSTAND, symmetric=symmetric)


def _server(pair: KeyPair, encoding: Encoding, made: tuple[bytes, ...]) -> tuple[float, float]:
    """Return the seconds to add one update, and to decrypt the sum."""
    total, seconds = pair.public.zero(encoding.length), []
    for _ in range(3):
        start = time.process_time()
        total.add(made)
        seconds.append(time.process_time() - start)
    start = time.process_time()
    pair.decrypt(total.ciphertexts(), encoding.length, 3)
    return statistics.median(seconds), time.process_time() - start


def _exact_addends(pair: KeyPair) -> int:
    """Return how many of the largest residues add up exactly, 0 if the most do not."""
    extreme = np.full(PER_CHUNK, 0xFFFF, np.uint16)
    total = pair.public.zero(extreme.size)
    for _ in range(MAX_ADDENDS):
        total.add(pair.public.encrypt(extreme))
    found = pair.decrypt(total.ciphertexts(), extreme.size, MAX_ADDENDS)
    return MAX_ADDENDS if (found == (0xFFFF * MAX_ADDENDS) % 2**16).all() else 0


def _spread(seconds: Sequence[float], scale: float) -> str:
    low, middle, high = (each * scale for each in statistics.quantiles(seconds, n=4))
    return f"{middle:7.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
