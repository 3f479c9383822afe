"""From a PyTorch model to an ONNX file whose answers are the same.

A format has an ordered list of strategies. The legacy exporter comes first: it takes a tenth of a
second and writes the same graph round after round; the dynamo exporter takes over where it fails.
Whatever comes out must pass one numeric gate, at batch 1 AND batch 3, because some exporters fix
the batch size without a word. Graphs are stripped of doc strings, stack traces and metadata:
they hold paths of the building host, and without them two builds give the same bytes.
"""

import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import ExportError, FormatError, ModelError

if TYPE_CHECKING:
    import onnx
    import torch

Array = npt.NDArray[np.float32]

INPUT: Final = "x"
OUTPUT: Final = "y"
BATCHES: Final = (1, 3)
TOLERANCE: Final = 1e-4  # absolute; seen are 1e-5 and below (logits of small nets)

OPERATORS: Final = (
    re.compile(r"operator '([\w:.]+)'"),  # legacy: "Exporting the operator 'aten::x' to ONNX ..."
    re.compile(r"OpOverload\(op='([\w:.]+)'"),  # dynamo: "<OpOverload(op='aten.x', ...)>"
    re.compile(r"\b((?:aten|prims|quantized)(?:::|\.)\w+)"),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to export.

    Attributes:
        name: What logs and errors call it.
        opset: ONNX operator set that it targets.
        export: Returns the bytes of the ONNX file of a model in eval mode.
    """

    name: str
    opset: int
    export: Callable[["torch.nn.Module", "torch.Tensor", int], bytes]


def load_parameters(network: "torch.nn.Module", model: bytes) -> "torch.nn.Module":
    """Return the network with the parameters of a safetensors file.

    Raises:
        FormatError: Not a safetensors file, or other arrays than the network has.
    """
    import safetensors
    import safetensors.torch

    try:
        parameters = safetensors.torch.load(model)
        network.load_state_dict(parameters, strict=True)
    except safetensors.SafetensorError as error:
        raise FormatError(f"not a safetensors model: {error}") from error
    except RuntimeError as error:
        raise FormatError(
            f"the model does not fit the task: {error}",
            hint="Name the task that the model was trained with.",
        ) from error
    return network.eval()


def to_onnx(
    model: "torch.nn.Module", inputs: Array, strategies: Sequence["Strategy"] | None = None
) -> bytes:
    """Return the ONNX file of a model.

    Args:
        model: The model; it is put into eval mode.
        inputs: Real inputs, shape (n, ...), n >= 3: random ones hide what real ones show.
        strategies: Ways to try, in order; the known ones if not given.

    Raises:
        ExportError: No strategy gives a model that answers as PyTorch does; names the operator.
        ValueError: Fewer than three inputs.
    """
    import torch

    if len(inputs) < max(BATCHES):
        raise ValueError(f"export needs {max(BATCHES)} inputs, found {len(inputs)}")
    model.eval()
    failures: list[str] = []
    for strategy in STRATEGIES if strategies is None else strategies:
        try:
            with quiet(), torch.no_grad():
                raw = strategy.export(model, torch.from_numpy(inputs[:1].copy()), strategy.opset)
            data = strip(raw)
            _compare(model, data, inputs)
        except ExportError as error:
            failures.append(f"{strategy.name}: {error}")
        except Exception as error:  # noqa: BLE001  exporters raise whatever a model makes them raise
            failures.append(f"{strategy.name}: {type(error).__name__}: {error}")
        else:
            return data
    raise _failure(failures)


def strip(data: bytes) -> bytes:
    """Return an ONNX file checked, and without what is not the model.

    Raises:
        ExportError: Not a valid ONNX model.
    """
    import onnx

    model = onnx.load_from_string(data)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported model is not valid: {error}") from error
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        parts: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.value_info]
        for part in (*parts, *graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def opset_of(data: bytes) -> int:
    """Return the version of the ONNX operator set that a model uses."""
    import onnx

    imports = onnx.load_from_string(data).opset_import
    return max(int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx"))


def reference(model: "torch.nn.Module", inputs: Array) -> Array:
    """Return PyTorch's own answers, shape (n, ...)."""
    import torch

    model.eval()
    with torch.no_grad():
        outputs: Array = model(torch.from_numpy(inputs.copy())).numpy()
    return outputs


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters say; their failures are exceptions and stay.

    The legacy exporter prints the graph from C++ when an operator is missing, past `sys.stdout`.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        _no_native_stdout(),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _no_native_stdout() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _legacy(model: "torch.nn.Module", example: "torch.Tensor", opset: int) -> bytes:
    import torch

    with tempfile.TemporaryDirectory(prefix="wildflower-onnx-") as directory:
        target = Path(directory, "model.onnx")
        torch.onnx.export(
            model,
            (example,),
            target,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
        return target.read_bytes()


def _dynamo(model: "torch.nn.Module", example: "torch.Tensor", opset: int) -> bytes:
    import torch

    program = torch.onnx.export(
        model,
        (example.repeat(2, *[1] * (example.dim() - 1)),),  # a batch of 1 is taken for a constant
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None  # noqa: S101  it is one whenever dynamo is
    return bytes(program.model_proto.SerializeToString())


STRATEGIES: Final = (Strategy("legacy", 17, _legacy), Strategy("dynamo", 20, _dynamo))
"""Fast and steady first; opset 20 is the first that dynamo writes without converting back."""


def _compare(model: "torch.nn.Module", data: bytes, inputs: Array) -> None:
    """Demand PyTorch's answers at every batch size.

    Raises:
        ExportError: Another answer, or none.
    """
    try:
        loaded = OrtRuntime().load(data)
        for batch in BATCHES:
            expected = reference(model, inputs[:batch])
            found = loaded.run(inputs[:batch])
            if found.shape != expected.shape:
                raise ExportError(f"at batch {batch}: shape {found.shape}, not {expected.shape}")
            error = float(np.abs(found - expected).max())
            if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise ExportError(f"at batch {batch}: answers differ from PyTorch's by {error:.3g}")
    except ModelError as error:
        raise ExportError(str(error)) from error


def _failure(failures: list[str]) -> ExportError:
    """Return the error that names the operator, where a strategy's message holds one."""
    for pattern in OPERATORS:
        for failure in failures:
            if found := pattern.search(failure):
                operator = re.sub(r"^(\w+)\.", r"\1::", found[1])
                return ExportError(
                    f"operator {operator} has no counterpart in ONNX",
                    hint="Replace it in the model's forward(), for instance by other operators.",
                )
    told = "; ".join(failure.strip().splitlines()[0][:300] for failure in failures)
    return ExportError(f"the model cannot be exported: {told}")


def _graphs(graph: "onnx.GraphProto") -> Iterator["onnx.GraphProto"]:
    """Yield a graph and every one inside of it (branches and loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)
