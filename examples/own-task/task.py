"""A task of one's own: handwritten digits of 8 x 8 pixels, and a network of two layers.

The data ships with scikit-learn. `python task.py digits.npz` writes it as the file that
`wildflower local up --data` deals out to devices.

    wildflower local up --devices 4 --model examples/own-task/task.py --data digits.npz
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildflower.strategies.task import Examples, Recipe

if TYPE_CHECKING:
    import torch


class SmallDigits:
    """Which digit is it? 64 grey values in, ten scores out."""

    name: str = "small-digits"
    labels: Sequence[str] = tuple("0123456789")
    recipe: Recipe = Recipe(epochs=5, batch_size=16, learning_rate=0.05)

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh network; torch's seed decides its first weights."""
        from torch import nn

        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        """Return how many answers are right."""
        return {"correct": float((outputs.argmax(axis=1) == targets).sum())}

    def example(self) -> npt.NDArray[np.float32]:
        """Return one input with its batch axis."""
        return np.zeros((1, 64), np.float32)

    def load(self, path: Path) -> Examples:
        """Return the examples in a device's file."""
        return Examples.open(path)


task = SmallDigits()
"""What `--model task.py` looks for."""


def digits() -> Examples:
    """Return all 1,797 images, grey values in [0, 1], in a fixed random order."""
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    return Examples((inputs[order] / 16).astype(np.float32), targets[order].astype(np.int64))


if __name__ == "__main__":
    digits().save(Path(sys.argv[1]))
