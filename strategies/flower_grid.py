"""A Flower `Grid` through which nothing goes but protected rounds.

Flower's strategies send one message to each of some nodes and wait for the replies. Here that call
is a whole round (four trips, under secure aggregation), and its replies are ONE: a reply that
holds the weighted mean of what the devices trained, and the means of what they measured. To a
strategy that averages, that is the same.

    inner.configure_train -> messages --+
                                        +--> protected round --> mean
    inner.aggregate_train <- [reply]  <-+

What goes around the round (`push_messages`) is refused, and so is what cannot be one: nodes that
would get different models, records that the devices' mod would not hand to the app.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Layout
from wildflower.strategies.errors import CapacityError, CombinationError, RoundAbortedError
from wildflower.strategies.fixed_point import CLIPPED
from wildflower.strategies.flower_compat.messages import FlowerRun
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.graph import SMALLEST, Security

log = logging.getLogger(__name__)

ROUND: Final = "server-round"
"""Flower's name of the round's number, in the config that a strategy sends."""

HOUR_S: Final = 3600.0  # Flower's time for a round, in seconds

LOOK_S: Final = 1.0
"""Seconds for which an answer to "who is connected" is believed."""


class RunRound(Protocol):
    """Runs one round; such as `trips.secure_round` with its keys and entropy."""

    def __call__(
        self, nodes: Sequence[int], request: RoundRequest, *, evaluate_only: bool
    ) -> RoundResult:
        """Return what came of the round.

        Raises:
            RoundAbortedError: No sum came of it, and nothing was revealed.
        """
        ...


def _silent(number: int, kind: str, result: RoundResult) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a strategy's rounds have in common.

    Attributes:
        clip: Largest absolute change of one parameter that enters the sum.
        max_weight: Largest weight of one device; heavier ones count as this.
        bits: Width of the residues: 32, or 16 for half the traffic.
        security: What secure rounds withstand: colluding and lost devices, and what server.
        min_cohort: Fewest devices in a sum, at least 3.
        train_metrics: Metrics of training whose means are wanted, such as "train_loss".
        evaluate_metrics: The same of evaluation.
        is_gone: Tells whether a node lost its connection; by default, whom the grid does not list
            is gone.
        on_round: Is told the number, the message type and the result of each round.
        poll_s: Seconds between two looks for answers.
    """

    clip: float = 1.0
    max_weight: float = 10_000.0
    bits: int = 32
    security: Security = field(default_factory=Security)
    min_cohort: int = SMALLEST
    train_metrics: tuple[str, ...] = ()
    evaluate_metrics: tuple[str, ...] = ()
    is_gone: Callable[[int], bool] | None = None
    on_round: Callable[[int, str, RoundResult], None] = _silent
    poll_s: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a cohort in which a sum hides nobody."""
        if self.min_cohort < SMALLEST:
            raise ValueError(
                f"min_cohort is {self.min_cohort}, allowed are {SMALLEST} and more: in a sum of"
                " two, each knows the other"
            )


class SecureGrid(Grid):
    """The grid that an inner strategy gets; it has identity, and a round's number counts on."""

    def __init__(self, grid: Grid, training: str, terms: Terms, run_round: RunRound) -> None:
        """Wrap a grid.

        Args:
            grid: Reaches the nodes.
            training: Names the training, once in the fleet's life.
            terms: What all rounds have in common.
            run_round: Runs one round over the grid.
        """
        self._grid, self._training = grid, training
        self._terms, self._run_round = terms, run_round
        self._last = 0

    def set_run(self, run: FlowerRun) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are connected."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: what is pushed goes around the protected round.

        Raises:
            CombinationError: Always.
        """
        raise CombinationError(
            f"{len(list(messages))} messages would go to the devices outside of a protected round",
            hint="Use a strategy that sends with grid.send_and_receive, once for a round.",
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse, as `push_messages` does.

        Raises:
            CombinationError: Always.
        """
        raise CombinationError(
            f"{len(list(message_ids))} replies are asked for outside of a protected round",
            hint="Use a strategy that sends with grid.send_and_receive, once for a round.",
        )

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the round that the messages ask for; return one reply, or none if it was aborted.

        Args:
            messages: What a strategy's `configure_train` or `configure_evaluate` returned.
            timeout: Seconds that the round may take; an hour by default, as in Flower.

        Raises:
            CombinationError: The messages cannot be one protected round.
            RoundAbortedError: The sums of such a cohort do not fit into the residues.
        """
        asked = list(messages)
        if not asked:
            return []
        plan = _Plan.of(asked)
        self._last = plan.number or self._last + (plan.kind == wire.TRAIN)
        request = plan.request(self._training, self._last, self._terms, timeout or HOUR_S)
        try:
            result = self._run_round(plan.nodes, request, evaluate_only=plan.kind == wire.EVALUATE)
        except RoundAbortedError as error:
            if isinstance(error.__cause__, CapacityError):  # it will not fit next time either
                raise
            log.warning(
                "round aborted", extra={"round": self._last, "kind": plan.kind, "why": str(error)}
            )
            return []
        self._terms.on_round(self._last, plan.kind, result)
        return [Message(plan.answer(result, request), reply_to=asked[0])]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One round, read from the messages that a strategy wants to send."""

    kind: str
    nodes: tuple[int, ...]
    number: int
    names: tuple[str, ...]
    parameters: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    config: Mapping[str, Any]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "_Plan":
        """Read the messages.

        Raises:
            CombinationError: They are not one round.
        """
        first = messages[0]
        kinds = {message.metadata.message_type for message in messages}
        nodes = tuple(message.metadata.dst_node_id for message in messages)
        if len(kinds) > 1 or not kinds <= {wire.TRAIN, wire.EVALUATE}:
            raise CombinationError(f"messages of the types {sorted(kinds)} are no protected round")
        if len(set(nodes)) < len(nodes):
            raise CombinationError(f"{len(nodes)} messages go to {len(set(nodes))} nodes")
        if any(message.content is not first.content for message in messages):
            _require_equal(messages)
        names = set(first.content)
        if names != {wire.ARRAYS, wire.CONFIG} or not isinstance(
            first.content[wire.ARRAYS], ArrayRecord
        ):
            raise CombinationError(
                f"the messages hold the records {sorted(names)}, a protected round carries"
                f" {wire.ARRAYS!r} and {wire.CONFIG!r}",
                hint="Keep the strategy's arrayrecord_key and configrecord_key as they are.",
            )
        arrays = first.content.array_records[wire.ARRAYS]
        config = dict(first.content.config_records[wire.CONFIG])
        number = config.get(ROUND, 0)
        return cls(
            kinds.pop(),
            nodes,
            number if isinstance(number, int) and number > 0 else 0,
            tuple(arrays),
            {name: array.numpy() for name, array in arrays.items()},
            config,
        )

    def request(self, training: str, number: int, terms: Terms, timeout_s: float) -> RoundRequest:
        """Return what the round is to do."""
        layout = Layout.of(self.parameters)
        is_training = self.kind == wire.TRAIN
        metrics = terms.train_metrics if is_training else terms.evaluate_metrics
        means = tuple(wire.MEAN + name for name in metrics)
        return RoundRequest(
            # a key holder opens one sum for each round of a training: evaluations are another
            training=training if is_training else f"{training}-evaluation",
            number=number,
            layout=layout,
            vector=layout.pack(self.parameters),
            config=self.config,
            statistics=(wire.EXAMPLES, *means),
            clip=terms.clip,
            max_weight=terms.max_weight,
            timeout_s=timeout_s,
            min_clients=terms.min_cohort,
            poll_s=terms.poll_s,
            bits=terms.bits,
            security=terms.security,
        )

    def answer(self, result: RoundResult, request: RoundRequest) -> RecordDict:
        """Return the reply of "the mean device"."""
        total = result.total
        examples = total.statistics[wire.EXAMPLES]
        metrics: dict[str, float] = {
            name.removeprefix(wire.MEAN): total.statistics[name] / examples
            for name in request.statistics
            if name.startswith(wire.MEAN) and examples > 0
        }
        if self.kind == wire.EVALUATE:
            return RecordDict({wire.METRICS: MetricRecord({wire.WEIGHT: examples, **metrics})})
        elements = max(1, total.clients * request.layout.size)
        metrics[CLIPPED] = total.statistics[CLIPPED] / elements
        mean = request.layout.unpack(request.vector + total.vector / total.weight)
        return RecordDict(
            {
                wire.ARRAYS: ArrayRecord({name: Array(mean[name]) for name in self.names}),
                wire.METRICS: MetricRecord({wire.WEIGHT: total.weight, **metrics}),
            }
        )


def _require_equal(messages: Sequence[Message]) -> None:
    """Refuse messages that would bring different devices different things."""
    first = messages[0].content
    different = [each.metadata.dst_node_id for each in messages if each.content != first]
    if different:
        raise CombinationError(
            f"{len(different)} of {len(messages)} nodes would get another model or config, such as"
            f" node {different[0]}; a protected sum is of updates of one model",
            hint="Use a strategy that sends every device the same.",
        )


class Presence:
    """Tells which nodes are gone, for grids that only list who is connected.

    The list is asked for at most once in `LOOK_S`: a round looks at every node many times a second.
    """

    def __init__(self, grid: Grid, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at a grid; `clock` returns seconds."""
        self._grid, self._clock = grid, clock
        self._known: frozenset[int] = frozenset()
        self._looked = -np.inf

    def is_gone(self, node: int) -> bool:
        """Tell whether a node is not connected."""
        if self._clock() - self._looked >= LOOK_S:
            self._known, self._looked = frozenset(self._grid.get_node_ids()), self._clock()
        return node not in self._known
