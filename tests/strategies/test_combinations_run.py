"""Verdicts hold in practice: one combination of each class of verdicts is tried, end to end.

What is `ok` trains to the number that its algorithm promises; what is `refused` is refused before
a message is sent; what is a `warning` runs, and what the warning says is so.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Strategy
from tests.he_fakes import HeFleet
from tests.round_fakes import MODEL, Fleet, FlowerApp
from tests.secagg_fakes import entropy_of

from wildflower.client.outgoing import Guard, Outgoing
from wildflower.simulation.grid import InProcessGrid
from wildflower.simulation.helpers import SimulatedHelper
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.combine import find, judge, sort_of
from wildflower.strategies.errors import CombinationError
from wildflower.strategies.flower_grid import Terms
from wildflower.strategies.flower_inner import OPTION_OF
from wildflower.strategies.flower_strategy import (
    GroupedSecAgg,
    HomomorphicAvg,
    SecAggHelper,
    SecAggPlus,
)
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.option import Level, Option
from wildflower.strategies.options import ALGORITHMS, PROTECTIONS
from wildflower.strategies.secagg.grouped import Grouping, Rule
from wildflower.strategies.secagg.one_shot_protection import OneShot
from wildflower.strategies.secagg.sessions import MemorySessions

STEPS = [0.25, -0.5, 0.75, 0.125, -0.25, 0.3125, 0.1875]
WEIGHTS = [10, 20, 30, 5, 1, 8, 12]
CLASS_OF = {option: name for name, option in OPTION_OF.items()}
TERMS = Terms(clip=1.0, max_weight=30.0, poll_s=0.0)


@pytest.fixture(autouse=True)
def _quiet_flower() -> Iterable[None]:
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def inner(option: Option) -> Strategy:
    arguments: dict[str, dict[str, Any]] = {
        "q-fedavg": {"client_learning_rate": 0.1, "train_loss_key": "train_loss"},
        "krum": {"num_malicious_nodes": 1},
        "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
        "bulyan": {"num_malicious_nodes": 1},
    }
    kind = getattr(flower, CLASS_OF[option.name])
    made: Strategy = kind(fraction_evaluate=0.0, **arguments.get(option.name, {}))
    return made


def apps(steps: Sequence[float] = STEPS, weights: Sequence[float] = WEIGHTS) -> list[FlowerApp]:
    rows = zip(steps, weights, strict=True)
    return [FlowerApp(step, weight, {"train_loss": 1.0}) for step, weight in rows]


def model() -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in MODEL.items()})


def step_of(strategy: Strategy, grid: InProcessGrid) -> float:
    """Run a round; return by how much the (equally moved) parameters moved."""
    arrays = strategy.start(grid, model(), 1).arrays
    moved = np.concatenate([(arrays[name].numpy() - MODEL[name]).ravel() for name in MODEL])
    assert moved == pytest.approx(np.full(moved.size, moved[0]), abs=2e-2)
    return float(moved.mean())


def in_plain(option: Option, weights: Sequence[float] = WEIGHTS) -> float:
    nodes = {11 + index: each.app for index, each in enumerate(apps(weights=weights))}
    return step_of(inner(option), InProcessGrid(nodes))


class OneShotFleet:
    """Devices that pin two helpers, which live in this process."""

    def __init__(self) -> None:
        self.ca = SimulatedCa()
        self.helpers = [
            SimulatedHelper(self.ca.certificate, entropy_of("helper", number)) for number in (1, 2)
        ]
        pins = tuple(helper.card.digest for helper in self.helpers)
        self.grid = InProcessGrid(
            {11 + i: self._guard(pins).around(each.app) for i, each in enumerate(apps())}
        )

    def _guard(self, pins: tuple[str, ...]) -> Guard:
        protection = OneShot(self.ca.enrol(), MemorySessions(), pins, 3)
        return Guard(Outgoing("required", (protection,)), UpdateMod((protection,)))


@dataclass
class Tried:
    """A protection around an algorithm, and the grid it would run on."""

    wrap: Callable[[Strategy], Strategy]
    grid: InProcessGrid


def secagg(_: Path) -> Tried:
    fleet = Fleet([each.app for each in apps()], secagg="required")
    return Tried(lambda s: SecAggPlus(s, ca_pem=fleet.ca.pem, terms=TERMS), fleet.grid)


def one_shot(_: Path) -> Tried:
    fleet = OneShotFleet()
    return Tried(
        lambda s: SecAggHelper(s, ca_pem=fleet.ca.pem, helpers=fleet.helpers, terms=TERMS),
        fleet.grid,
    )


def homomorphic(directory: Path) -> Tried:
    fleet = HeFleet(directory, [each.app for each in apps()])
    return Tried(
        lambda s: HomomorphicAvg(s, ca_pem=fleet.ca.pem, key_holder=fleet.holder, terms=TERMS),
        fleet.grid,
    )


def grouped(_: Path) -> Tried:
    """Return three groups of three: nine devices, of which the last two do as the seventh does."""
    rows = [*apps(), *apps()[-1:], *apps()[-1:]]
    fleet = Fleet([each.app for each in rows], secagg="required")

    def wrap(strategy: Strategy) -> Strategy:
        rule = Rule.TRIMMED_MEAN if isinstance(strategy, FedTrimmedAvg) else Rule.MEDIAN
        grouping = Grouping(3, rule=rule)
        return GroupedSecAgg(strategy, ca_pem=fleet.ca.pem, grouping=grouping, terms=TERMS)

    return Tried(wrap, fleet.grid)


WRAPPERS = {"secagg": secagg, "one-shot": one_shot, "he": homomorphic, "grouped": grouped}
FIRST_OF_SORT = {
    sort: next(option for option in ALGORITHMS if sort_of(option) == sort)
    for sort in map(sort_of, ALGORITHMS)
}
PAIRS = [
    (algorithm, protection)
    for algorithm, protection in itertools.product(FIRST_OF_SORT.values(), PROTECTIONS)
    if protection.name in WRAPPERS
]


def test_the_pairs_that_are_tried_are_of_every_class_of_these_kinds() -> None:
    tried = {(sort_of(a), sort_of(p)) for a, p in PAIRS}
    wanted = {
        (sort_of(a), sort_of(p)) for a in ALGORITHMS for p in PROTECTIONS if p.name in WRAPPERS
    }
    assert tried == wanted
    assert len(FIRST_OF_SORT) < len(ALGORITHMS)
    assert {judge(pair).level for pair in PAIRS} == {Level.OK, Level.REFUSED}


@pytest.mark.parametrize(
    "pair", PAIRS, ids=[f"{algorithm.name}+{protection.name}" for algorithm, protection in PAIRS]
)
def test_a_pair_trains_to_what_it_promises_or_is_refused(
    pair: tuple[Option, Option], tmp_path: Path
) -> None:
    algorithm, protection = pair
    tried = WRAPPERS[protection.name](tmp_path)
    if judge(pair).level is Level.REFUSED:
        with pytest.raises(CombinationError, match=f"{algorithm.name}.*is refused"):
            tried.wrap(inner(algorithm))
        return
    found = step_of(tried.wrap(inner(algorithm)), tried.grid)
    assert abs(found) > 0.05
    if protection.name == "grouped":  # groups are drawn at random: the range is all one can say
        assert min(STEPS) < found < max(STEPS)
        return
    # 16-bit residues (he): a quantum of a device is 30/4,680, over a weight of 86
    assert found == pytest.approx(in_plain(algorithm), abs=2e-3)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [(FedMedian(), Rule.TRIMMED_MEAN), (FedTrimmedAvg(), Rule.MEDIAN)],
)
def test_a_robust_rule_over_groups_must_be_the_groupings(strategy: Strategy, rule: Rule) -> None:
    with pytest.raises(CombinationError, match="over groups whose means are compared by") as found:
        GroupedSecAgg(strategy, ca_pem=b"", grouping=Grouping(3, rule=rule))
    assert "Use Grouping(rule=Rule." in found.value.hint


def test_groups_outvote_a_liar_that_moves_a_secure_mean() -> None:
    rows = [*(FlowerApp(0.25 + 0.01 * index, 10) for index in range(8)), FlowerApp(-1.0, 10)]
    fleets = [Fleet([each.app for each in rows], secagg="required") for _ in range(2)]
    inner = FedAvg(fraction_evaluate=0.0)
    mean = SecAggPlus(inner, ca_pem=fleets[0].ca.pem, terms=TERMS)
    median = GroupedSecAgg(inner, ca_pem=fleets[1].ca.pem, terms=TERMS, grouping=Grouping(3))
    moved = sum(each.step for each in rows) / 9
    assert step_of(mean, fleets[0].grid) == pytest.approx(moved, abs=1e-4)
    assert moved < 0.15
    # the mean of a group without the liar
    assert 0.25 < step_of(median, fleets[1].grid) < 0.32


PLAIN = [
    ("fedavg", np.average(STEPS, weights=WEIGHTS)),
    ("fedmedian", np.median(STEPS)),
    ("trimmed-mean", np.mean(sorted(STEPS)[1:-1])),
    # squared distances to the nearest four: 0.125 0.195, 0.1875 0.215, 0.3125 0.246, 0.25 0.273
    ("krum", 0.125),
    ("multikrum", np.average([0.125, 0.1875, 0.3125], weights=[5, 12, 8])),
]


@pytest.mark.parametrize(("name", "expected"), PLAIN)
def test_in_plain_a_rule_finds_what_it_looks_for(name: str, expected: float) -> None:
    [option] = [each for each in ALGORITHMS if each.name == name]
    assert in_plain(option) == pytest.approx(float(expected), abs=1e-5)


ONE_STEP_TELLS = [  # an adaptive step has a fixed length, trees have none
    option
    for option in ALGORITHMS
    if option.name not in {"fedadagrad", "fedadam", "fedyogi", "fedxgb-bagging", "fedxgb-cyclic"}
]


@pytest.mark.parametrize("option", ONE_STEP_TELLS, ids=lambda option: option.name)
def test_an_algorithm_looks_at_weights_if_and_only_if_it_says_so(option: Option) -> None:
    says = judge([option, find("by-examples")]).level is Level.OK
    one = in_plain(option, weights=[1.0] * 7)
    two = in_plain(option, weights=[1.0, 1.0, 100.0, 1.0, 1.0, 50.0, 1.0])
    assert (abs(one - two) > 1e-3) == says
