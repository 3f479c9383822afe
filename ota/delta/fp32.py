"""An fp32 release that is the release before it plus coded steps: a tenth of the bytes.

    new = old + code * step      16-bit codes, one step for each tensor, a power of two

Lossless deltas of fp32 stop at about two thirds, because the low bits of an update are noise. Here
the release *is* what can be coded. Both sides compute it with the same two float32 roundings, so
the device's file equals the server's bit for bit. The next release's codes are taken from the fp32
master to this release, so what rounding left out is made good then: the error that is fed back is
kept nowhere but in the release itself, and is lost no sooner than that.

Steps are powers of two so that they need not be kept either: `steps_between` finds them in the
files. And so that several releases add up: on the grid of `ready` every sum is exact, and the
difference of any two releases is whole steps again.

It works on the bytes of any file whose tensors are known, ONNX and ORT alike.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.delta.segments import MIN_REGION, Kind, Region
from wildflower.ota.errors import DeltaError

Weights = npt.NDArray[np.float32]

SHARE: Final = 0.75  # of an update's own size: 2.5 bits a weight
SHARES: Final = (SHARE, SHARE / 2, SHARE / 4, SHARE / 8)
"""What a release line tries, the shortest delta first; each half costs a bit a weight."""
GAUSSIAN: Final = (
    1.2533  # from mean magnitude to standard deviation: a few outliers inflate it less
)
MAX_CODE: Final = 32767
GRID: Final = 22  # bits below the largest weight; of fp32's 24, two are left for weights to grow
SAMPLE: Final = 256  # elements that a step is tried on first


def ready(data: bytes, regions: Sequence[Region]) -> bytes:
    """Return a release that others can follow: its tensors on a grid as fine as fp32 nearly is.

    Args:
        data: The file.
        regions: Its tensors.
    """
    made = bytearray(data)
    for one in regions:
        if one.kind is Kind.FLOAT32 and one.length >= MIN_REGION:
            values = _values(data, one)
            grid = _grid(values)
            if grid:
                rounded = np.rint(values.astype(np.float64) / grid) * grid
                made[one.offset : one.end] = rounded.astype("<f4").tobytes()
    return bytes(made)


def coded_release(
    previous: bytes,
    master: bytes,
    previous_regions: Sequence[Region],
    master_regions: Sequence[Region],
    *,
    share: float = SHARE,
) -> bytes:
    """Return the master with its tensors moved to where whole steps from the last release reach.

    Args:
        previous: The last release.
        master: The new model, unrounded.
        previous_regions: The last release's tensors.
        master_regions: The master's tensors.
        share: Size of a step, relative to the size of the tensor's update; above 0.

    Raises:
        DeltaError: No tensor of the two files is the same.
    """
    data, is_followed = bytearray(master), False
    for old, new in _shared(previous_regions, master_regions):
        found = coded(_values(previous, old), _values(master, new), share)
        if found is not None:
            is_followed = True
            data[new.offset : new.end] = found[0].astype("<f4").tobytes()
    if not is_followed:
        raise DeltaError(
            "the two fp32 files share no tensor that changed",
            hint="A model of another architecture goes out whole.",
        )
    return bytes(data)


def coded(before: Weights, after: Weights, share: float) -> tuple[Weights, float] | None:
    """Return the values that are whole steps from `before` and near `after`, and the step.

    None where steps are of no use: nothing changed, or values are not finite.
    """
    with np.errstate(all="ignore"):  # infinities and NaNs are what is looked for
        update = after.astype(np.float64) - before
        size = share * GAUSSIAN * float(np.mean(np.abs(update)))
        if not (np.isfinite(size) and size > np.finfo(np.float32).tiny):
            return None
        step = max(float(2.0 ** np.rint(np.log2(size))), _grid(before))
        codes = np.rint(update / step).clip(-MAX_CODE, MAX_CODE)
        values = _moved(before, codes, step)
    return (values, step) if np.isfinite(values).all() else None


def steps_between(
    base: bytes, target: bytes, base_regions: Sequence[Region], target_regions: Sequence[Region]
) -> dict[str, float]:
    """Return by name the step of each fp32 tensor that is whole steps from the one before.

    Args:
        base: A release.
        target: A later one.
        base_regions: Its tensors.
        target_regions: The later one's tensors.
    """
    found = {
        new.name: _step_between(_values(base, old), _values(target, new))
        for old, new in _shared(base_regions, target_regions)
    }
    return {name: step for name, step in found.items() if step}


def _step_between(before: Weights, after: Weights) -> float:
    """Return the largest power of two that whole codes of make one of the other; 0 for none."""
    with np.errstate(all="ignore"):
        update = after.astype(np.float64) - before
        largest = float(np.abs(update).max())
        if not np.isfinite(largest) or largest <= np.finfo(np.float32).tiny:
            return 0.0
        top = int(np.log2(largest)) + 1
        changed = np.flatnonzero(update)[:SAMPLE]
        for exponent in range(top, top - MAX_CODE.bit_length() - 1, -1):
            step = 2.0**exponent
            if all(
                _is_reached(before[part], after[part], update[part], step)
                for part in (changed, slice(None))
            ):
                return step
    return 0.0


def _is_reached(
    before: Weights, after: Weights, update: npt.NDArray[np.float64], step: float
) -> bool:
    codes = np.rint(update / step)
    is_whole = np.array_equal(_moved(before, codes, step).view("<u4"), after.view("<u4"))
    return is_whole and float(np.abs(codes).max()) <= MAX_CODE


def _moved(before: Weights, codes: npt.NDArray[np.float64], step: float) -> Weights:
    """Return the new values by two roundings, never one: as the decoder does it."""
    moved: Weights = before + codes.astype(np.float32) * np.float32(step)
    return moved


def _grid(values: Weights) -> float:
    """Return the spacing on which sums of weights like these are exact; 0 where there is none."""
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        return 0.0
    grid = float(np.ldexp(1.0, int(np.frexp(largest)[1]) - GRID))
    return grid if largest and grid > np.finfo(np.float32).tiny else 0.0


def _shared(
    old_regions: Sequence[Region], new_regions: Sequence[Region]
) -> Iterator[tuple[Region, Region]]:
    """Yield each fp32 tensor that both files have in one size."""
    known = {one.name: one for one in old_regions}
    for new in new_regions:
        old = known.get(new.name)
        if old is None or new.kind is not Kind.FLOAT32 or new.length < MIN_REGION:
            continue
        if (old.kind, old.length) == (new.kind, new.length):
            yield old, new


def _values(data: bytes, one: Region) -> Weights:
    return np.frombuffer(data, "<f4", one.length // 4, one.offset)
