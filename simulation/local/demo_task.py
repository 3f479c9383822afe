"""The demo's task: handwritten digits, a small convolutional network.

No batch normalisation: its running means are no weights, and averaging them over devices with
different digits spoils the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildflower.strategies.task import Examples, Recipe

if TYPE_CHECKING:
    import torch


class Digits:
    """28 x 28 grey digits, ten classes; see `wildflower.strategies.task.Task`."""

    name: str = "digits"
    labels: Sequence[str] = tuple(str(digit) for digit in range(10))
    recipe: Recipe = Recipe(epochs=5, batch_size=16, learning_rate=0.02, momentum=0.9, clip=1.0)

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh network of about 29,000 parameters."""
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=1, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        """Return how many answers are right, as "correct"."""
        return {"correct": float((outputs.argmax(axis=1) == targets).sum())}

    def example(self) -> npt.NDArray[np.float32]:
        """Return one empty image."""
        return np.zeros((1, 1, 28, 28), np.float32)

    def load(self, path: Path) -> Examples:
        """Return the examples in a device's `.npz` file."""
        return Examples.open(path)


task = Digits()
