"""An artifact made for its delta: from the last release, or to the next one from the first.

Where it is not as good as the model's own build, that one is released. The judge's rows are those
that calibrate: the rows of the gates have no part in what is built. Nor do the gates need to trust
it: what they refuse is dropped for the model's own build.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from wildflower.ota.build.choice import Choice, Quality, Tolerance, Way, choose_fp32, choose_int8
from wildflower.ota.build.gates import Precision
from wildflower.ota.build.line import Stage
from wildflower.ota.build.quantise import prepared
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import DeltaError, QuantiseError

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

STRICT: Final = Tolerance(loss=0.01, agreement=0.0)
"""A shorter way is worth no answer: none more may differ from the fp32 model's."""
NEAR: Final = Tolerance(loss=0.01, agreement=0.003)
"""Of fp32: its own build differs nowhere, and a close call in 300 may tip until the next round."""
CERTAIN: Final = 1e-3
"""Loss of a row below which answers are equally good: nothing is gained by more certainty."""
SOME: Final = 64  # rows that tell which tensors may lag; answers are numbers there, not votes
LIMITS: Final = {False: 127, True: 64}  # largest integer of a weight, by whether 7 bits hold it
SUCCEED: Final = Stage("succeed", 3, {"loss": STRICT.loss, "agreement": STRICT.agreement})
SUCCEED_FP32: Final = Stage("succeed-fp32", 1, {"loss": NEAR.loss, "agreement": NEAR.agreement})


class Measures(Protocol):
    """Says how good a build is; `Judge` does."""

    def __call__(self, model: bytes, /) -> Quality:
        """Return the quality of a model's file."""
        ...

    def error(self, model: bytes, /) -> float:
        """Return how far its answers are from the fp32 model's, at least 0."""
        ...


@dataclass(frozen=True, slots=True)
class Judge:
    """Measures builds on rows that are the operator's own.

    Attributes:
        inputs: Shape (n, ...), float32.
        targets: Shape (n,), indices of classes.
        answers: What the fp32 model answers, shape (n, classes).
    """

    inputs: Array = field(repr=False)
    targets: npt.NDArray[Any] = field(repr=False)
    answers: Array = field(repr=False)

    def __call__(self, model: bytes) -> Quality:
        """Return the quality of a model's file."""
        outputs = _answers(model, self.inputs)
        moved = outputs - outputs.max(axis=1, keepdims=True)
        logarithms = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
        losses = -logarithms[np.arange(len(self.targets)), self.targets.astype(np.intp)]
        losses = np.maximum(losses, CERTAIN)
        agreement = float((outputs.argmax(1) == self.answers.argmax(1)).mean())
        return Quality(float(losses.mean()), agreement)

    def error(self, model: bytes) -> float:
        """Return the mean squared distance to the fp32 model's answers, on some of the rows."""
        rows = np.linspace(0, len(self.inputs) - 1, min(SOME, len(self.inputs))).astype(np.intp)
        difference = _answers(model, self.inputs[rows]) - self.answers[rows]
        return float(np.square(difference).mean())


def successor(
    naive: bytes,
    onnx: bytes,
    previous: bytes | None,
    judge: Measures,
    *,
    reduce_range: bool,
) -> bytes:
    """Return the int8 artifact that follows the last one, or `naive`, ready to be followed or not.

    Args:
        naive: The model's own int8 build.
        onnx: The fp32 ONNX model that it was made of.
        previous: The last artifact of the target group, of whatever recipe; None if there is none.
        judge: Measures a build.
        reduce_range: Whether weights keep to 7 bits.
    """
    from google.protobuf.message import DecodeError

    try:
        chosen = choose_int8(
            previous,
            naive,
            prepared(onnx),
            limit=LIMITS[reduce_range],
            judge=judge,
            error=judge.error,
            tolerance=STRICT,
        )
    except (QuantiseError, DeltaError, DecodeError) as error:
        log.info("nothing to follow: %s", error)
        return naive
    _tell(chosen)
    if chosen.way is Way.WHOLE and not STRICT.allows(judge(chosen.model), judge(naive)):
        return naive
    return chosen.model


def coded_successor(
    own: bytes, previous: bytes | None, judge: Callable[[bytes], Quality]
) -> tuple[bytes, Precision]:
    """Return the fp32 artifact, whole or of the last one and coded steps, and what that makes it.

    Args:
        own: The model's own fp32 build.
        previous: The last artifact of the target group, of whatever recipe; None if there is none.
        judge: Measures a build.
    """
    try:
        chosen = choose_fp32(previous, own, judge=judge, tolerance=NEAR)
    except DeltaError as error:
        log.info("nothing to follow: %s", error)
        return own, Precision.FP32
    _tell(chosen)
    return chosen.model, Precision.CODED if chosen.way is Way.FOLLOWED else Precision.FP32


def _answers(model: bytes, inputs: Array) -> npt.NDArray[np.float64]:
    return OrtRuntime().load(model).run(inputs).astype(np.float64)


def _tell(chosen: Choice) -> None:
    log.info(
        "release chosen",
        extra={"way": chosen.way, "knob": chosen.knob, "delta": len(chosen.delta)},
    )
