"""Which operator sets a runtime knows, without starting it.

A model names the ONNX operator set that it was written in; a runtime that does not know that set
refuses the model when it loads it, which on a device is after everything was fetched. The answer
follows from the runtime's version, so it costs no import of a runtime into an agent that is idle.

ONNX Runtime reads every set from 7 up to a highest one (its `docs/Versioning.md`). The table was
measured: each version was asked to load models of rising sets until it refused one. A test asks the
installed one again.
"""

from bisect import bisect_right
from typing import Final

ONNX_RUNTIME: Final = (
    ((1, 20), 21),
    ((1, 21), 22),
    ((1, 23), 23),
    ((1, 24), 25),
    ((1, 25), 26),
    ((1, 32), 28),
)
"""From which version on which set is the highest."""
LAST_MEASURED: Final = (1, 32)


def highest_opset(runtime: str, version: tuple[int, ...]) -> int | None:
    """Return the highest operator set that a runtime knows; None if nobody has measured it.

    Args:
        runtime: Distribution name of the runtime.
        version: Its version's numbers, as `decision.version_key` gives them.

    Example:
        >>> highest_opset("onnxruntime", (1, 22, 1))
        22
        >>> highest_opset("onnxruntime", (1, 99)) is None
        True
    """
    place = bisect_right([since for since, _ in ONNX_RUNTIME], version[:2])
    if runtime != "onnxruntime" or not place or version[:2] > LAST_MEASURED:
        return None
    return ONNX_RUNTIME[place - 1][1]
