"""What differential privacy costs, and whether its accounting is right: `python -m benchmarks.dp`.

    ghost_over_plain         seconds of a DP-SGD step by ghost clipping over those of a plain step
    skellam16_rmse_ratio     error of distributed Skellam noise in 16-bit residues over that of
                             central Gaussian noise of the same multiplier
    anchors_reproduced       published epsilons that our accounting finds, of anchors_total

Steps are timed interleaved and the medians compared, on the models of the table, batch 128, one
thread; `ghost_over_plain` is the largest of their ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks._outcome import tell
from wildflower.client.dp_training import PrivatePlan, train_privately
from wildflower.simulation.fleet import seeded_entropy
from wildflower.strategies.arrays import Parameters, Update
from wildflower.strategies.dp.anchors import anchors
from wildflower.strategies.dp.contribution import Contribution
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.private_task import PrivateTask
from wildflower.strategies.dp.sgd import event_of
from wildflower.strategies.initial import initial_model
from wildflower.strategies.task import Examples, Recipe

if TYPE_CHECKING:
    import torch

BATCH: Final = 128


class Trial:
    """A model to be timed, as a task."""

    name: str
    labels: Sequence[str] = tuple("0123456789")
    recipe: Recipe = Recipe(batch_size=BATCH)

    def __init__(self, name: str, make: "Callable[[], torch.nn.Module]") -> None:
        self.name, self._make = name, make

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh model."""
        return self._make()

    def loss(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def metrics(self, outputs: object, targets: object) -> dict[str, float]:
        """Return no metrics."""
        del outputs, targets
        return {}

    def example(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        """Return one input."""
        return np.zeros((1, 1, 28, 28), np.float32)

    def load(self, path: object) -> Examples:
        """Return nothing: the examples are made here."""
        raise NotImplementedError(path)


def small_cnn() -> "torch.nn.Module":
    """Return the CNN of 26 thousand parameters that papers train on MNIST."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def mlp() -> "torch.nn.Module":
    """Return a perceptron of 536 thousand parameters."""
    from torch import nn

    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 512), nn.ReLU()),
        *(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


MODELS: Final = {"CNN of 26k parameters": small_cnn, "MLP of 536k parameters": mlp}


def plain_steps(trial: Trial, model: Parameters, examples: Examples, steps: int) -> float:
    """Return the seconds of a plain step."""
    import torch

    module = trial.build_model()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in model.items()})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    began = time.process_time()
    for step in range(steps):
        index = torch.randperm(len(examples))[:BATCH]
        optimizer.zero_grad()
        trial.loss(module(inputs[index]), targets[index]).backward()  # type: ignore[no-untyped-call]  # torch does not type it
        optimizer.step()
        del step
    return (time.process_time() - began) / steps


def ghost_steps(trial: Trial, model: Parameters, examples: Examples, steps: int) -> float:
    """Return the seconds of a private step, as a device makes it, its preparation included."""
    plan = PrivatePlan(1.0)
    epochs = steps * BATCH // len(examples)
    event = event_of(plan.noise, examples=len(examples), batch_size=BATCH, epochs=epochs)
    began = time.process_time()
    train_privately(
        PrivateTask(trial),
        model,
        examples,
        event,
        private=plan,
        learning_rate=0.01,
        momentum=0.0,
        entropy=bytes(32),
    )
    return (time.process_time() - began) / event.rounds


def ghost_over_plain(make: "Callable[[], torch.nn.Module]", *, quick: bool) -> tuple[float, float]:
    """Return the seconds of a plain and of a private step."""
    trial = Trial("trial", make)
    model = initial_model(trial, 0)
    rng = np.random.default_rng(0)
    count = 8 * BATCH
    inputs = rng.random((count, 1, 28, 28), dtype=np.float32)
    examples = Examples(inputs, rng.integers(0, 10, count))
    steps, pairs = (16, 3) if quick else (64, 7)
    plain, ghost = [], []
    for _ in range(pairs):
        plain.append(plain_steps(trial, model, examples, steps))
        ghost.append(ghost_steps(trial, model, examples, steps))
    return statistics.median(plain), statistics.median(ghost)


def skellam_ratio(*, quick: bool) -> float:
    """Return the root mean square error of 16-bit Skellam sums over that of central noise."""
    size, clients, noise = (4096 if quick else 131_072), (20 if quick else 100), 1.0
    entropy, rng = seeded_entropy("benchmarks.dp"), np.random.default_rng(0)
    encoding = SkellamEncoding.for_cohort(
        Contribution(size, 1.0),
        noise_multiplier=noise,
        clients=clients,
        min_cohort=clients,
        rotation=entropy(16),
        bits=16,
    )
    exact, total = np.zeros(size), np.zeros(encoding.length, encoding.dtype)
    for _ in range(clients):
        vector = rng.normal(size=size).astype(np.float32)
        vector /= np.float32(np.linalg.norm(vector) * 1.0001)
        exact += vector
        total += encoding.encode(Update(vector, 1.0, {}), entropy(32))
    wrong = encoding.decode(total, clients).vector - exact
    return float(np.sqrt(np.mean(wrong**2)) / noise)


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, a smaller model")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rows, ratios = [], []
    for name, make in MODELS.items():
        plain, ghost = ghost_over_plain(make, quick=options.quick)
        ratios.append(ghost / plain)
        told = f"{plain * 1e3:.1f} ms plain, {ghost * 1e3:.1f} ms ghost, {ratios[-1]:.2f} times"
        rows.append((f"step, {name}", told))
    ratio = skellam_ratio(quick=options.quick)
    rows.append(("16-bit Skellam over central noise", f"{ratio:.4f}"))
    found = anchors()
    rows += [
        (
            f"{each.source}: {each.setting}",
            f"{each.published:g} published, {each.found:.6g} found"
            + ("" if each.is_reproduced else ", NOT REPRODUCED"),
        )
        for each in found
    ]
    figures = {
        "ghost_over_plain": round(max(ratios), 3),
        "skellam16_rmse_ratio": round(ratio, 4),
        "anchors_reproduced": sum(each.is_reproduced for each in found),
        "anchors_total": len(found),
    }
    tell("dp", figures, rows)


if __name__ == "__main__":
    main()
