"""The shape of an aggregation algorithm: pure functions over explicit state.

A round is a `Sum`: it starts at `zero`, each update is `add`ed, sums are `merge`d in any order,
and `apply` turns the state and the sum into the next state. Streaming, hierarchical, per-worker
and secure sums are then the same thing: SecAgg computes the very fields of a `Sum`.

After fedjax, `core/federated_algorithm.py`: explicit state, metrics as values that merge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from wildflower.strategies.arrays import Update, Vector

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Sum:
    """What a cohort added up to.

    Attributes:
        vector: Sum of weight times update, shape (n,), float64.
        weight: Sum of the weights.
        statistics: Sums of the named statistics.
        clients: Number of updates in it.
    """

    vector: npt.NDArray[np.float64] = field(repr=False)
    weight: float
    statistics: Mapping[str, float]
    clients: int


class Algorithm(Protocol[State]):
    """How updates become the next model.

    An implementation keeps these laws (up to floating-point rounding): `merge` is associative and
    commutative with `zero` as identity, `add(total, u)` is `merge(total, add(zero, u))`, and the
    order in which updates arrive does not matter. It holds no state of its own.
    """

    needs_individual_updates: bool
    """True for rules that look at single updates (Krum, median): no secure sum serves them."""

    def init(self, vector: Vector) -> State:
        """Return the state before the first round, from the initial model's vector."""
        ...

    def zero(self, size: int) -> Sum:
        """Return the empty sum for models of `size` elements."""
        ...

    def add(self, total: Sum, update: Update) -> Sum:
        """Return `total` with one more update in it."""
        ...

    def merge(self, left: Sum, right: Sum) -> Sum:
        """Return the sum of two disjoint cohorts."""
        ...

    def apply(self, state: State, total: Sum) -> tuple[State, Mapping[str, float]]:
        """Return the next state, and metrics of the step.

        Raises:
            RoundAbortedError: The sum is empty or its weight is 0.
        """
        ...

    def model(self, state: State) -> Vector:
        """Return the global model's vector, shape (n,)."""
        ...

    def local_rule(self) -> Mapping[str, float]:
        """Return what the client half needs to know, such as {"proximal_mu": 0.01}."""
        ...

    def to_bytes(self, state: State) -> bytes:
        """Return the state's stored form; `from_bytes(to_bytes(state)) == state`."""
        ...

    def from_bytes(self, data: bytes) -> State:
        """Return the state that `to_bytes` stored.

        Raises:
            LayoutError: Not a stored state of this algorithm.
        """
        ...
