"""What a round is asked to do and what came of it, whatever protects its updates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Layout, Update, Vector
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import CombinationError
from wildflower.strategies.fixed_point import CLIPPED, Encoding
from wildflower.strategies.secagg.graph import CURIOUS, Security
from wildflower.strategies.trip import Trips

ROTATION: Final = 16  # bytes

LOCAL_TAIL: Final = 8.0
"""Deviations of a device's own noise that are let through: beyond lies one element in 10**15."""


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """What a round is to do.

    Attributes:
        training: Id of the training.
        number: Number of the round in the training, from 1.
        layout: Which part of the vector is which array.
        vector: The model to start from, shape (layout.size,).
        config: What the devices' app is told, beside the model.
        statistics: Names of the sums that are asked for; see `round_messages`.
        clip: Largest absolute change of one parameter that enters the sum.
        max_weight: Largest weight of one device.
        bits: Width of the residues of a protected sum, 16 or 32.
        security: What a secure round withstands.
        rule: How devices bound their updates; None for no differential privacy.
        noise: Noise multiplier of the noise that devices add inside a protected sum; 0 for none.
        timeout_s: How long the round may take, in seconds.
        min_clients: Fewest devices in the sum.
        poll_s: Seconds between two looks for answers.
    """

    training: str
    number: int
    layout: Layout
    vector: Vector = field(repr=False)
    config: Mapping[str, float | int | str]
    statistics: tuple[str, ...]
    clip: float
    max_weight: float
    timeout_s: float
    min_clients: int
    poll_s: float = 0.1
    bits: int = 32
    security: Security = CURIOUS
    rule: ClientRule | None = None
    noise: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics that leave a device: under a privacy rule, the rule's."""
        return self.statistics if self.rule is None else tuple(n for n, _ in self.rule.statistics)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What came of a round.

    Attributes:
        total: The sum.
        survivors: Node ids whose updates are in it, sorted.
        refusals: Node id to why it is not: refused, gone, too late.
        stages: Seconds that each stage took.
        encoding: How the updates became residues; None where they did not.
    """

    total: Sum
    survivors: tuple[int, ...]
    refusals: Mapping[int, str]
    stages: Mapping[str, float]
    encoding: SumEncoding | None = None


def refuse_noise(request: RoundRequest, why: str) -> None:
    """Refuse noise that is made in parts, where the parts would not come together.

    Raises:
        CombinationError: The request asks for it.
    """
    if request.noise:
        raise CombinationError(
            f"noise = {request.noise:g} is made by all devices of a cohort together: {why}",
            hint="Use secagg or one-shot, or local noise.",
        )


def encoding_of(
    request: RoundRequest, clients: int, rotation: bytes, *, evaluate_only: bool
) -> SumEncoding:
    """Return how the updates of a protected round become residues.

    Args:
        request: What the round is to do.
        clients: Upper bound of the cohort's size.
        rotation: 16 random bytes, new in every round; no secret. Noise is spread by them.
        evaluate_only: Only statistics are added up.

    Raises:
        CapacityError: The cohort's sums do not fit into the residues.
    """
    size, rule = 0 if evaluate_only else request.layout.size, request.rule
    if rule is None:
        return Encoding.for_cohort(
            size=size,
            clip=request.clip,
            max_weight=request.max_weight,
            clients=clients,
            statistics=request.statistics,
            bits=request.bits,
        )
    if request.noise:
        return SkellamEncoding.for_cohort(
            rule.contribution(size),
            noise_multiplier=request.noise,
            clients=clients,
            min_cohort=min(request.min_clients, clients),
            rotation=rotation,
            bits=request.bits,
        )
    clip, largest = _reach(rule, size)
    return Encoding.for_cohort(
        size=size,
        clip=clip,
        max_weight=1.0,
        clients=clients,
        statistics=request.names,
        largest_statistic=largest,
        bits=request.bits,
    )


def _reach(rule: ClientRule, size: int) -> tuple[float, float]:
    """Return the largest element of a vector and the largest statistic that a device may send.

    A device that adds all of its noise itself sends more than it learned; to cut that noise off
    would cost no privacy, and bias every mean.
    """
    contribution = rule.contribution(size)
    deviation = LOCAL_TAIL * rule.local_noise * contribution.radius
    widths = deviation / contribution.amplitude
    largest = [
        max(abs(each.low), abs(each.high)) + widths * each.half for _, each in rule.statistics
    ]
    return rule.norm + deviation, max(largest, default=1.0)


def model_of(request: RoundRequest) -> RecordDict:
    """Return what a device gets to train; it is one object for the whole cohort."""
    config = {
        **request.config,
        "training": request.training,
        "server-round": request.number,  # the name that Flower's own strategies use
    }
    if request.rule is not None:
        config |= request.rule.to_config()
    return wire.model_content(request.vector, request.layout, config, request.names)


def bounded_by(update: Update, request: RoundRequest, *, evaluate_only: bool) -> Update:
    """Return the update within the bounds that a secure round's encoding would force on it."""
    if request.rule is not None:
        bounded = _held_to(request.rule, update)
        return replace(bounded, weight=0.0) if evaluate_only else bounded
    vector = np.clip(update.vector, -request.clip, request.clip)
    clipped = float(np.count_nonzero(vector != update.vector))
    weight = 0.0 if evaluate_only else min(update.weight, request.max_weight)
    return Update(vector, weight, {**update.statistics, CLIPPED: clipped})


def _held_to(rule: ClientRule, update: Update) -> Update:
    """Return the update within a rule; a device's own word is not enough."""
    size = update.vector.size
    if not rule.local_noise:
        return rule.contribution(size).clip(update)
    clip, largest = _reach(rule, size)
    statistics = {n: min(max(v, -largest), largest) for n, v in update.statistics.items()}
    return Update(np.clip(update.vector, -clip, clip), 1.0, statistics)


def trips_of(
    grid: Grid,
    request: RoundRequest,
    is_gone: Callable[[int], bool],
    on_stage: Callable[[str], None],
) -> Trips:
    """Return the trips of a round, none made yet."""
    group = f"{request.training}/{request.number}"
    return Trips(grid, group, request.min_clients, is_gone, request.poll_s, on_stage)
