"""A tiny task for the build's tests: four kinds of 8x8 pictures, told apart by a small net."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wildflower.strategies.arrays import to_safetensors
from wildflower.strategies.task import Examples, Recipe

SIDE = 8
ROWS = 500


class Net(nn.Module):
    """Convolution, normalisation and two dense layers: what the recipes must handle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.dense = nn.Linear(16 * 16, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        x = torch.relu(self.dense(x.flatten(1)))
        answer: torch.Tensor = self.head(x)
        return answer


class Quarters:
    """Which quarter of the picture is bright?"""

    name = "quarters"
    labels: Sequence[str] = ("upper-left", "upper-right", "lower-left", "lower-right")
    recipe = Recipe()

    def build_model(self) -> nn.Module:
        return Net()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> Mapping[str, float]:
        return {"correct": float((outputs.argmax(1) == targets).sum())}

    def example(self) -> npt.NDArray[np.float32]:
        return np.zeros((1, 1, SIDE, SIDE), np.float32)

    def load(self, path: Path) -> Examples:
        return Examples.open(path)


class Spectral(Net):
    """A net with an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        addend: torch.Tensor = torch.special.i1e(x).sum()
        return super().forward(x) + addend


class Spectrum(Quarters):
    """The task of a model that cannot be exported."""

    def build_model(self) -> nn.Module:
        return Spectral()


task = Quarters()
unexportable = Spectrum()


def examples(rows: int = ROWS, seed: int = 0) -> Examples:
    """Return pictures whose bright quarter is their class."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, rows)
    inputs = rng.random((rows, 1, SIDE, SIDE), np.float32) * 0.6
    for row, target in enumerate(targets):
        top, left = (target // 2) * 4, (target % 2) * 4
        inputs[row, 0, top : top + 4, left : left + 4] += 0.4
    return Examples(inputs, targets)


def trained(epochs: int = 6) -> nn.Module:
    """Return a net that knows its quarters; equal in every call."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model, data = Net(), examples(seed=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    for _ in range(epochs):
        for at in range(0, len(data), 50):
            optimiser.zero_grad()
            loss = task.loss(model(inputs[at : at + 50]), targets[at : at + 50])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
    return model.eval()


def model_bytes(model: nn.Module) -> bytes:
    """Return a net's safetensors file."""
    return to_safetensors({name: part.numpy() for name, part in model.state_dict().items()})
