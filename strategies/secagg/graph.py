"""Who is whose neighbour: a ring over the shuffled cohort, and how dense it must be.

Everyone sharing with everyone costs n masks a client. A random ring (Harary graph) of degree k, in
which a client shares with the k/2 before and behind it, is enough for two promises:

* secure: with probability 1 - 2**-40 nobody's neighbourhood holds as many corrupt clients as the
  threshold, and the honest survivors stay connected;
* correct: with probability 1 - 2**-20 everybody keeps at least threshold surviving neighbours.

A semi-malicious server may tell different clients different stories about who is alive. Then no
secret may yield enough shares of both kinds: twice the threshold exceeds the holders of a share
(neighbours and the client itself) plus the corrupt ones among them.

Cohorts up to `COMPLETE`, and those for which no ring is dense enough, get the complete graph, whose
promises hold by counting, and a majority as threshold.

Source: Bell et al., CCS 2020, section 3.4 and theorem 3.10. We deviate in that a client holds a
share of its own seed, which adds one holder.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

from wildflower.strategies.errors import SessionAbortedError

SECURITY: Final = 40  # bits: the cohort's secrets are exposed with probability below 2**-40
CORRECTNESS: Final = 20  # bits: an honest run fails with probability below 2**-20
COMPLETE: Final = 10  # clients up to which everyone is everyone's neighbour
SMALLEST: Final = 3  # clients; the sum of two tells each what the other one sent
_SLACK: Final = 1e-14  # so that 0.1 * 30 counts as 3


@unique
class Adversary(StrEnum):
    """What the server may do."""

    CURIOUS = "curious"
    SEMI_MALICIOUS = "semi-malicious"


@dataclass(frozen=True, slots=True)
class Security:
    """What a session withstands.

    Attributes:
        corrupt: Largest share of clients that collude with the server, in [0, 1).
        dropout: Largest share of clients that drop out, in [0, 1).
        adversary: What the server may do.
    """

    corrupt: float = 0.1
    dropout: float = 0.1
    adversary: Adversary = Adversary.CURIOUS


@dataclass(frozen=True, slots=True)
class Graph:
    """Degree (neighbours of a client) and threshold (of its share holders, itself included)."""

    degree: int
    threshold: int


CURIOUS: Final = Security()
"""What a session withstands unless more is asked of it."""


def plan_graph(clients: int, security: Security = CURIOUS) -> Graph:
    """Return the sparsest graph that keeps both promises.

    Args:
        clients: Size of the cohort.
        security: What it must withstand.

    Raises:
        SessionAbortedError: No graph keeps them for this cohort.
    """
    corrupt, dropout, adversary = security.corrupt, security.dropout, security.adversary
    if not 0 <= corrupt < 1 or not 0 <= dropout < 1:
        raise ValueError(f"shares lie in [0, 1): corrupt {corrupt}, dropout {dropout}")
    if clients < SMALLEST:
        raise SessionAbortedError(
            f"secure aggregation needs at least {SMALLEST} clients, found {clients}",
            hint="Wait for more devices, or train without it if their policies allow.",
        )
    bad = math.floor((corrupt + _SLACK) * clients)
    gone = math.floor((dropout + _SLACK) * clients)
    if clients > COMPLETE:
        for degree in range(2, clients - 1, 2):
            threshold = _ring_threshold(clients, degree, bad, gone, adversary)
            if threshold is not None:
                return Graph(degree, threshold)
    return _complete(clients, bad, gone, adversary)


def _complete(clients: int, bad: int, gone: int, adversary: Adversary) -> Graph:
    threshold = max(min(SMALLEST, clients), clients // 2 + 1, bad + 1)
    if adversary is Adversary.SEMI_MALICIOUS:
        threshold = max(threshold, (clients + bad) // 2 + 1)
    if threshold > clients - gone:
        raise SessionAbortedError(
            f"of {clients} clients {bad} may be corrupt and {gone} may drop out: {threshold} would"
            f" have to answer, {clients - gone} may be left",
            hint="Expect fewer dropouts or fewer corrupt clients, or wait for a larger cohort.",
        )
    return Graph(clients - 1, threshold)


def _ring_threshold(
    clients: int, degree: int, bad: int, gone: int, adversary: Adversary
) -> int | None:
    """Return the threshold for a ring of this degree, None if it is not dense enough."""
    if degree <= bad + gone and _log_disconnected(clients, degree, bad + gone) >= -(
        SECURITY + 1
    ) * math.log(2):
        return None
    corrupt = _smallest_exceeded(clients, degree, bad)
    surviving = _largest_reached(clients, degree, clients - gone)
    if adversary is Adversary.SEMI_MALICIOUS:
        corrupt = (degree + 1 + corrupt) // 2
    return max(corrupt + 1, SMALLEST) if surviving > max(corrupt, SMALLEST - 1) else None


def _log_disconnected(clients: int, degree: int, removed: int) -> float:
    """Return the log of a bound on P[the ring falls apart without `removed` clients]."""
    return (
        math.log(clients)
        + math.log(clients - degree - 1)
        - math.log(2)
        + math.lgamma(removed + 1)
        + math.lgamma(clients - degree + 1)
        - math.lgamma(clients + 1)
        - math.lgamma(removed - degree + 1)
    )


def _smallest_exceeded(clients: int, degree: int, bad: int) -> int:
    """Return the smallest t with P[more than t of the neighbours are corrupt] <= bound."""
    bound, count = 2.0 ** -(SECURITY + 1) / clients, degree
    tail = _hypergeometric(clients, bad, degree, count)
    while tail <= bound:
        count -= 1
        tail += _hypergeometric(clients, bad, degree, count)
    return count


def _largest_reached(clients: int, degree: int, good: int) -> int:
    """Return the largest t with P[fewer than t of the neighbours survive] <= bound."""
    bound, count = 2.0**-CORRECTNESS / clients, 0
    tail = _hypergeometric(clients, good, degree, count)
    while tail <= bound:
        count += 1
        tail += _hypergeometric(clients, good, degree, count)
    return count


def _hypergeometric(total: int, marked: int, drawn: int, count: int) -> float:
    """Return P[`count` of `drawn` are marked], without replacement."""
    if count > marked or drawn - count > total - marked:
        return 0.0
    return math.exp(
        _log_binomial(marked, count)
        + _log_binomial(total - marked, drawn - count)
        - _log_binomial(total, drawn)
    )


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def neighbours(
    devices: Iterable[str], degree: int, *, entropy: bytes
) -> dict[str, tuple[str, ...]]:
    """Return each device's neighbours, sorted: a ring over the devices in a secret order.

    Args:
        devices: Device ids.
        degree: Neighbours of each; with no more devices than that, everyone is a neighbour.
        entropy: 32 random bytes.
    """
    ring = sorted(
        set(devices), key=lambda device: hashlib.sha256(entropy + device.encode()).digest()
    )
    count = len(ring)
    if degree >= count - 1:
        return {device: tuple(sorted(set(ring) - {device})) for device in ring}
    steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    return {
        device: tuple(sorted(ring[(place + step) % count] for step in steps))
        for place, device in enumerate(ring)
    }
