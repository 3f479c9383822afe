"""Protected sums around any Flower strategy that averages.

    strategy = SecAggPlus(FedAdam(fraction_train=0.2), ca_pem=ca, terms=Terms(clip=0.5))
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=10)

    SecAggPlus      masks that cancel; four trips                    `trips.secure_round`
    SecAggHelper    masks that helpers take off; one trip            `one_shot_round`
    GroupedSecAgg   secure sums of groups, and a robust rule         `grouped_round`
    HomomorphicAvg  ciphertexts that a key holder opens; one trip    `he_round`

The inner strategy samples nodes, configures rounds and makes the step, as ever; it sees one reply,
which holds the weighted mean (`flower_grid`). What would not be content with that is refused when
it is wrapped (`flower_inner`). The devices run their ClientApp behind the mod of
`wildflower.strategies.mod`, which the agent puts there.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from wildflower.strategies.errors import CombinationError
from wildflower.strategies.flower_grid import Presence, SecureGrid, Terms
from wildflower.strategies.flower_inner import check_inner
from wildflower.strategies.grouped_round import grouped_round
from wildflower.strategies.he_round import KeyHolder, he_round
from wildflower.strategies.one_shot_round import HelperLink, one_shot_round
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.grouped import Grouping, Rule
from wildflower.strategies.trips import secure_round

log = logging.getLogger(__name__)

DEFAULTS: Final = Terms()

RULE_OF: Final = {"fedmedian": Rule.MEDIAN, "trimmed-mean": Rule.TRIMMED_MEAN}
"""The rule over groups that each robust algorithm stands for."""


class Protected(Strategy):
    """A Flower strategy whose server learns sums and nothing else.

    It must be the outermost strategy: `start` gives the inner one a grid that knows only protected
    rounds. A round that has to be aborted leaves the model as it was, as a round without replies
    does in Flower; the log says why.
    """

    protection: ClassVar[str]
    """Name of its option in `wildflower.strategies.options`."""

    protocol: ClassVar[Callable[..., RoundResult]]
    """Runs one round; see `trips.secure_round`, whose arguments all of them take."""

    def __init__(
        self,
        inner: Strategy,
        *,
        ca_pem: bytes,
        terms: Terms = DEFAULTS,
        averages: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Wrap a strategy.

        Args:
            inner: Samples nodes and makes the step; an averaging strategy.
            ca_pem: The enrolment CA whose devices may take part, PEM.
            terms: What all rounds have in common.
            averages: States that the inner strategy's step is a function of the mean alone; for
                classes that are not Flower's.
            entropy: Returns so many secret random bytes.

        Raises:
            CombinationError: The inner strategy does more than average.
        """
        self.algorithm = check_inner(inner, self.protection, averages=averages)
        self.inner, self.terms = inner, terms
        self._entropy = entropy
        self._parties: dict[str, Any] = {"ca_pem": ca_pem}
        """Whom each round relies on, by the protocol's arguments."""

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
            CombinationError: The inner strategy asks for something that is no protected round.
            LinkError: The grid lost its SuperLink.
        """
        self.summary()
        is_gone = self.terms.is_gone or Presence(grid).is_gone

        def run_round(
            nodes: Sequence[int], request: RoundRequest, *, evaluate_only: bool
        ) -> RoundResult:
            return type(self).protocol(
                grid,
                nodes,
                request,
                is_gone=is_gone,
                entropy=self._entropy(32),
                evaluate_only=evaluate_only,
                **self._parties,
            )

        training = f"flower-{self._entropy(8).hex()}"
        return self.inner.start(
            SecureGrid(grid, training, self.terms, run_round),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )

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
        terms = self.terms
        log.info(
            "protected rounds",
            extra={
                "protection": self.protection,
                "inner": type(self.inner).__name__,
                "clip": terms.clip,
                "bits": terms.bits,
                "min_cohort": terms.min_cohort,
            },
        )


class SecAggPlus(Protected):
    """Secure aggregation: masks that cancel in the sum, signed by the devices' identities."""

    protection = "secagg"
    protocol = staticmethod(secure_round)


class SecAggHelper(Protected):
    """One-shot secure aggregation: helpers, of which one must be honest, take the masks off."""

    protection = "one-shot"
    protocol = staticmethod(one_shot_round)

    def __init__(
        self,
        inner: Strategy,
        *,
        ca_pem: bytes,
        helpers: Sequence[HelperLink],
        terms: Terms = DEFAULTS,
        averages: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Wrap a strategy; `helpers` are those that the devices' policies pin, all of them."""
        super().__init__(inner, ca_pem=ca_pem, terms=terms, averages=averages, entropy=entropy)
        self._parties["helpers"] = tuple(helpers)


class GroupedSecAgg(Protected):
    """Secure aggregation inside of random groups, and a robust rule over the groups' means.

    The server learns the sum of each group. The rule is that of the grouping, whatever step the
    inner strategy makes of what it finds; around `FedMedian` or `FedTrimmedAvg` it must be theirs.
    """

    protection = "grouped"
    protocol = staticmethod(grouped_round)

    def __init__(
        self,
        inner: Strategy,
        *,
        ca_pem: bytes,
        grouping: Grouping,
        terms: Terms = DEFAULTS,
        averages: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Wrap a strategy; `grouping` says how many groups, and how their means are compared."""
        super().__init__(inner, ca_pem=ca_pem, terms=terms, averages=averages, entropy=entropy)
        if RULE_OF.get(self.algorithm, grouping.rule) is not grouping.rule:
            raise CombinationError(
                f"{self.algorithm} over groups whose means are compared by {grouping.rule}",
                hint=f"Use Grouping(rule=Rule.{RULE_OF[self.algorithm].name}).",
            )
        self._parties["grouping"] = grouping


class HomomorphicAvg(Protected):
    """Homomorphic aggregation: a key holder, who is not the server, opens the sum."""

    protection = "he"
    protocol = staticmethod(he_round)

    def __init__(
        self,
        inner: Strategy,
        *,
        ca_pem: bytes,
        key_holder: KeyHolder,
        terms: Terms = DEFAULTS,
        averages: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Wrap a strategy; `key_holder` is the one that the devices' policies pin."""
        super().__init__(inner, ca_pem=ca_pem, terms=terms, averages=averages, entropy=entropy)
        self._parties["key_holder"] = key_holder


def _require_secure(grid: Grid) -> None:
    if not isinstance(grid, SecureGrid):
        raise CombinationError(
            "a protected strategy is inside of another one, which would send in plain",
            hint="Make the protected strategy the outermost one, and call its start().",
        )
