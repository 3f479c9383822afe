"""Consecutive federated rounds to measure deltas on: two networks, small and large steps.

The rounds are the product's own: its clients train, its grid carries, its rule averages. What is
cheap here is the networks' school: a few minutes for both, so they are not good at what they do,
and what is measured is how one round's model differs from the next.
"""

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.client.local_app import Local, local_app
from wildflower.client.outgoing import Guard, Outgoing
from wildflower.client.training import Plan, train
from wildflower.ota.build.export import load_parameters, to_onnx
from wildflower.simulation.data import split_examples
from wildflower.simulation.grid import App, InProcessGrid
from wildflower.simulation.partition import partition
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout, Parameters, to_safetensors
from wildflower.strategies.initial import initial_model
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.round_request import RoundRequest
from wildflower.strategies.task import Examples, Recipe, Task
from wildflower.strategies.trips import plain_round

if TYPE_CHECKING:
    import torch

CLIENTS: Final = 10
LINES: Final = 90  # of the language model's clients: five steps of a round
CONTEXT: Final = 32  # characters that the language model sees
LETTERS: Final = 128


@dataclass(frozen=True, slots=True)
class Pair:
    """Two consecutive global models of one training.

    Attributes:
        name: Network and step size, such as "cnn-small".
        before: The earlier one, an fp32 ONNX file.
        after: The later one.
        calibration: Inputs to quantise with.
        inputs: Inputs nobody trained on.
        targets: Their classes.
    """

    name: str
    before: bytes
    after: bytes
    calibration: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]


class _Classes:
    """What both tasks share: cross-entropy over the last axis."""

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        """Return how many answers are right."""
        return {"correct": float((outputs.argmax(axis=-1) == targets).sum())}

    def load(self, path: Path) -> Examples:
        """Return the examples of a file."""
        return Examples.open(path)


class Pictures(_Classes):
    """MobileNetV2 for small pictures, 2.2 million parameters, on scikit-learn's digits."""

    name: str = "pictures"
    labels: Sequence[str] = tuple(str(digit) for digit in range(10))
    recipe: Recipe = Recipe(epochs=1, batch_size=32, momentum=0.9)

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh network."""
        from benchmarks._delta_networks import mobile_net

        return mobile_net()

    def example(self) -> npt.NDArray[np.float32]:
        """Return one empty picture."""
        return np.zeros((1, 1, 16, 16), np.float32)

    def examples(self) -> Examples:
        """Return 1,797 digits of 16 x 16."""
        from sklearn.datasets import load_digits

        found = load_digits()
        pictures = (found.images / 16.0).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)
        return Examples(pictures[:, np.newaxis], found.target.astype(np.int64))


class Letters(_Classes):
    """A transformer over characters, 4 blocks of 256, on the standard library's sources."""

    name: str = "letters"
    labels: Sequence[str] = tuple(str(code) for code in range(LETTERS))
    recipe: Recipe = Recipe(epochs=1, batch_size=16, momentum=0.9)

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh network."""
        from benchmarks._delta_networks import transformer

        return transformer(LETTERS, CONTEXT)

    def example(self) -> npt.NDArray[np.float32]:
        """Return one empty line."""
        return np.zeros((1, CONTEXT), np.float32)

    def examples(self) -> Examples:
        """Return 3,000 lines of characters; the target of each is the next one."""
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]
        codes = np.frombuffer(b"".join(one.read_bytes() for one in sources), np.uint8)
        codes = codes[codes < LETTERS]
        begins = np.linspace(0, len(codes) - CONTEXT - 2, 3000).astype(int)
        lines = np.stack([codes[begin : begin + CONTEXT + 1] for begin in begins])
        return Examples(lines[:, :-1].astype(np.float32), lines[:, 1:].astype(np.int64))


@dataclass(frozen=True, slots=True)
class _School:
    """How one network is trained before and during the rounds.

    Attributes:
        task: What it learns.
        epochs: Of training in one place, before the rounds.
        first_rate: Learning rate of that.
        rates: Learning rates of the rounds, by the name of the pair.
    """

    task: Any
    epochs: int
    first_rate: float
    rates: Mapping[str, float]


SCHOOLS: Final = (
    _School(Pictures(), 10, 0.03, {"cnn-small": 0.002, "cnn-large": 0.02}),
    _School(Letters(), 2, 0.1, {"lm": 0.002, "lm-large": 0.02}),
)


def pairs(only: str = "", *, seed: int = 0) -> Iterator[Pair]:
    """Train, and yield the pairs whose name begins with `only`.

    Args:
        only: How their names begin.
        seed: Of the networks' first weights and of the order that they see examples in.
    """
    for school in SCHOOLS:
        rates = {name: rate for name, rate in school.rates.items() if name.startswith(only)}
        if not rates:
            continue
        examples = school.task.examples()
        split = split_examples(examples, final=0.2)
        start = _schooled(school, split.train, seed)
        for name, rate in rates.items():
            before, after = _two_rounds(school.task, start, split.train, rate)
            calibration = split.proxy.inputs
            yield Pair(
                name,
                _onnx(school.task, before, calibration),
                _onnx(school.task, after, calibration),
                calibration,
                split.final.inputs,
                split.final.targets,
            )


def _schooled(school: _School, examples: Examples, seed: int) -> Parameters:
    plan = Plan(school.epochs, 32, school.first_rate, 0.9, seed=seed + 1)
    trained, _ = train(school.task, initial_model(school.task, seed), examples, plan)
    return trained


def _two_rounds(
    task: Task, start: Parameters, examples: Examples, rate: float
) -> tuple[Parameters, Parameters]:
    """Return the global models after the first and the second round."""
    layout = Layout.of(start)
    parts = _parts(examples)
    apps = {100 + at: _device(task, part) for at, part in enumerate(parts)}
    rule, made = FedAvg(), []
    state = rule.init(layout.pack(start))
    grid = InProcessGrid(apps)
    for number in (1, 2):
        request = RoundRequest(
            training="deltas",
            number=number,
            layout=layout,
            vector=rule.model(state),
            config={"learning-rate": rate, "seed": 0},
            statistics=("examples", "loss"),
            clip=1e9,
            max_weight=1e9,
            timeout_s=86_400.0,
            min_clients=CLIENTS,
            poll_s=0.0,
        )
        result = plain_round(grid, list(apps), request, is_gone=grid.is_gone, algorithm=rule)
        state, _ = rule.apply(state, result.total)
        made.append(layout.unpack(rule.model(state)))
    return made[0], made[1]


def _parts(examples: Examples) -> list[Examples]:
    """Return each client's examples, unlike each other's: pictures by label, lines by source."""
    if examples.targets.ndim == 1:
        return partition(examples, CLIENTS, concentration=1.0, seed=0)
    share = len(examples) // CLIENTS
    return [examples[at * share :][:LINES] for at in range(CLIENTS)]


def _device(task: Task, examples: Examples) -> App:
    local = Local(task, examples)
    return Guard(Outgoing("allowed", ()), UpdateMod(())).around(local_app(lambda _: local))


def _onnx(task: Task, parameters: Parameters, rows: npt.NDArray[np.float32]) -> bytes:
    return to_onnx(load_parameters(task.build_model(), to_safetensors(parameters)), rows)
