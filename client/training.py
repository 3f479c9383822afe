"""Local training: a device's own examples, the model it received, some epochs of SGD.

Deterministic: equal model, examples, plan and seed give equal updates on one machine. Training
keeps to one thread, because a device has other things to do and a simulation has other devices.

A tenth of the examples is kept for validation. What is evaluated is the model as it was received:
model r is measured in round r + 1, by everyone, before anyone has changed it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.client.errors import TrainingError
from wildflower.strategies.arrays import Parameters
from wildflower.strategies.task import Examples, Recipe, Task

if TYPE_CHECKING:
    import torch

VALIDATION: Final = 0.1
"""Share of the examples that is never trained on."""

SPLIT_SEED: Final = 20_260
"""Every round must keep the same examples apart."""

EVALUATION_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train in one round.

    Attributes:
        epochs: Passes over the examples.
        batch_size: Examples per step.
        learning_rate: Step size of SGD.
        momentum: Momentum of SGD.
        seed: Of the order of the examples and of the model's own randomness.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, config: Mapping[str, object], *, seed: int) -> "Plan":
        """Return the task's recipe, with what a round says otherwise.

        Args:
            recipe: The task's.
            config: The round's: "epochs", "batch-size", "learning-rate", "momentum".
            seed: The device's, for this round.

        Raises:
            TrainingError: A value is no number, or out of range.
        """
        return cls(
            int(_number(config, "epochs", recipe.epochs, 1, 1000)),
            int(_number(config, "batch-size", recipe.batch_size, 1, 65536)),
            _number(config, "learning-rate", recipe.learning_rate, 1e-9, 1e3),
            _number(config, "momentum", recipe.momentum, 0.0, 0.9999),
            seed,
        )


def _number(
    config: Mapping[str, object], key: str, default: float, low: float, high: float
) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or not low <= value <= high:
        raise TrainingError(f"{key} is {value!r}, allowed are {low:g} to {high:g}")
    return value


def split_validation(examples: Examples) -> tuple[Examples, Examples]:
    """Return what to train on and what to validate on; the same in every round.

    Raises:
        TrainingError: There are too few examples.
    """
    count = len(examples)
    if count < 2:
        raise TrainingError(
            f"{count} examples: at least one to train on and one to validate on are needed",
            hint="Check the device's data file.",
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    held = max(1, round(count * VALIDATION))
    return examples[np.sort(order[held:])], examples[np.sort(order[:held])]


def evaluate(task: Task, parameters: Parameters, examples: Examples) -> dict[str, float]:
    """Measure a model.

    Returns:
        Sums: "eval-examples", "eval-loss", and the task's metrics with "eval-" before their names.

    Raises:
        TrainingError: The arrays are not the model's.
    """
    import torch

    with _one_thread():
        model = _model(task, parameters).eval()
        sums: dict[str, float] = {"eval-examples": 0.0, "eval-loss": 0.0}
        for start in range(0, len(examples), EVALUATION_BATCH):
            batch = examples[start : start + EVALUATION_BATCH]
            with torch.no_grad():
                outputs = model(torch.from_numpy(batch.inputs))
                loss = task.loss(outputs, torch.from_numpy(batch.targets))
            sums["eval-examples"] += len(batch)
            sums["eval-loss"] += float(loss) * len(batch)
            for name, value in task.metrics(outputs.numpy(), batch.targets).items():
                sums[f"eval-{name}"] = sums.get(f"eval-{name}", 0.0) + float(value)
    return sums


def train(
    task: Task, parameters: Parameters, examples: Examples, plan: Plan
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
    """Train a model.

    Returns:
        The trained arrays, and sums: "examples", and "loss" over the last epoch.

    Raises:
        TrainingError: The arrays are not the model's.
    """
    import torch

    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _model(task, parameters).train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=plan.learning_rate, momentum=plan.momentum
        )
        inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
        total = 0.0
        for _ in range(plan.epochs):
            total = 0.0
            for index in torch.split(torch.randperm(len(examples)), plan.batch_size):
                optimizer.zero_grad()
                loss = task.loss(model(inputs[index]), targets[index])
                loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
                optimizer.step()
                total += float(loss.detach()) * len(index)
        arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return arrays, {"examples": float(len(examples)), "loss": total}


def _model(task: Task, parameters: Parameters) -> "torch.nn.Module":
    import torch

    model = task.build_model()
    state = {name: torch.from_numpy(np.array(array)) for name, array in parameters.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(
            f"the model received is not that of the task {task.name!r}: {error}",
            hint="The device's app and the server's must be the same task.",
        ) from error
    return model


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
