"""What a one-shot session costs a device beside training and encoding: masks, seals, a name."""

import os
import statistics
import time
from dataclasses import dataclass

import numpy as np

from wildflower.simulation.helpers import SimulatedHelper
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.secagg import one_shot
from wildflower.strategies.secagg.one_shot_messages import OneShotParams

PARAMETERS = 1_000_000


@dataclass(frozen=True)
class OneShotCost:
    """Cost of one answer, of a million parameters.

    Attributes:
        client_ms: Median CPU time of the device's answer, in milliseconds, without encoding.
        spread_ms: Half the distance between the quartiles, in milliseconds.
        overhead_bytes: What is sent beside four (or two) bytes for each parameter.
    """

    client_ms: float
    spread_ms: float
    overhead_bytes: int


def measure_one_shot(
    *, helpers: int = 1, bits: int = 32, repeats: int = 30, clients: int = 100
) -> OneShotCost:
    """Answer `repeats` sessions and return what one costs."""
    ca = SimulatedCa()
    device = ca.enrol()
    cards = [SimulatedHelper(ca.certificate, os.urandom(32)).card for _ in range(helpers)]
    encoding = Encoding.for_cohort(
        size=PARAMETERS, clip=1.0, max_weight=100.0, clients=clients, bits=bits
    )
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2**bits, encoding.length, dtype=encoding.dtype)
    times, overhead = [], 0
    for _ in range(repeats + 1):
        cards.sort(key=lambda card: card.digest)
        params = OneShotParams(os.urandom(32), "benchmark", 1, encoding, tuple(cards))
        residues, entropy = plain.copy(), os.urandom(32)
        start = time.process_time()
        made = one_shot.make_answer(params, device, residues, smallest=3, entropy=entropy)
        times.append((time.process_time() - start) * 1e3)
        fields = made.answer.to_fields()
        sent = sum(len(value) for value in fields.values() if isinstance(value, bytes))
        overhead = sent - PARAMETERS * bits // 8
    low, median, high = statistics.quantiles(times[1:], n=4)
    return OneShotCost(median, (high - low) / 2, overhead)


def helper_client_ms_per_1m(*, quick: bool = False) -> float:
    """Return the figure of that name: one helper, 32-bit residues."""
    return measure_one_shot(repeats=10 if quick else 30).client_ms
