"""The model and the data of one partition."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build_model() -> nn.Module:
    """Return a fresh network."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load_partition(number: int, of: int) -> tuple[DataLoader, DataLoader]:
    """Return loaders of one partition's training and validation examples."""
    inputs, targets = load_digits(return_X_y=True)
    mine = np.arange(number, len(inputs), of)
    examples = TensorDataset(
        torch.tensor(inputs[mine] / 16, dtype=torch.float32), torch.tensor(targets[mine])
    )
    train, valid = torch.utils.data.random_split(
        examples, [0.8, 0.2], generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(train, batch_size=16, shuffle=True), DataLoader(valid, batch_size=64)


def train(model: nn.Module, batches: DataLoader, epochs: int, learning_rate: float) -> float:
    """Train in place; return the mean loss of the last epoch."""
    optimiser = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for inputs, targets in batches:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader) -> float:
    """Return the share of right answers."""
    right = seen = 0
    for inputs, targets in batches:
        right += int((model(inputs).argmax(dim=1) == targets).sum())
        seen += len(targets)
    return right / seen
