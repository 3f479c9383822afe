"""A task as DP-SGD can train it: without layers that mix examples.

BatchNorm makes what a model says of one example depend on the others of its batch, so no gradient
is one example's. It is replaced by GroupNorm, by Opacus' own rules. That changes the model: its
arrays have other names and no running statistics. So device and server use the same `PrivateTask`
in a private training: who makes the initial model, who trains, who exports. An exported BatchNorm
would use statistics that nobody trained. The simplest way to that is a task's file that ends with

    task = PrivateTask(MyTask())
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildflower.strategies.task import Examples, Recipe, Task

if TYPE_CHECKING:
    import torch


class PrivateTask:
    """A task whose model has GroupNorm where the task's own has BatchNorm; a `Task` itself.

    Args:
        task: The task.
    """

    name: str
    labels: Sequence[str]
    recipe: Recipe

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name, self.labels, self.recipe = task.name, task.labels, task.recipe

    @classmethod
    def of(cls, task: Task) -> "PrivateTask":
        """Return the task as DP-SGD can train it; a private one is that already."""
        return task if isinstance(task, cls) else cls(task)

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh model without layers that mix examples."""
        with quiet_opacus():
            from opacus.validators import ModuleValidator

            fixed: torch.nn.Module = ModuleValidator.fix(self.task.build_model())
        return fixed

    def replaced(self) -> int:
        """Return how many layers of the task's own model are replaced."""
        with quiet_opacus():
            from opacus.validators import ModuleValidator

            return len(ModuleValidator.validate(self.task.build_model()))

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the task's mean loss of a batch."""
        return self.task.loss(outputs, targets)

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        """Return the task's named sums over a batch."""
        return self.task.metrics(outputs, targets)

    def example(self) -> npt.NDArray[np.float32]:
        """Return one of the task's inputs."""
        return self.task.example()

    def load(self, path: Path) -> Examples:
        """Return the task's examples in a file."""
        return self.task.load(path)


@contextlib.contextmanager
def quiet_opacus() -> Iterator[None]:
    """Keep Opacus' warnings out of the log: what they say is in `client.dp_training`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
