"""From fp32 ONNX to int8: static, QDQ form, per channel, MinMax ranges from real inputs.

u8 activations times s8 weights overflow 16 bits on x86 CPUs without VNNI: their kernels saturate
and every logit moves. `reduce_range` keeps weights to 7 bits, which is as fast and bit-equal on
both; devices with VNNI get the full 8 bits.

A model can come back from the quantiser unchanged (LSTM weights are left alone); that is an error
here, never an "int8" artifact of fp32 size.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.build.export import INPUT, strip
from wildflower.ota.errors import QuantiseError

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float32]

BATCH: Final = 32  # calibration inputs per run; the ranges do not depend on it
MIN_SHARE: Final = 0.5  # of the weights must be int8, or the recipe does not fit the model


def to_int8(model: bytes, calibration: Array, *, reduce_range: bool) -> bytes:
    """Return the int8 form of an fp32 ONNX model.

    Args:
        model: Bytes of the ONNX file.
        calibration: Real inputs, shape (n, ...), n >= 1.
        reduce_range: Whether weights keep to 7 bits.

    Raises:
        QuantiseError: Most of the weights stay fp32; names the operators that hold them.
    """
    return quantised(prepared(model), calibration, reduce_range=reduce_range)


def prepared(model: bytes) -> bytes:
    """Return an fp32 ONNX model as the quantiser wants it: optimised, its batch norms folded."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="wildflower-fp32-") as directory:
        target = Path(directory, "prepared.onnx")
        with _quiet():
            quant_pre_process(onnx.load_from_string(model), target)
        return target.read_bytes()


def quantised(ready: bytes, calibration: Array, *, reduce_range: bool) -> bytes:
    """Return the int8 form of what `prepared` returned; see `to_int8`."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="wildflower-int8-") as directory:
        source, target = Path(directory, "prepared.onnx"), Path(directory, "int8.onnx")
        source.write_bytes(ready)
        with _quiet():
            _quantise(source, target, calibration, reduce_range)
        data = strip(_with_fp32_output(onnx.load(target)).SerializeToString())
    share, left = quantised_share(data)
    if share < MIN_SHARE:
        raise QuantiseError(
            f"only {share:.0%} of the weights could be quantised; {', '.join(left)} stay fp32",
            hint="Give this device class the fp32 recipe.",
        )
    return data


def quantised_share(data: bytes) -> tuple[float, list[str]]:
    """Return the share of int8 weights, in [0, 1], and the operators that hold fp32 ones."""
    import onnx

    graph = onnx.load_from_string(data).graph
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    weights = [one for one in graph.initializer if len(one.dims) >= 2]
    small = sum(_elements(one) for one in weights if one.data_type in eight)
    large = [one for one in weights if one.data_type == onnx.TensorProto.FLOAT]
    total = small + sum(_elements(one) for one in large)
    operators = sorted({operator for one in large for operator in users.get(one.name, ())})
    return (small / total if total else 0.0), operators


class Rows:
    """Feeds calibration inputs to ONNX Runtime's quantiser (its CalibrationDataReader)."""

    def __init__(self, rows: Array) -> None:
        self._batches = (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch by input name, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _quantise(source: Path, target: Path, rows: Array, reduce_range: bool) -> None:
    from onnxruntime import quantization

    reader: Any = type("Reader", (Rows, quantization.CalibrationDataReader), {})(rows)
    quantization.quantize_static(
        source,
        target,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )


def _with_fp32_output(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the model without the rounding of its answers to 256 values.

    That rounding saves nothing, for the answers leave as fp32 anyway, and decides close calls:
    without it half as many classes change.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        widened = makers.get(output.name)
        rounded = makers.get(widened.input[0]) if widened is not None else None
        if widened is None or rounded is None or rounded.op_type != "QuantizeLinear":
            continue
        source = makers.get(rounded.input[0])
        if source is None or _uses(graph, rounded.input[0]) > 1:
            continue
        source.output[list(source.output).index(rounded.input[0])] = output.name
        graph.node.remove(widened)
        graph.node.remove(rounded)
    return model


def _uses(graph: "onnx.GraphProto", name: str) -> int:
    return sum(list(node.input).count(name) for node in graph.node)


def _elements(tensor: "onnx.TensorProto") -> int:
    return int(np.prod(tensor.dims))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice on the root logger, and numpy's on empty ranges."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
