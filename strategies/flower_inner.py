"""Which of Flower's strategies may stand inside of which protection.

A strategy that looks at single replies (Krum, a median, a loss for each device, a noise sized by
their number) would not fail on one reply that holds the mean, it would lie; so it is refused when
it is wrapped. What Flower ships is known by name, and a class of your own by the Flower class that
it is made from. If yours aggregates in a way of its own, say `averages=True` to state that the
result is a function of the mean alone.

Source of the strategies' contract: `flwr.serverapp.strategy.Strategy`, flwr 1.41.
"""

from collections.abc import Callable
from typing import Final

from flwr.serverapp.strategy import Strategy

from wildflower.strategies import round_messages as wire
from wildflower.strategies.combine import require
from wildflower.strategies.errors import CombinationError

OPTION_OF: Final = {
    "FedAvg": "fedavg",
    "FedProx": "fedprox",
    "FedAvgM": "fedavgm",
    "FedAdam": "fedadam",
    "FedYogi": "fedyogi",
    "FedAdagrad": "fedadagrad",
    "FedMedian": "fedmedian",
    "FedTrimmedAvg": "trimmed-mean",
    "Krum": "krum",
    "MultiKrum": "multikrum",
    "Bulyan": "bulyan",
    "QFedAvg": "q-fedavg",
    "FedXgbBagging": "fedxgb-bagging",
    "FedXgbCyclic": "fedxgb-cyclic",
}
"""Which option each of Flower's strategies is."""

COUNTS_REPLIES: Final = {
    "DifferentialPrivacyServerSideFixedClipping": "it clips each device's update on the server",
    "DifferentialPrivacyServerSideAdaptiveClipping": "it clips each device's update on the server",
    "DifferentialPrivacyClientSideFixedClipping": "it sizes its noise by the number of replies",
    "DifferentialPrivacyClientSideAdaptiveClipping": "it sizes its noise by the number of replies",
}
"""Flower's wrappers that need every reply, and why."""

FLOWER: Final = "flwr.serverapp.strategy"


def check_inner(inner: Strategy, protection: str = "secagg", *, averages: bool = False) -> str:
    """Refuse a strategy that does more with its replies than the protection can serve.

    Args:
        inner: The strategy.
        protection: Name of the protection around it.
        averages: States that it only averages, for a class that is not Flower's.

    Returns:
        Name of the algorithm's option; "" for a class that is not Flower's.

    Raises:
        CombinationError: It looks at single replies, or nobody can tell.
    """
    own = _own_steps(inner)
    if own and not averages:
        raise CombinationError(
            f"{type(inner).__name__} has a way of its own to aggregate ({', '.join(own)}); nobody"
            " can tell whether it looks at single replies",
            hint="If it is a function of the mean alone, say averages=True.",
        )
    name = "" if own else next(c.__name__ for c in type(inner).__mro__ if _is_flowers(c))
    if name in COUNTS_REPLIES:
        raise CombinationError(
            f"{protection} with {name} is refused: {COUNTS_REPLIES[name]}, and a protected round"
            " shows it one sum",
            hint="Use central, or distributed, whose noise is made for secure sums.",
        )
    option = OPTION_OF[name] if name else ""
    if option:
        require(protection, option)
    weigher = getattr(inner, "weighted_by_key", wire.WEIGHT)
    if weigher != wire.WEIGHT:
        raise CombinationError(
            f"the strategy weighs by {weigher!r}, the devices by {wire.WEIGHT!r}",
            hint=f"Leave weighted_by_key at {wire.WEIGHT!r} and have the app report that.",
        )
    return option


def _own_steps(inner: Strategy) -> list[str]:
    """Return how a strategy aggregates otherwise than the Flower class it is made from."""
    methods = [
        name
        for name in ("aggregate_train", "aggregate_evaluate")
        if not _is_flowers(next(c for c in type(inner).__mro__ if name in vars(c)))
    ]
    functions = [
        name
        for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn")
        if not _is_flowers(getattr(inner, name, Strategy))
    ]
    return methods + functions


def _is_flowers(thing: type | Callable[..., object]) -> bool:
    return thing.__module__.startswith(FLOWER)
