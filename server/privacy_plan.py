"""What a privacy budget asks of a training: how much noise, for how many rounds, at what cost.

Pure: numbers in, a plan out. The accuracy it tells was measured on the demo's digits by
`python -m benchmarks.dp_utility --write`, which also says in which setting; it is read off between
the measured epsilons, never beyond them.

    mechanism     noise multiplier z of        one round                       a model's parameter
    central       the server, on the sum       Gaussian, Poisson sampling      z S sqrt(T) / m
    distributed   all devices together         Skellam, no sampling            z S sqrt(T) / m
    local         each device                  Gaussian, per device, replace   z S sqrt(T / m)
    ftrl          the nodes of a tree          Tree, each device once a tree   z S sqrt(nodes) / m

for T rounds, cohorts of m and the clipping norm S, with updates averaged and the server's rate 1.
The distributed noise is there to keep out the server, which drew the cohorts: so no sampling.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from importlib.resources import files
from typing import Any, Final

import numpy as np

from wildflower.server.errors import SettingsError
from wildflower.strategies.dp import calibration
from wildflower.strategies.dp.accounting import Method
from wildflower.strategies.dp.events import (
    Event,
    Gaussian,
    Relation,
    Sampling,
    Scheme,
    Skellam,
    Tree,
)

TABLE: Final = "dp_utility.json"
FACTORS: Final = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Noise around the planned one, for which the plan also tells how many rounds it allows."""
MOST_ROUNDS: Final = 100_000


@unique
class Mechanism(StrEnum):
    """Who adds the noise, and to what."""

    CENTRAL = "central"
    DISTRIBUTED = "distributed"
    LOCAL = "local"
    FTRL = "ftrl"


PROMISES: Final[Mapping[Mechanism, str]] = {
    Mechanism.CENTRAL: (
        "hides each device from everybody who sees models; the server is trusted to add the noise"
        " and sees the sums before"
    ),
    Mechanism.DISTRIBUTED: (
        "hides each device from the server too, as long as the cohort's other devices add their"
        " part of the noise; needs secure aggregation"
    ),
    Mechanism.LOCAL: "hides each device's answer from everybody, whoever else misbehaves",
    Mechanism.FTRL: (
        "as central, without counting on how cohorts are drawn; each device takes part at most"
        " once between two restarts"
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a plan is for.

    Attributes:
        mechanism: Who adds noise.
        epsilon: Largest epsilon of all rounds together.
        rounds: How many.
        cohort: Devices in a round.
        population: Devices that may take part.
        delta: 0 for a tenth of one over the population.
    """

    mechanism: Mechanism
    epsilon: float
    rounds: int
    cohort: int = 100
    population: int = 1000
    delta: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be planned, by name and range."""
        _within("epsilon", self.epsilon, 1e-3, 1e3)
        _within("rounds", self.rounds, 1, MOST_ROUNDS)
        _within("population", self.population, 1, 10**9)
        _within("cohort", self.cohort, 1, self.population)
        if self.delta:
            _within("delta", self.delta, 1e-15, 0.5)

    @property
    def budget(self) -> calibration.Budget:
        """The budget in the accountant's terms."""
        return calibration.Budget(self.epsilon, self.failure, self.relation)

    @property
    def failure(self) -> float:
        """The delta that is planned with."""
        return self.delta or 0.1 / self.population

    @property
    def relation(self) -> Relation:
        """Which populations are neighbours."""
        is_local = self.mechanism is Mechanism.LOCAL
        return Relation.REPLACE if is_local else Relation.ADD_REMOVE

    def events(self, noise: float, rounds: int) -> list[Event]:
        """Return what so many rounds at a noise multiplier release of one device."""
        match self.mechanism:
            case Mechanism.CENTRAL:
                drawn = Sampling(Scheme.POISSON, self.cohort, self.population)
                is_all = self.cohort == self.population
                return [Gaussian(noise, rounds) if is_all else Gaussian(noise, rounds, drawn)]
            case Mechanism.DISTRIBUTED:
                return [fine_skellam(noise, rounds)]
            case Mechanism.LOCAL:
                return [Gaussian(noise, math.ceil(rounds * self.cohort / self.population))]
            case Mechanism.FTRL:
                whole, rest = divmod(rounds, self.steps)
                trees = [Tree(noise, self.steps, whole)] if whole else []
                return [*trees, *([Tree(noise, rest)] if rest else [])]

    @property
    def curve(self) -> str:
        """Name of the measured line that is nearest to it."""
        is_sampled = self.mechanism is Mechanism.CENTRAL and self.cohort < self.population
        return "sampled" if is_sampled else self.mechanism.value

    @property
    def steps(self) -> int:
        """Rounds of one tree: each device is in one of them."""
        return self.population // self.cohort

    def round_error(self, noise: float) -> float:
        """Return the standard deviation of the mean update's element over the clipping norm."""
        is_local = self.mechanism is Mechanism.LOCAL
        return noise / (math.sqrt(self.cohort) if is_local else self.cohort)

    def model_error(self, noise: float) -> float:
        """Return the same of a model's parameter after all rounds."""
        if self.mechanism is not Mechanism.FTRL:
            return self.round_error(noise) * math.sqrt(self.rounds)
        whole, rest = divmod(self.rounds, self.steps)
        nodes = whole * self.steps.bit_count() + rest.bit_count()
        return self.round_error(noise) * math.sqrt(nodes)


def fine_skellam(noise: float, rounds: int) -> Skellam:
    """Return Skellam noise on a scale so fine that rounding costs nothing, as 16 bits allow."""
    l2 = 1000.0
    return Skellam(noise, l2, l2**2, rounds)


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """How many rounds the budget allows, at least, at a noise multiplier."""

    noise_multiplier: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What the mechanism cost on the demo's task, where it was measured.

    Attributes:
        expected: Accuracy at the asked epsilon, in percent, between the measured ones.
        without_privacy: The same training without noise, in percent.
        cost_pt: The difference, in points.
        setting: In what setting this was measured.
        is_beyond: Whether the asked epsilon lies beyond the measured ones; the nearest counts.
    """

    expected: float
    without_privacy: float
    cost_pt: float
    setting: str
    is_beyond: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget asks of a training.

    Attributes:
        mechanism: Who adds the noise.
        promise: What it hides from whom.
        epsilon: What all rounds cost together, at most.
        delta: At which it is told.
        unit: What is hidden.
        relation: Which populations are neighbours.
        rounds: How many.
        cohort: Devices in a round.
        population: Devices that may take part.
        noise_multiplier: Noise over what one device can add.
        round_error: Standard deviation of one element of a round's mean, over the clipping norm.
        model_error: Standard deviation of one parameter after all rounds, over the clipping norm.
        noise_and_rounds: What the same budget allows at other noise.
        accuracy: What it cost on the demo's task.
    """

    mechanism: str
    promise: str
    epsilon: float
    delta: float
    unit: str
    relation: str
    rounds: int
    cohort: int
    population: int
    noise_multiplier: float
    round_error: float
    model_error: float
    noise_and_rounds: list[NoiseRow]
    accuracy: Accuracy


def plan(asked: Asked) -> Plan:
    """Return what a budget asks of a training.

    Raises:
        SettingsError: No noise is enough.
    """
    try:
        noise = calibration.noise_for(lambda z: asked.events(z, asked.rounds), asked.budget)
    except ValueError as error:
        raise SettingsError(
            f"{asked.rounds} rounds cannot be had for epsilon {asked.epsilon:g}: {error}",
            hint="Ask for fewer rounds, or a larger epsilon or delta.",
        ) from error
    return Plan(
        mechanism=asked.mechanism.value,
        promise=PROMISES[asked.mechanism],
        epsilon=asked.epsilon,
        delta=asked.failure,
        unit="device",
        relation=asked.relation.value,
        rounds=asked.rounds,
        cohort=asked.cohort,
        population=asked.population,
        noise_multiplier=noise,
        round_error=asked.round_error(noise),
        model_error=asked.model_error(noise),
        noise_and_rounds=_rows(asked, noise),
        accuracy=accuracy(asked.curve, asked.epsilon, measured()),
    )


def _rows(asked: Asked, planned: float) -> list[NoiseRow]:
    """Return what the budget allows at noise around the planned one.

    The quick bound (RDP) says how the number of rounds goes with the noise; what the tight one
    gains over it at the planned noise it gains nearby, and each row is verified by the tight one.
    """
    gain = asked.rounds / max(1, _surely(asked, planned))
    return [NoiseRow(z, _rounds(asked, z, gain)) for z in (planned * each for each in FACTORS)]


def _rounds(asked: Asked, noise: float, gain: float) -> int:
    surely = _surely(asked, noise)
    found = int(surely * gain)
    while found > surely and not asked.budget.allows(asked.events(noise, found)):
        found = int(found * 0.97)
    return max(found, surely)


def _surely(asked: Asked, noise: float) -> int:
    quick = replace(asked.budget, method=Method.RDP)
    return calibration.rounds_for(lambda n: asked.events(noise, n), quick, most=MOST_ROUNDS)


def measured() -> dict[str, Any]:
    """Return what `benchmarks.dp_utility` measured and wrote down."""
    found: dict[str, Any] = json.loads(files(__package__).joinpath(TABLE).read_text("utf-8"))
    return found


def accuracy(curve: str, epsilon: float, table: Mapping[str, Any]) -> Accuracy:
    """Return the accuracy at an epsilon, on the line between the two measured next to it.

    Args:
        curve: Name of the measured line.
        epsilon: The asked one.
        table: What was measured; see `measured`.
    """
    line = table["mechanisms"][curve]
    points = sorted((float(each), float(value)) for each, value in line["accuracy"].items())
    logs, values = [math.log(each) for each, _ in points], [value for _, value in points]
    expected = float(np.interp(math.log(epsilon), logs, values))
    free = float(line["without_noise"])
    return Accuracy(
        expected=round(expected, 2),
        without_privacy=free,
        cost_pt=round(free - expected, 2),
        setting=line["setting"],
        is_beyond=not points[0][0] <= epsilon <= points[-1][0],
    )


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{key} = {value:g}: allowed is {low:g} to {high:g}")
