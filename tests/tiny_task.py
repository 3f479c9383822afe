"""A task that trains in milliseconds: which side of a line a point lies on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildflower.strategies.task import Examples, Recipe

if TYPE_CHECKING:
    import torch


def points(count: int, *, seed: int = 0) -> Examples:
    """Return labelled points; a line separates them."""
    inputs = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] > inputs[:, 1]).astype(np.int64))


class Tiny:
    name: str = "tiny"
    labels: Sequence[str] = ("left", "right")
    recipe: Recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.5, momentum=0.0, clip=4.0)

    def build_model(self) -> "torch.nn.Module":
        from torch import nn

        return nn.Linear(2, 2)

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        return {"correct": float((outputs.argmax(axis=1) == targets).sum())}

    def example(self) -> npt.NDArray[np.float32]:
        return np.zeros((1, 2), np.float32)

    def load(self, path: Path) -> Examples:
        return Examples.open(path)


task = Tiny()
