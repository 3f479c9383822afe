"""Secure aggregation around any Flower strategy that averages.

    strategy = SecAggPlus(FedAdam(fraction_train=0.2), ca_pem=ca, clip=0.5)
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=10)

The inner strategy samples nodes, configures rounds and makes the step, as ever; it sees one reply,
which holds the weighted mean. The devices run their ClientApp behind the mod of
`wildflower.strategies.mod`, which the agent puts there.

A strategy that looks at single replies (Krum, a median, a loss for each device, a noise sized by
their number) would not fail on one reply, it would lie; so it is refused when it is wrapped. What
Flower ships is known by name, and a class of your own by the Flower class that it is made from. If
yours aggregates in a way of its own, say `averages=True` to state that the result is a function of
the mean alone.

Source of the strategies' contract: `flwr.serverapp.strategy.Strategy`, flwr 1.41.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from wildflower.strategies import round_messages as wire
from wildflower.strategies.combine import require
from wildflower.strategies.errors import CombinationError
from wildflower.strategies.flower_grid import Presence, RunRound, SecureGrid, Terms
from wildflower.strategies.secagg.graph import SMALLEST, Security
from wildflower.strategies.trips import RoundRequest, RoundResult, secure_round

log = logging.getLogger(__name__)

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

CURIOUS: Final = Security()
"""What rounds withstand unless told otherwise: a tenth colludes, a tenth is lost."""

FLOWER: Final = "flwr.serverapp.strategy"


class SecAggPlus(Strategy):
    """A Flower strategy whose server learns sums and nothing else.

    It must be the outermost strategy: `start` gives the inner one a grid that knows only secure
    rounds. A round that has to be aborted leaves the model as it was, as a round without replies
    does in Flower; the log says why.
    """

    def __init__(  # noqa: PLR0913  settings by their names, as Flower's own strategies have them
        self,
        inner: Strategy,
        *,
        ca_pem: bytes,
        clip: float = 1.0,
        max_weight: float = 10_000.0,
        bits: int = 32,
        security: Security = CURIOUS,
        min_cohort: int = SMALLEST,
        train_metrics: Sequence[str] = (),
        evaluate_metrics: Sequence[str] = (),
        averages: bool = False,
        is_gone: Callable[[int], bool] | None = None,
        on_round: Callable[[int, str, RoundResult], None] = lambda *_: None,
        poll_s: float = 0.1,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Wrap a strategy.

        Args:
            inner: Samples nodes and makes the step; an averaging strategy.
            ca_pem: The enrolment CA whose devices may take part, PEM.
            clip: Largest absolute change of one parameter that enters the sum.
            max_weight: Largest weight of one device; heavier ones count as this.
            bits: Width of the residues: 32, or 16 for half the traffic.
            security: What the rounds withstand: colluding and lost devices, and what server.
            min_cohort: Fewest devices in a sum, at least 3.
            train_metrics: Metrics of training whose means are wanted, such as "train_loss".
            evaluate_metrics: The same of evaluation.
            averages: States that the inner strategy's step is a function of the mean alone; for
                classes that are not Flower's.
            is_gone: Tells whether a node lost its connection; by default, who is not listed by
                the grid is gone.
            on_round: Is told the number, the message type and the result of each round.
            poll_s: Seconds between two looks for answers.
            entropy: Returns so many secret random bytes.

        Raises:
            CombinationError: The inner strategy does more than average.
        """
        check_inner(inner, averages=averages)
        if min_cohort < SMALLEST:
            raise ValueError(f"min_cohort is {min_cohort}, allowed are {SMALLEST} and more")
        self.inner = inner
        self._ca_pem, self._is_gone, self._entropy = ca_pem, is_gone, entropy
        self.terms = Terms(
            training=f"flower-{entropy(8).hex()}",
            clip=clip,
            max_weight=max_weight,
            bits=bits,
            security=security,
            min_cohort=min_cohort,
            poll_s=poll_s,
            metrics={wire.TRAIN: tuple(train_metrics), wire.EVALUATE: tuple(evaluate_metrics)},
            on_round=on_round,
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Train; the arguments are those of `flwr.serverapp.strategy.Strategy.start`.

        Raises:
            CombinationError: The inner strategy asks for something that is no secure round.
            LinkError: The grid lost its SuperLink.
        """
        self.summary()
        return self.inner.start(
            SecureGrid(grid, self.terms, self._rounds_over(grid)),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )

    def _rounds_over(self, grid: Grid) -> RunRound:
        is_gone = self._is_gone or Presence(grid).is_gone

        def run_round(
            nodes: Sequence[int], request: RoundRequest, *, evaluate_only: bool
        ) -> RoundResult:
            return secure_round(
                grid,
                nodes,
                request,
                is_gone=is_gone,
                entropy=self._entropy(32),
                ca_pem=self._ca_pem,
                evaluate_only=evaluate_only,
            )

        return run_round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return what the inner strategy wants to send.

        Raises:
            CombinationError: It would be sent in plain.
        """
        _require_secure(grid)
        return self.inner.configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return what the inner strategy wants to send.

        Raises:
            CombinationError: It would be sent in plain.
        """
        _require_secure(grid)
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have the inner strategy make its step from the mean."""
        return self.inner.aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Have the inner strategy take the cohort's means."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log how rounds are protected."""
        log.info(
            "secure aggregation",
            extra={
                "inner": type(self.inner).__name__,
                "clip": self.terms.clip,
                "bits": self.terms.bits,
                "min_cohort": self.terms.min_cohort,
            },
        )


def check_inner(inner: Strategy, *, averages: bool = False) -> None:
    """Refuse a strategy that does more with its replies than average them.

    Args:
        inner: The strategy.
        averages: States that it only averages, for a class that is not Flower's.

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
            f"secagg with {name} is refused: {COUNTS_REPLIES[name]}, and a secure round shows it"
            " one sum",
            hint="Use central, or distributed, whose noise is made for secure sums.",
        )
    if name:
        require("secagg", OPTION_OF[name])
    weigher = getattr(inner, "weighted_by_key", wire.WEIGHT)
    if weigher != wire.WEIGHT:
        raise CombinationError(
            f"the strategy weighs by {weigher!r}, the devices by {wire.WEIGHT!r}",
            hint=f"Leave weighted_by_key at {wire.WEIGHT!r} and have the app report that.",
        )


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


def _require_secure(grid: Grid) -> None:
    if not isinstance(grid, SecureGrid):
        raise CombinationError(
            "SecAggPlus is inside of another strategy, which would send in plain",
            hint="Make SecAggPlus the outermost strategy, and call its start().",
        )
