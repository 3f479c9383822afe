"""An fp32 release that is the release before it plus coded steps: a tenth of the bytes.

    new = old + code * step      16-bit codes, one step for each tensor

Lossless deltas of fp32 stop at about two thirds, because the low bits of an update are noise. Here
the release *is* what can be coded. Both sides compute it with the same two float32 roundings, so
the device's file equals the server's bit for bit; and as the next release's codes are taken from
the fp32 master to this release, what rounding left out is made good then.

It works on the bytes of any file whose tensors are known, ONNX and ORT alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.delta.segments import MIN_REGION, Kind, Region
from wildflower.ota.errors import DeltaError

Weights = npt.NDArray[np.float32]

SHARE: Final = 0.6  # of an update's own size: 2.8 bits a weight
GAUSSIAN: Final = (
    1.2533  # from mean magnitude to standard deviation: a few outliers inflate it less
)
MAX_CODE: Final = 32767


@dataclass(frozen=True, slots=True)
class CodedRelease:
    """A release and what codes it.

    Attributes:
        data: The file.
        steps: By tensor's name, its step; what `ota.delta.encode.diff` wants to know.
    """

    data: bytes = field(repr=False)
    steps: dict[str, float]


def coded_release(
    previous: bytes,
    master: bytes,
    previous_regions: Sequence[Region],
    master_regions: Sequence[Region],
    *,
    share: float = SHARE,
) -> CodedRelease:
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
    known = {one.name: one for one in previous_regions}
    data, steps = bytearray(master), dict[str, float]()
    for new in master_regions:
        old = known.get(new.name)
        if old is None or new.kind is not Kind.FLOAT32 or new.length < MIN_REGION:
            continue
        if (old.kind, old.length) != (new.kind, new.length):
            continue
        before = np.frombuffer(previous, "<f4", new.length // 4, old.offset)
        after = np.frombuffer(master, "<f4", new.length // 4, new.offset)
        found = coded(before, after, share)
        if found is not None:
            values, steps[new.name] = found
            data[new.offset : new.end] = values.astype("<f4").tobytes()
    if not steps:
        raise DeltaError(
            "the two fp32 files share no tensor that changed",
            hint="A model of another architecture goes out whole.",
        )
    return CodedRelease(bytes(data), steps)


def coded(before: Weights, after: Weights, share: float) -> tuple[Weights, float] | None:
    """Return the values that are whole steps from `before` and near `after`, and the step.

    None where steps are of no use: nothing changed, or values are not finite.
    """
    with np.errstate(all="ignore"):  # infinities and NaNs are what is looked for
        update = after.astype(np.float64) - before
        step = np.float32(share * GAUSSIAN * np.mean(np.abs(update)))
        if not (np.isfinite(step) and step > np.finfo(np.float32).tiny):
            return None
        codes = np.rint(update / float(step)).clip(-MAX_CODE, MAX_CODE).astype(np.float32)
        moved = codes * step  # two roundings, never one: as the decoder does it
        values = before + moved
    return (values, float(step)) if np.isfinite(values).all() else None
