"""How far each tensor of an int8 release may lag behind the model: where a byte saved costs least.

Held integers lag behind the fp32 master, and layers differ by two orders of magnitude in what that
does to the answers for each byte it saves: most of a transformer's bytes are in layers that hardly
mind, and its last layer minds most. So each tensor's lag at the largest hold is tried alone, in the
fp32 model. What it does at a smaller one follows from the lag itself: errors go by its square.

    harm(tensor, hold) = harm(tensor, largest) * lag(tensor, hold)^2 / lag(tensor, largest)^2

and each tensor gets the hold with the least harm + price * bits. One price serves all tensors; a
high one makes short deltas. All releases are followed from the same base by the same scales, so
every mixture of them keeps the bounds of `ota.delta.quantiser`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.build.followed import SUFFIX, steps_of
from wildflower.ota.delta.tables import entropy

PRICES: Final = tuple(2.0 ** (half / 2) for half in range(5, -9, -1))
"""Of a bit, relative to the middle one of all tensors, the shortest delta first."""
MOST: Final = 48
"""Tensors that are tried alone, those with the most to save; each takes a run of the model."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What one tensor costs, by release: from no hold to the largest.

    Attributes:
        bits: Of its difference from the base; fewer in the last release than in the first.
        lag: Squared distance of its integers from those of the first; above 0 in the last.
        change: What the largest hold adds to the weights, in their own units.
    """

    bits: npt.NDArray[np.float64]
    lag: npt.NDArray[np.float64]
    change: npt.NDArray[np.float64]

    @property
    def saving(self) -> float:
        """Bits that the largest hold saves."""
        return float(self.bits[0] - self.bits[-1])


def mixtures(
    base: bytes, held: Sequence[bytes], master: bytes, error: Callable[[bytes], float]
) -> Iterator[bytes]:
    """Yield releases to try, the shortest delta first.

    Args:
        base: The last release.
        held: Releases that follow it by the same scales, from no hold to the largest.
        master: The model in fp32.
        error: Measures how far a build's answers are from the fp32 model's.
    """
    tensors = _tensors(base, held)
    harms = {
        name: error(changed(master, name, one.change)) * one.lag / one.lag[-1]
        for name, one in tensors.items()
    }
    prices = [harms[name][-1] / one.saving for name, one in tensors.items()]
    middle = float(np.median(prices)) if prices else 0.0
    seen = set[tuple[int, ...]]()
    for price in PRICES:
        of_bit = price * (middle or 1.0)  # where no lag does any harm, each bit saved is a gain
        levels = {
            name: int((harms[name] + of_bit * one.bits).argmin()) for name, one in tensors.items()
        }
        if tuple(levels.values()) not in seen:
            seen.add(tuple(levels.values()))
            yield mixed(held, levels)


def changed(master: bytes, name: str, change: npt.NDArray[np.float64]) -> bytes:
    """Return an fp32 model with something added to one of its weights.

    It is tried there and not in int8, where any change of a weight tips other roundings too.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(master)
    for one in model.graph.initializer:
        if one.name == name:
            values = (numpy_helper.to_array(one) + change).astype(np.float32)
            one.CopyFrom(numpy_helper.from_array(values, name))
    return bytes(model.SerializeToString())


def mixed(held: Sequence[bytes], levels: Mapping[str, int]) -> bytes:
    """Return the release without hold, some of its tensors from the others.

    Args:
        held: The releases.
        levels: By a weight's name, which of them it is from.
    """
    import onnx

    models = [onnx.load_from_string(one) for one in held]
    for at, one in enumerate(models[0].graph.initializer):
        level = levels.get(one.name.removesuffix(SUFFIX), 0)
        if one.name.endswith(SUFFIX) and level:
            one.CopyFrom(models[level].graph.initializer[at])
    return bytes(models[0].SerializeToString(deterministic=True))


def _tensors(base: bytes, held: Sequence[bytes]) -> dict[str, _Tensor]:
    """Return by name what a hold can save much of."""
    before, after = steps_of(base), [steps_of(one) for one in held]
    found = dict[str, _Tensor]()
    for name, (exact, steps) in after[0].items():
        integers = [one[name][0] for one in after]
        bits = [_bits(one - before[name][0]) for one in integers]
        lag = [float(((one - exact) ** 2).sum()) for one in integers]
        if bits[0] > bits[-1]:
            change = (integers[-1] - exact) * steps
            found[name] = _Tensor(np.array(bits), np.array(lag), change)
    most = sorted(found, key=lambda name: found[name].saving, reverse=True)[:MOST]
    return {name: found[name] for name in most}


def _bits(difference: npt.NDArray[np.int32]) -> float:
    """Return the order-0 entropy of what changed."""
    counts = np.bincount(difference.reshape(-1) & 255, minlength=256)
    return float(entropy(counts.astype(np.float64)))
