"""What differential privacy does to a training's rounds: the rule, the noise, what is written down.

    settings, number -> RoundPrivacy
      .rule          how devices bound their updates        goes out with the round
      .planned       the entry that the budget must allow   before anybody is asked
      .entry         the entry of what really happened      written before the noise is released
      .release       the sum with its noise                 the only sum that is stored

Pure: records, clock and entropy are arguments. What a mechanism remembers between rounds is taken
from the rounds' own records (the adaptive norm is a figure of the round before) or from the number
of the round (the tree's nodes come out of one secret seed).

A device may be in one round of a tree: `epoch` says how many rounds that lasts, and after it the
tree is restarted and paid for again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

from wildflower.server.training_settings import Value
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.dp import claim
from wildflower.strategies.dp.central import AdaptiveClipping, CentralDP
from wildflower.strategies.dp.contribution import WITHIN, Bounds, Contribution, Statistics
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.events import (
    EVERYONE,
    Event,
    Gaussian,
    Relation,
    Sampling,
    Scheme,
    Tree,
)
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.dp.sgd import Asked
from wildflower.strategies.dp.tree import TreeDP, TreeState
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.ledger import Budget, Entry, Purpose, Total, Unit

NORM: Final = "dp_norm"
"""Figure of a round: the clipping norm of the next."""
COUNTED: Final = "eval-"
LOSS: Final = "eval-loss"


@dataclass(frozen=True, slots=True)
class RoundPrivacy:
    """The privacy of one round.

    Attributes:
        mechanism: "central", "central-adaptive", "distributed", "local", "ftrl" or "dpsgd".
        noise: Noise multiplier.
        rule: How devices bound their updates; None where their training does it.
        sgd: What DP-SGD devices are asked for; None elsewhere.
        sampling: How the cohort is drawn, as those who see only models are told.
        total: What the round's entry adds to.
        epsilon: The budget; 0 for none.
        population: How many devices could have been drawn when the training began.
        cohort: Expected size of the cohort; the mean is taken over it.
        training: Id of the training.
        number: Number of the round, from 1.
        rounds: Rounds of the training.
    """

    mechanism: str
    noise: float
    rule: ClientRule | None
    sgd: Asked | None
    sampling: Sampling
    total: Total
    epsilon: float
    population: int
    cohort: int
    training: str
    number: int
    rounds: int

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Value],
        *,
        training: str,
        number: int,
        rounds: int,
        before: Mapping[str, float],
    ) -> Self | None:
        """Return the privacy of a round, None where the training has none.

        Args:
            settings: Of the training, complete; "population" among them.
            training: Its id.
            number: Number of the round, from 1.
            rounds: Rounds of the training.
            before: Figures of the round before.
        """
        mechanism = str(settings["dp"])
        if mechanism == "none":
            return None
        by_steps = mechanism == "dpsgd"
        population = int(settings["population"])
        cohort = min(int(settings["cohort"]) or population, population)
        sampling = _sampling(str(settings["selection"]), mechanism, cohort, population)
        is_replaced = mechanism == "local" or sampling.scheme is Scheme.WITHOUT_REPLACEMENT
        relation = Relation.REPLACE if is_replaced else Relation.ADD_REMOVE
        unit = Unit.EXAMPLE if by_steps else Unit.DEVICE
        return cls(
            mechanism=mechanism,
            noise=float(settings["dp_noise"]),
            rule=None if by_steps else _rule(settings, mechanism, before),
            sgd=_asked(settings) if by_steps else None,
            sampling=sampling,
            total=Total(unit, relation, float(settings["dp_delta"])),
            epsilon=float(settings["dp_epsilon"]),
            population=population,
            cohort=cohort,
            training=training,
            number=number,
            rounds=rounds,
        )

    @property
    def budget(self) -> Budget | None:
        """What the rounds are paid from."""
        return Budget(self.total, self.epsilon) if self.epsilon else None

    @property
    def distributed_noise(self) -> float:
        """Noise multiplier of the noise that devices add inside the protected sum."""
        return self.noise if self.mechanism == "distributed" else 0.0

    @property
    def epoch(self) -> int:
        """Rounds of one tree: a device is in at most one of them."""
        return max(1, self.population // self.cohort)

    @property
    def tree(self) -> int:
        """Which tree the round belongs to, from 0."""
        return (self.number - 1) // self.epoch

    @property
    def exclusive(self) -> range:
        """Numbers of the rounds before, whose devices may not be drawn into this one."""
        if self.mechanism != "ftrl":
            return range(0)
        return range(self.tree * self.epoch + 1, self.number)

    @property
    def config(self) -> Mapping[str, str | float]:
        """What devices are told besides the rule: what an answer costs, or how to train."""
        if self.sgd is not None:
            return self.sgd.to_config()
        return {} if self.mechanism == "local" else claim.to_config(self._planned_event)

    @property
    def _planned_event(self) -> Event:
        if self.sgd is not None:
            return self.sgd.event()
        if self.mechanism == "ftrl":
            left = self.rounds - self.tree * self.epoch
            return Tree(self.noise, min(self.epoch, left))
        return Gaussian(self.noise, 1, self.sampling)

    def planned(self, encoding: SumEncoding | None, at: datetime) -> Entry:
        """Return the entry that the budget must allow before the round starts.

        Args:
            encoding: How updates would become residues, in a round of the fewest devices.
            at: The present, UTC.
        """
        event = self._planned_event
        if isinstance(encoding, SkellamEncoding):
            event = encoding.event(encoding.min_cohort, self.sampling)
        return self._entry(f"{self.number}/planned", event, self.cohort, at)

    def entry(
        self, attempt: int, survivors: int, encoding: SumEncoding | None, at: datetime
    ) -> Entry:
        """Return the entry of what really happened.

        Args:
            attempt: Which attempt at the round, from 0: what one released, a second does not undo.
            survivors: Updates in the sum.
            encoding: How they became residues; None in a plain round.
            at: The present, UTC.
        """
        if self.mechanism == "ftrl":
            return self._entry(f"tree-{self.tree}", self._planned_event, self.cohort, at)
        event: Event = self._planned_event
        if isinstance(encoding, SkellamEncoding):
            event = encoding.event(survivors, self.sampling)
        return self._entry(f"{self.number}/{attempt}", event, min(survivors, self.population), at)

    def _entry(self, name: str, event: Event, cohort: int, at: datetime) -> Entry:
        return Entry(
            entry_id=f"{self.training}/{name}",
            purpose=Purpose.TRAINING,
            total=self.total,
            event=event,
            cohort=cohort,
            population=self.population,
            subject=self.training,
            at=at,
        )

    def release(
        self, total: Sum, encoding: SumEncoding | None, *, entropy: bytes, seed: bytes
    ) -> Sum:
        """Return the sum with its noise; only this may be stored.

        Args:
            total: Sum of what devices sent within the rule.
            encoding: How it became residues; None in a plain round.
            entropy: 32 secret random bytes, for this call only.
            seed: 32 secret bytes of this training, the same in every round.

        Raises:
            StrategyError: It is no such sum.
        """
        if self.rule is None or self.mechanism in {"distributed", "local"}:
            return total
        contribution = self.rule.contribution(total.vector.size)
        quantum, statistic_quantum = _quanta(encoding)
        if self.mechanism == "ftrl":
            return self._next_of_tree(total, contribution, quantum, statistic_quantum, seed)
        is_poisson = self.sampling.scheme is Scheme.POISSON
        return CentralDP(self.noise, contribution).release(
            total,
            entropy=entropy,
            quantum=quantum,
            statistic_quantum=statistic_quantum,
            denominator=float(self.cohort) if is_poisson else None,
        )

    def _next_of_tree(
        self,
        total: Sum,
        contribution: Contribution,
        quantum: float,
        statistic_quantum: float,
        seed: bytes,
    ) -> Sum:
        tree = TreeDP(self.noise, contribution, self.epoch, quantum, statistic_quantum)
        step = (self.number - 1) % self.epoch
        state = TreeState(seed, step, (self.epoch,) * self.tree)
        _, released = tree.release(state, total)
        # One denominator for all rounds: the tree's noise cancels between equal weights only.
        return replace(released, weight=float(self.cohort))

    def next_figures(self, released: Sum) -> dict[str, float]:
        """Return what the next round must know: the norm that follows the quantile."""
        if self.rule is None or self.mechanism != "central-adaptive":
            return {}
        return {NORM: AdaptiveClipping().next(self.rule.norm, released)}


def _rule(settings: Mapping[str, Value], mechanism: str, before: Mapping[str, float]) -> ClientRule:
    noise, norm = float(settings["dp_noise"]), float(settings["dp_norm"])
    names = str(settings["statistics"]).split(";")
    return ClientRule(
        before.get(NORM, norm) if mechanism == "central-adaptive" else norm,
        _statistics(names, float(settings["dp_count"]), mechanism),
        local_noise=noise if mechanism == "local" else 0.0,
    )


def _statistics(names: Sequence[str], largest: float, mechanism: str) -> Statistics:
    """Return the statistics that may leave: counts of the evaluation, each within a bound.

    A loss has no bound of its own, and every further statistic takes noise from the others.
    """
    counts = [name for name in names if name.startswith(COUNTED) and name != LOSS]
    bounds: dict[str, Bounds] = {name: Bounds(0.0, largest) for name in counts}
    if mechanism == "central-adaptive":
        bounds[WITHIN] = Bounds(0.0, 1.0)
    return tuple(sorted(bounds.items()))


def _asked(settings: Mapping[str, Value]) -> Asked:
    return Asked(
        float(settings["dp_noise"]),
        float(settings["dp_norm"]),
        int(settings["dp_examples"]),
        int(settings["batch_size"]),
        int(settings["epochs"]),
    )


def _sampling(selection: str, mechanism: str, cohort: int, population: int) -> Sampling:
    """Return what drawing hides; where devices add the noise, and in trees, it is not counted."""
    if mechanism in {"local", "ftrl", "dpsgd"}:
        return EVERYONE
    match selection:
        case "poisson":
            return Sampling(Scheme.POISSON, cohort, population)
        case "fixed":
            return Sampling(Scheme.WITHOUT_REPLACEMENT, cohort, population)
        case _:
            return EVERYONE


def _quanta(encoding: SumEncoding | None) -> tuple[float, float]:
    """Return the largest rounding of an element and of a statistic."""
    if not isinstance(encoding, Encoding):
        return 0.0, 0.0
    return encoding.quantum, max((quantum for _, quantum in encoding.statistics), default=0.0)
