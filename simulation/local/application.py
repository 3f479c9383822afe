"""The application on a device: it asks the model, and the model slot records how it went.

This is all that an integrator's program has to do; the agent uploads what was recorded.

    python -m wildflower.simulation.local.application --dir DEVICE --data EXAMPLES.npz
"""

import argparse
from pathlib import Path

from wildflower.client.inference import ModelSlot
from wildflower.strategies.task import Examples


def infer(directory: Path, examples: Examples) -> int:
    """Ask the device's model about every example; return how many answers were right."""
    right = 0
    with ModelSlot(directory) as slot:
        for row, target in zip(examples.inputs, examples.targets, strict=True):
            answer = slot.infer(row[None], labels=target[None])
            right += int(answer.predicted[0] == target)
    return right


def main() -> None:
    """Read the examples, ask the model, print how many answers were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    examples = Examples.open(options.data)
    right = infer(options.dir, examples)
    print(f"{right} of {len(examples)} answers were right")  # noqa: T201  its log is its output


if __name__ == "__main__":
    main()
