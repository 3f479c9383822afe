"""How a model is run: the seam `Runtime`, and ONNX Runtime behind it.

The build side measures with the very code that devices run, so this module needs numpy and
onnxruntime only. A model takes ONE float32 array with a batch axis and gives ONE back; its bytes
are loaded from memory, so that what was hashed is what runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from wildflower.ota.errors import ModelError

Array = npt.NDArray[np.float32]

THREADS: Final = 1  # an edge device has other work, and golden outputs must not depend on a split
LOG_ERRORS: Final = 3  # ONNX Runtime's severity scale; below it warns about every optimisation


@dataclass(frozen=True, slots=True)
class Description:
    """What a loaded model expects and gives.

    Attributes:
        runtime: Distribution name of the runtime, such as "onnxruntime".
        version: The runtime's version.
        input_name: Name of the model's input.
        input_shape: Its shape; None where any size goes, as on the batch axis.
        output_name: Name of the model's output.
    """

    runtime: str
    version: str
    input_name: str
    input_shape: tuple[int | None, ...]
    output_name: str


class LoadedModel(Protocol):
    """A model in memory. One caller at a time; equal inputs give equal outputs."""

    def run(self, inputs: Array) -> Array:
        """Return the outputs, shape (n, ...), for inputs of shape (n, ...).

        Raises:
            ModelError: The inputs do not fit the model, or an operator failed.
        """
        ...

    def describe(self) -> Description:
        """Return what the model expects and gives."""
        ...


class Runtime(Protocol):
    """Runs models of one file format; it keeps nothing between two loads."""

    def load(self, model: bytes) -> LoadedModel:
        """Return the model whose file has these bytes.

        Raises:
            ModelError: Not a model of this runtime, or an operator it does not know.
        """
        ...


class OrtRuntime:
    """ONNX Runtime on one CPU thread, for `.onnx` and `.ort` files alike."""

    def load(self, model: bytes) -> LoadedModel:
        """Return the model whose file has these bytes.

        Raises:
            ModelError: Not a model, an unknown operator, or more than one input.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = THREADS
        options.log_severity_level = LOG_ERRORS
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except _failures() as error:
            raise ModelError(f"the model cannot be loaded: {error}") from error
        if len(session.get_inputs()) != 1:
            raise ModelError(f"expected a model of one input, found {len(session.get_inputs())}")
        return OrtModel(session, onnxruntime.__version__)


class OrtModel:
    """A model loaded by ONNX Runtime."""

    def __init__(self, session: Any, version: str) -> None:
        self._session = session
        head, self._output = session.get_inputs()[0], session.get_outputs()[0].name
        shape = tuple(size if isinstance(size, int) else None for size in head.shape)
        self._description = Description("onnxruntime", version, head.name, shape, self._output)

    def run(self, inputs: Array) -> Array:
        """Return the outputs, shape (n, ...), for inputs of shape (n, ...).

        Raises:
            ModelError: The inputs do not fit the model, or an operator failed.
        """
        try:
            answer = self._session.run([self._output], {self._description.input_name: inputs})
        except _failures() as error:
            raise ModelError(f"the model cannot answer: {error}") from error
        outputs: Array = np.asarray(answer[0], np.float32)
        return outputs

    def describe(self) -> Description:
        """Return what the model expects and gives."""
        return self._description


def peak_rss() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Not `ru_maxrss`: that survives `exec`, so a child would report the peak of the parent that
    started it; VmHWM begins anew with each program (proc(5)).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _failures() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its native errors share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    found = [getattr(native, name) for name in dir(native)]
    errors = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*errors, RuntimeError, ValueError)
