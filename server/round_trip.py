"""Which protocol a round speaks: one function for each protection that a training may ask for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.trips import plain_round, secure_round

if TYPE_CHECKING:
    from flwr.serverapp import Grid


@dataclass(frozen=True, slots=True)
class Parties:
    """Whom the server's rounds rely on.

    Attributes:
        ca_pem: The enrolment CA whose devices may take part, PEM.
        noise_key: 32 secret bytes, from which noise comes that lasts for a whole training.
    """

    ca_pem: bytes
    noise_key: bytes = field(default=bytes(32), repr=False)


@dataclass(frozen=True, slots=True)
class Trip:
    """One round to be made.

    Attributes:
        grid: Reaches the nodes.
        nodes: Node ids of the cohort.
        request: What to do.
        is_gone: Tells whether a node lost its connection since the round began.
        on_stage: Is told the name of each stage as it begins.
        evaluate_only: The devices do not train; only statistics are added up.
    """

    grid: "Grid"
    nodes: Sequence[int]
    request: RoundRequest = field(repr=False)
    is_gone: Callable[[int], bool]
    on_stage: Callable[[str], None]
    evaluate_only: bool


def go(protection: str, trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    """Make a round.

    Args:
        protection: One of `PROTOCOLS`.
        trip: The round.
        parties: Whom it relies on.
        entropy: 32 secret random bytes, for this call only.

    Raises:
        RoundAbortedError: Fewer devices than the quorum are left, or the sum cannot be opened.
        LinkError: The grid lost its SuperLink.
    """
    return PROTOCOLS[protection](trip, parties, entropy)


def _plain(trip: Trip, _: Parties, __: bytes) -> RoundResult:
    return plain_round(
        trip.grid,
        trip.nodes,
        trip.request,
        is_gone=trip.is_gone,
        algorithm=FedAvg(),
        evaluate_only=trip.evaluate_only,
        on_stage=trip.on_stage,
    )


def _secagg(trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    return secure_round(
        trip.grid,
        trip.nodes,
        trip.request,
        is_gone=trip.is_gone,
        entropy=entropy,
        ca_pem=parties.ca_pem,
        evaluate_only=trip.evaluate_only,
        on_stage=trip.on_stage,
    )


PROTOCOLS: Final[Mapping[str, Callable[[Trip, Parties, bytes], RoundResult]]] = {
    "plain": _plain,
    "secagg": _secagg,
}
"""By the training's setting "protection"."""
