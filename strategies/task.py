"""What is learned: one `Task` from which training, export, gates and simulation take everything.

A task is found as `module:object`, as a `.py` file that defines `task`, or by the name of an entry
point in the group `wildflower.tasks`. Its module imports without torch: heavy imports belong into
the methods that need them, so that servers and command lines can name a task cheaply.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from wildflower.strategies.errors import TaskError

if TYPE_CHECKING:
    import torch

MEMBERS: Final = ("name", "labels", "recipe", "build_model", "loss", "metrics", "example", "load")


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled examples.

    Attributes:
        inputs: What the model takes, shape (examples, ...), float32.
        targets: What it should answer, shape (examples, ...).
    """

    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: slice | npt.NDArray[np.intp]) -> "Examples":
        return Examples(self.inputs[index], self.targets[index])

    def save(self, path: Path) -> None:
        """Write the examples as `.npz`."""
        with path.open("wb") as file:
            np.savez(file, inputs=self.inputs, targets=self.targets)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TaskError: No such file, or not one of ours.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = cls(arrays["inputs"].astype(np.float32, copy=False), arrays["targets"])
                count, targets = len(found.inputs), len(found.targets)
        except Exception as error:  # numpy and zipfile raise a dozen kinds
            raise TaskError(f"{path}: not an .npz file with inputs and targets: {error}") from error
        if count != targets:
            raise TaskError(f"{path}: {count} inputs, but {targets} targets")
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a client trains, unless a round says otherwise.

    Attributes:
        epochs: Passes over the local examples in one round.
        batch_size: Examples per step.
        learning_rate: Step size of SGD.
        momentum: Momentum of SGD, in [0, 1).
        clip: Largest absolute change of one parameter in one round that enters the sum.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    clip: float = 1.0


@runtime_checkable
class Task(Protocol):
    """What a user writes to have a model trained, built, rolled out and watched.

    An implementation must be deterministic: the same seed of torch's generator gives the same
    model, and `load` returns the examples of a file in a fixed order.
    """

    name: str
    """Name of the model's line: letters, digits, "-"; part of target groups' names."""

    labels: Sequence[str]
    """Names of the classes, in the order of the model's outputs."""

    recipe: Recipe
    """How a client trains, unless a round says otherwise."""

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh model; what it returns is exported as it stands, in eval mode."""
        ...

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean loss of a batch, a scalar."""
        ...

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        """Return named sums over a batch, such as {"correct": 31.0}; they are added up."""
        ...

    def example(self) -> npt.NDArray[np.float32]:
        """Return one input with its batch axis, shape (1, ...), for export."""
        ...

    def load(self, path: Path) -> Examples:
        """Return the examples in a device's data file."""
        ...


def find_task(reference: str) -> Task:
    """Return the task that `reference` names.

    Args:
        reference: `module:object`, a path to a `.py` file that defines `task`, or the name of an
            entry point in the group `wildflower.tasks`.

    Raises:
        TaskError: It cannot be found or imported, or it lacks a member.
    """
    found = _resolve(reference)
    missing = [name for name in MEMBERS if not hasattr(found, name)]
    if missing:
        raise TaskError(
            f"{reference} is no task: it lacks {', '.join(missing)}",
            hint="See wildflower.strategies.task.Task for what a task has.",
        )
    task: Task = found
    return task


def _resolve(reference: str) -> Any:
    try:
        if reference.endswith(".py"):
            return _from_file(Path(reference))
        if ":" in reference:
            module, _, attribute = reference.partition(":")
            return getattr(importlib.import_module(module), attribute)
        for entry in entry_points(group="wildflower.tasks", name=reference):
            return entry.load()
    except TaskError:
        raise
    except Exception as error:  # the module is the user's: it may raise anything
        raise TaskError(f"task {reference!r} cannot be imported: {error!r}") from error
    raise TaskError(
        f"there is no task {reference!r}",
        hint="Give module:object, a .py file that defines `task`, or an entry point's name.",
    )


def _from_file(path: Path) -> Any:
    name = f"wildflower_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise TaskError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.task
