"""Federated averaging: the weighted mean of the updates is added to the model.

    model <- model + sum(weight * update) / sum(weight)

Sums are float64, because float32 loses a client's last digits in a cohort of a thousand; the model
stays float32, as clients train it.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update, Vector
from wildflower.strategies.errors import LayoutError, RoundAbortedError

_HEADER: Final = struct.Struct("<8sIQ")
_MAGIC: Final = b"WFfedav1"


@dataclass(frozen=True, slots=True, eq=False)
class FedAvgState:
    """The global model's vector, shape (n,), and the number of rounds that made it."""

    vector: Vector = field(repr=False)
    rounds: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FedAvgState):
            return NotImplemented
        return self.rounds == other.rounds and np.array_equal(self.vector, other.vector)

    __hash__ = None  # type: ignore[assignment]  # arrays have none


class FedAvg:
    """Federated averaging, an `Algorithm`; it holds no state of its own.

    Example:
        >>> rule = FedAvg()
        >>> total = rule.add(rule.zero(1), Update(np.ones(1, np.float32), 3.0, {"loss": 0.5}))
        >>> total = rule.add(total, Update(np.zeros(1, np.float32), 1.0, {"loss": 0.25}))
        >>> state, metrics = rule.apply(rule.init(np.ones(1, np.float32)), total)
        >>> rule.model(state).tolist(), metrics["clients"]
        ([1.75], 2.0)
    """

    needs_individual_updates: bool = False

    def init(self, vector: Vector) -> FedAvgState:
        """Return the state before the first round."""
        return FedAvgState(np.asarray(vector, np.float32).copy(), 0)

    def zero(self, size: int) -> Sum:
        """Return the empty sum for models of `size` elements."""
        return Sum(np.zeros(size, np.float64), 0.0, {}, 0)

    def add(self, total: Sum, update: Update) -> Sum:
        """Return `total` with one more update in it.

        Raises:
            LayoutError: The update has another size.
        """
        weighted = update.vector.astype(np.float64) * update.weight
        return self.merge(total, Sum(weighted, update.weight, update.statistics, 1))

    def merge(self, left: Sum, right: Sum) -> Sum:
        """Return the sum of two disjoint cohorts.

        Raises:
            LayoutError: They are of different sizes.
        """
        _same_size(left.vector.shape, right.vector.shape)
        statistics = {
            name: left.statistics.get(name, 0.0) + right.statistics.get(name, 0.0)
            for name in {**left.statistics, **right.statistics}
        }
        return Sum(
            left.vector + right.vector,
            left.weight + right.weight,
            statistics,
            left.clients + right.clients,
        )

    def apply(self, state: FedAvgState, total: Sum) -> tuple[FedAvgState, Mapping[str, float]]:
        """Return the next state, and metrics: clients, weight and the L2 norm of the step.

        Raises:
            RoundAbortedError: The sum is empty, or its weight is not above 0.
            LayoutError: The sum is of another model.
        """
        if total.clients < 1 or not (math.isfinite(total.weight) and total.weight > 0):
            raise RoundAbortedError(
                f"{total.clients} updates of weight {total.weight:g} make no mean",
                hint="Every update was refused or lost; look at the devices' refusals.",
            )
        _same_size(state.vector.shape, total.vector.shape)
        mean = total.vector / total.weight
        after = FedAvgState((state.vector + mean).astype(np.float32), state.rounds + 1)
        metrics = {
            "clients": float(total.clients),
            "weight": total.weight,
            "step_norm": float(np.linalg.norm(mean)),
        }
        return after, metrics

    def model(self, state: FedAvgState) -> Vector:
        """Return the global model's vector."""
        return state.vector

    def local_rule(self) -> Mapping[str, float]:
        """Clients train as they are told: there is no rule."""
        return {}

    def to_bytes(self, state: FedAvgState) -> bytes:
        """Return the stored form: magic, rounds, size, then little-endian float32."""
        header = _HEADER.pack(_MAGIC, state.rounds, state.vector.size)
        return header + state.vector.astype("<f4", copy=False).tobytes()

    def from_bytes(self, data: bytes) -> FedAvgState:
        """Return the state that `to_bytes` stored.

        Raises:
            LayoutError: Not a stored state of federated averaging.
        """
        if len(data) < _HEADER.size:
            raise LayoutError(f"not a state of FedAvg: {len(data)} bytes")
        magic, rounds, size = _HEADER.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEADER.size + 4 * size:
            raise LayoutError(f"not a state of FedAvg: begins with {magic!r}, {len(data)} bytes")
        vector = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32)
        return FedAvgState(vector, rounds)


def _same_size(expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if expected != found:
        raise LayoutError(f"expected a vector of shape {expected}, found {found}")
