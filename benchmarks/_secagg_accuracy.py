"""What 16-bit residues cost in accuracy: the same federated training twice, summed in both widths.

A hundred clients train a small network on real digits, dealt out unequally. Both trainings see the
same examples in the same order; masks would change nothing of the sums, so they are left out.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.simulation.data import digits
from wildflower.simulation.partition import partition
from wildflower.strategies.arrays import Update, Vector
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.task import Examples

HIDDEN: Final = 32
INPUTS: Final = 784
SIZE: Final = INPUTS * HIDDEN + HIDDEN + HIDDEN * 10 + 10
CLIP: Final = 1.0  # as in the demo's recipe
RATE: Final = 0.1
BATCH: Final = 16
EPOCHS: Final = 3
CONCENTRATION: Final = 0.5
LAST: Final = 5  # rounds whose accuracies are averaged


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to train."""

    clients: int
    rounds: int
    seeds: int


def accuracy_drop_pt(plan: Plan) -> tuple[float, float]:
    """Return the accuracy with 32 bits, and how much less it is with 16, in percentage points."""
    wide, narrow = ([_trained(plan, seed, bits) for seed in range(plan.seeds)] for bits in (32, 16))
    return 100 * float(np.mean(wide)), 100 * float(np.mean(wide) - np.mean(narrow))


def _trained(plan: Plan, seed: int, bits: int) -> float:
    """Return the mean accuracy of the last rounds on examples that nobody trained on."""
    split = digits(seed=seed)
    parts = partition(split.train, plan.clients, concentration=CONCENTRATION, seed=seed)
    unseen = (split.proxy, split.final)
    encoding = Encoding.for_cohort(
        size=SIZE,
        clip=CLIP,
        max_weight=float(max(map(len, parts))),
        clients=plan.clients,
        bits=bits,
    )
    rng = np.random.default_rng(seed)
    model = (rng.normal(0, 1, SIZE) * np.sqrt(2 / INPUTS)).astype(np.float32)
    found = []
    for number in range(plan.rounds):
        total = np.zeros(encoding.length, encoding.dtype)
        for client, part in enumerate(parts):
            drawn = np.random.default_rng([seed, number, client])
            change = _locally(model, part, drawn) - model
            update = Update(change, float(len(part)), {})
            total += encoding.encode(update, drawn.bytes(32))
        sum_ = encoding.decode(total, plan.clients)
        model = (model + sum_.vector / sum_.weight).astype(np.float32)
        found.append(np.mean([_accuracy(model, part) for part in unseen]))
    return float(np.mean(found[-LAST:]))


def _layers(model: Vector) -> tuple[npt.NDArray[np.float32], ...]:
    cuts = np.cumsum([INPUTS * HIDDEN, HIDDEN, HIDDEN * 10])
    first, bias, second, offset = np.split(model, cuts)
    return first.reshape(INPUTS, HIDDEN), bias, second.reshape(HIDDEN, 10), offset


def _locally(model: Vector, examples: Examples, rng: np.random.Generator) -> Vector:
    """Return the model after a few epochs of stochastic gradient descent on cross-entropy."""
    trained = model.copy()
    first, bias, second, offset = _layers(trained)
    inputs, targets = _flat(examples), np.asarray(examples.targets)
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(len(targets)), -(-len(targets) // BATCH)):
            x = inputs[rows]
            active = np.maximum(x @ first + bias, 0)
            slope = _probabilities(active @ second + offset)
            slope[np.arange(len(rows)), targets[rows]] -= 1
            slope *= RATE / len(rows)
            back = (slope @ second.T) * (active > 0)
            second -= active.T @ slope
            offset -= slope.sum(axis=0)
            first -= x.T @ back
            bias -= back.sum(axis=0)
    return trained


def _probabilities(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _accuracy(model: Vector, examples: Examples) -> float:
    first, bias, second, offset = _layers(model)
    answers = (np.maximum(_flat(examples) @ first + bias, 0) @ second + offset).argmax(axis=1)
    return float((answers == examples.targets).mean())


def _flat(examples: Examples) -> npt.NDArray[np.float32]:
    return np.asarray(examples.inputs, np.float32).reshape(len(examples), INPUTS)
