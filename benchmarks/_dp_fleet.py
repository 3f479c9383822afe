"""A thousand virtual devices that learn digits: real mechanisms, a model that numpy trains at once.

Each device holds four MNIST digits, pooled to 14 x 14, and trains a softmax classifier of 1,970
parameters by five full-batch steps. All devices of a cohort train in one array operation; what
they send goes through the product's own rule, encodings and noise, one device after the other.

    mechanism     hides     cohorts                                     accounted
    central       device    all 1,000 in each of 15 rounds              add-remove, no sampling
    distributed   device    the same, Skellam in 16 bits                add-remove, no sampling
    sampled       device    100 by coins in each of 40, central noise   add-remove, Poisson
    ftrl          device    100 in turn in each of 30, 3 trees of 10    add-remove, once a tree
    local         device    all 1,000 in each of 3 rounds               replace
    dpsgd         example   4 devices with 1,000 digits, 10 rounds      add-remove, Poisson

Every mechanism stands in a setting that suits it, with equal model, data and clipping norm; norm,
rates and rounds were chosen once, on the proxy examples, and are the same at every epsilon. What is
measured is the mean of the models of the last third of the rounds, on 500 examples nobody saw.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.client.dp_training import PrivatePlan, train_privately
from wildflower.server.privacy_plan import fine_skellam
from wildflower.simulation.data import digits
from wildflower.simulation.fleet import seeded_entropy
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.dp.calibration import Budget, noise_for
from wildflower.strategies.dp.central import CentralDP
from wildflower.strategies.dp.contribution import Contribution
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.events import Event, Gaussian, Relation, Sampling, Scheme, Tree
from wildflower.strategies.dp.private_task import PrivateTask
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.dp.sgd import event_of
from wildflower.strategies.dp.tree import TreeDP, TreeState, restart
from wildflower.strategies.errors import CapacityError
from wildflower.strategies.task import Examples, Recipe

Floats = npt.NDArray[np.float32]

DEVICES: Final = 1000
EACH: Final = 4
INPUTS: Final = 196
SIZE: Final = (INPUTS + 1) * 10
NORM: Final = 2.0
RATE: Final = 1.0
STEPS: Final = 5
DELTA: Final = 1e-4
COHORT: Final = 100
SAMPLED: Final = Sampling(Scheme.POISSON, COHORT, DEVICES)
RULE: Final = ClientRule(NORM)
CONTRIBUTION: Final = Contribution(SIZE, NORM)
ENCODING: Final[Mapping[str, Any]] = {
    "clients": DEVICES,
    "min_cohort": DEVICES,
    "rotation": bytes(16),
    "bits": 16,
}


@dataclass(frozen=True, slots=True)
class Data:
    """Examples of one seed.

    Attributes:
        inputs: Of the devices, shape (DEVICES, EACH, INPUTS + 1); the last input is 1.
        targets: Their digits, shape (DEVICES, EACH).
        tests: Examples that nobody trains on.
    """

    inputs: Floats
    targets: npt.NDArray[np.int64]
    tests: Examples

    @classmethod
    def of(cls, seed: int) -> "Data":
        """Return the data of a seed: another split and another dealing."""
        split = digits(seed=seed)
        order = np.random.default_rng(seed).permutation(DEVICES * EACH)
        inputs, targets = pooled(split.train.inputs)[order], split.train.targets[order]
        tests = Examples(pooled(split.final.inputs), split.final.targets)
        shape = (DEVICES, EACH)
        return cls(inputs.reshape(*shape, INPUTS + 1), targets.reshape(shape), tests)


def pooled(inputs: Floats) -> Floats:
    """Return digits of 14 x 14 with a constant input, shape (n, INPUTS + 1)."""
    count = len(inputs)
    small = inputs.reshape(count, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(count, INPUTS)
    return np.concatenate([small, np.ones((count, 1), np.float32)], axis=1)


def updates(model: Floats, data: Data, cohort: npt.NDArray[np.intp]) -> Floats:
    """Return what each device of a cohort changes, shape (cohort, SIZE)."""
    inputs, wanted = data.inputs[cohort], np.eye(10, dtype=np.float32)[data.targets[cohort]]
    start = model.reshape(1, INPUTS + 1, 10)
    weights = np.repeat(start, len(cohort), axis=0)
    for _ in range(STEPS):
        scores = inputs @ weights
        scores -= scores.max(axis=2, keepdims=True)
        odds = np.exp(scores)
        wrong = odds / odds.sum(axis=2, keepdims=True) - wanted
        weights -= (RATE / EACH) * (inputs.transpose(0, 2, 1) @ wrong)
    return (weights - start).reshape(len(cohort), SIZE)


def accuracy(model: Floats, tests: Examples) -> float:
    """Return the share of right answers, in percent."""
    scores = tests.inputs @ model.reshape(INPUTS + 1, 10)
    return float((scores.argmax(axis=1) == tests.targets).mean() * 100)


def bounded(changes: Floats, rule: ClientRule, entropy: Callable[[int], bytes]) -> Iterator[Update]:
    """Yield what leaves each device."""
    unused = bytes(32)  # a rule without local noise draws nothing
    for change in changes:
        yield rule.bound(Update(change, 1.0, {}), entropy(32) if rule.local_noise else unused)


def added(found: Iterator[Update]) -> Sum:
    """Return the exact sum of updates."""
    vector, count = np.zeros(SIZE, np.float64), 0
    for count, update in enumerate(found, start=1):  # noqa: B007  the last one counts
        vector += update.vector
    return Sum(vector, float(count), {}, count)


class Mechanism:
    """How one mechanism releases a round's sum; `noise` 0 is no noise at all.

    Attributes:
        rounds: How many.
        rate: The server's: how much of the mean update it takes.
        relation: Of its accounting.
    """

    rounds: int = 15
    rate: float = 2.0
    relation: Relation = Relation.ADD_REMOVE

    def __init__(self, noise: float, entropy: Callable[[int], bytes]) -> None:
        self.noise, self.entropy = noise, entropy

    @classmethod
    def events(cls, noise: float) -> list[Event]:
        """Return what a whole training releases."""
        return [Gaussian(noise, cls.rounds)]

    def cohort(self, number: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        """Return who takes part in a round."""
        del number, rng
        return np.arange(DEVICES)

    def mean(self, changes: Floats) -> npt.NDArray[np.float64]:
        """Return the noisy mean of a cohort's updates."""
        total = added(bounded(changes, RULE, self.entropy))
        released = self.release(total) if self.noise else total
        return released.vector / released.weight

    def release(self, total: Sum) -> Sum:
        """Return a sum with its noise."""
        return CentralDP(self.noise, CONTRIBUTION).release(total, entropy=self.entropy(32))


class Central(Mechanism):
    """Noise on the sum of all devices."""


class Sampled(Mechanism):
    """Noise on the sum of cohorts that coins draw."""

    rounds = 40
    rate = 1.0

    @classmethod
    def events(cls, noise: float) -> list[Event]:
        return [Gaussian(noise, cls.rounds, SAMPLED)]

    def cohort(self, number: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        del number
        return np.flatnonzero(rng.random(DEVICES) < SAMPLED.rate)

    def release(self, total: Sum) -> Sum:
        mechanism = CentralDP(self.noise, CONTRIBUTION)
        return mechanism.release(total, entropy=self.entropy(32), denominator=COHORT)


class Distributed(Mechanism):
    """Each device's part of Skellam noise, in residues of 16 bits."""

    @classmethod
    def events(cls, noise: float) -> list[Event]:
        try:
            encoding = SkellamEncoding.for_cohort(CONTRIBUTION, noise_multiplier=noise, **ENCODING)
        except CapacityError:  # the search for a noise multiplier begins far above any in use
            return [fine_skellam(noise, cls.rounds)]
        return [replace(encoding.event(DEVICES), rounds=cls.rounds)]

    def mean(self, changes: Floats) -> npt.NDArray[np.float64]:
        if not self.noise:
            return super().mean(changes)
        rotation = {**ENCODING, "rotation": self.entropy(16)}
        encoding = SkellamEncoding.for_cohort(CONTRIBUTION, noise_multiplier=self.noise, **rotation)
        total = np.zeros(encoding.length, encoding.dtype)
        for update in bounded(changes, RULE, self.entropy):
            total += encoding.encode(update, self.entropy(32))
        released = encoding.decode(total, len(changes))
        return released.vector / released.weight


class Ftrl(Mechanism):
    """Noise on the nodes of a tree over the rounds; each device once in a tree."""

    rounds = 30
    rate = 1.0
    steps = DEVICES // COHORT

    def __init__(self, noise: float, entropy: Callable[[int], bytes]) -> None:
        super().__init__(noise, entropy)
        self.state = TreeState(entropy(32))

    @classmethod
    def events(cls, noise: float) -> list[Event]:
        return [Tree(noise, cls.steps, cls.rounds // cls.steps)]

    def cohort(self, number: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        del rng
        turn = number % self.steps
        return np.arange(turn * COHORT, (turn + 1) * COHORT)

    def release(self, total: Sum) -> Sum:
        if self.state.step == self.steps:
            self.state = restart(self.state)
        tree = TreeDP(self.noise, CONTRIBUTION, self.steps)
        self.state, released = tree.release(self.state, total)
        return released


class Local(Mechanism):
    """Each device's own noise."""

    rounds = 3
    rate = 1.0
    relation = Relation.REPLACE

    def mean(self, changes: Floats) -> npt.NDArray[np.float64]:
        rule = ClientRule(NORM, local_noise=self.noise)
        return added(bounded(changes, rule, self.entropy)).vector / len(changes)


MECHANISMS: Final[Mapping[str, type[Mechanism]]] = {
    "central": Central,
    "distributed": Distributed,
    "sampled": Sampled,
    "ftrl": Ftrl,
    "local": Local,
}


def noise_of(kind: type[Mechanism], epsilon: float) -> float:
    """Return the noise multiplier with which a whole training costs epsilon."""
    return noise_for(kind.events, Budget(epsilon, DELTA, kind.relation))


def learn(kind: type[Mechanism], noise: float, data: Data, seed: int) -> float:
    """Return the accuracy that a training reaches, in percent."""
    rng = np.random.default_rng(seed)
    mechanism = kind(noise, seeded_entropy(f"dp-utility/{kind.__name__}/{noise}/{seed}"))
    model, late = np.zeros(SIZE, np.float64), list[npt.NDArray[np.float64]]()
    for number in range(kind.rounds):
        cohort = mechanism.cohort(number, rng)
        changes = updates(model.astype(np.float32), data, cohort)
        model = model + kind.rate * mechanism.mean(changes)
        if number >= kind.rounds - max(1, kind.rounds // 3):
            late.append(model)
    return accuracy(np.mean(late, axis=0).astype(np.float32), data.tests)


class Softmax:
    """The same classifier as a task, for DP-SGD on the device."""

    name: str = "digits-softmax"
    labels: Sequence[str] = tuple("0123456789")
    recipe: Recipe = Recipe(epochs=1, batch_size=100, learning_rate=2.0, momentum=0.0)

    def build_model(self) -> Any:
        """Return the linear layer; the constant input is its bias."""
        from torch import nn

        layer = nn.Linear(INPUTS + 1, 10, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metrics(self, outputs: Floats, targets: npt.NDArray[Any]) -> Mapping[str, float]:
        """Return how many are right."""
        return {"correct": float((outputs.argmax(axis=1) == targets).sum())}

    def example(self) -> Floats:
        """Return one input."""
        return np.zeros((1, INPUTS + 1), np.float32)

    def load(self, path: Any) -> Examples:
        """Return the examples of a file."""
        return Examples.open(path)


SGD_DEVICES: Final = 4
SGD_ROUNDS: Final = 10


def sgd_event(noise: float) -> Gaussian:
    """Return what DP-SGD of all rounds releases of one example."""
    each = DEVICES * EACH // SGD_DEVICES
    recipe = Softmax.recipe
    return event_of(noise, examples=each, batch_size=recipe.batch_size, epochs=SGD_ROUNDS)


def learn_by_sgd(noise: float, data: Data, seed: int) -> float:
    """Return the accuracy that DP-SGD on few devices with many examples reaches, in percent."""
    entropy = seeded_entropy(f"dp-utility/sgd/{noise}/{seed}")
    inputs = data.inputs.reshape(SGD_DEVICES, -1, INPUTS + 1)
    targets = data.targets.reshape(SGD_DEVICES, -1)
    task, private = PrivateTask(Softmax()), PrivatePlan(noise)
    event = replace(sgd_event(noise), rounds=sgd_event(noise).rounds // SGD_ROUNDS)
    weight, late = np.zeros((10, INPUTS + 1), np.float32), list[Floats]()
    for number in range(SGD_ROUNDS):
        made = [
            train_privately(
                task,
                {"weight": weight},
                Examples(inputs[device], targets[device]),
                event,
                private=private,
                learning_rate=Softmax.recipe.learning_rate,
                momentum=0.0,
                entropy=entropy(32),
            )["weight"]
            for device in range(SGD_DEVICES)
        ]
        weight = np.mean(made, axis=0)
        if number >= SGD_ROUNDS - max(1, SGD_ROUNDS // 3):
            late.append(weight)
    return accuracy(np.mean(late, axis=0).T.reshape(-1), data.tests)
