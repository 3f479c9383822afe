"""The stored form of a round's sum, and the figures that its statistics give.

from_bytes(to_bytes(total)) == total, bit for bit: a resumed round goes on from what was stored.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.errors import StoredStateError
from wildflower.strategies.fixed_point import CLIPPED
from wildflower.strategies.round_messages import EXAMPLES, MEAN

HEADER: Final = struct.Struct("<8sI")
MAGIC: Final = b"WFsum001"
UNREADABLE: Final = (
    *(struct.error, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
EVALUATED: Final = "eval-examples"
EVALUATION: Final = "eval-"


def to_bytes(total: Sum) -> bytes:
    """Return the stored form: magic, length of the text, the text (JSON), little-endian float64."""
    told = {
        "weight": total.weight,
        "clients": total.clients,
        "statistics": dict(total.statistics),
        "size": total.vector.size,
    }
    text = json.dumps(told, sort_keys=True).encode()
    return HEADER.pack(MAGIC, len(text)) + text + total.vector.astype("<f8", copy=False).tobytes()


def from_bytes(data: bytes) -> Sum:
    """Return the sum that `to_bytes` stored.

    Raises:
        StoredStateError: Not a stored sum.
    """
    try:
        magic, length = HEADER.unpack_from(data)
        told = json.loads(data[HEADER.size : HEADER.size + length])
        vector = np.frombuffer(data, "<f8", offset=HEADER.size + length).astype(np.float64)
        if magic != MAGIC or vector.size != told["size"]:
            raise ValueError(f"begins with {magic!r}, {vector.size} elements")
        statistics = {str(name): float(value) for name, value in told["statistics"].items()}
        return Sum(vector, float(told["weight"]), statistics, int(told["clients"]))
    except UNREADABLE as error:
        raise StoredStateError(f"not a stored sum: {error}") from error


@dataclass(frozen=True, slots=True)
class Figures:
    """What the statistics of a sum say.

    Attributes:
        trained: Of the round: "examples", "train_loss", "clipped" (share of the elements).
        measured: Of the model that the devices received: "accuracy", "loss" and "eval_examples";
            empty if nobody measured it.
    """

    trained: Mapping[str, float]
    measured: Mapping[str, float]


def figures(total: Sum, *, evaluate_only: bool = False) -> Figures:
    """Return the figures of a sum.

    Args:
        total: The sum.
        evaluate_only: Whether the devices only measured: then an app's own means, too, are of the
            model they received.
    """
    sums = total.statistics
    means = {
        name.removeprefix(MEAN): value / sums[EXAMPLES]
        for name, value in sums.items()
        if name.startswith(MEAN) and value and sums.get(EXAMPLES)
    }
    trained = {} if evaluate_only else _trained(total) | means
    measured = _measured(sums) | (means if evaluate_only else {})
    return Figures(_finite(trained), _finite(measured))


def _trained(total: Sum) -> dict[str, float]:
    sums = total.statistics
    examples = sums.get(EXAMPLES, 0.0)
    found = {"examples": examples}
    if examples and "loss" in sums:
        found["train_loss"] = sums["loss"] / examples
    if total.vector.size and total.clients:
        found["clipped"] = sums.get(CLIPPED, 0.0) / (total.vector.size * total.clients)
    return found


def _measured(sums: Mapping[str, float]) -> dict[str, float]:
    examples = sums.get(EVALUATED, 0.0)
    if not examples:
        return {}
    found = {
        name.removeprefix(EVALUATION): value / examples
        for name, value in sums.items()
        if name.startswith(EVALUATION) and name != EVALUATED
    }
    if "correct" in found:
        found["accuracy"] = found.pop("correct")
    return {**found, "eval_examples": examples}


def _finite(found: Mapping[str, float]) -> dict[str, float]:
    """Leave out what a device's NaN has spoilt: a figure that is none is not shown."""
    return {name: value for name, value in found.items() if math.isfinite(value)}
