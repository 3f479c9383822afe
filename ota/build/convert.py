"""From ONNX to `.ort`, the flat format that ONNX Runtime maps without parsing.

The session below is what `onnxruntime.tools.convert_onnx_models_to_ort` opens for its style
"Fixed", without its prints and its root-logger set-up: all optimisations are done here, not on the
device, save the NCHWc layout, which only x86 runs.

ONNX Runtime writes one table of the file, the *kernel type string resolver*, in the order of a
hash map that differs from run to run. `canonical` sorts it, so equal models give equal bytes:

    [header, root table][resolver][model ...][version]      a FlatBuffer, written back to front

All its offsets are relative and point forward, so the model behind moves as one block.
"""

import struct
import tempfile
from pathlib import Path
from typing import Any, Final

from wildflower.ota.delta.flatbuffer import Buffer
from wildflower.ota.errors import ExportError, FormatError

IDENTIFIER: Final = b"ORTM"
ALIGNMENT: Final = 16  # bytes; FlatBuffers aligns nothing more widely in this schema
MODEL, RESOLVER = 1, 3  # fields of the root table, schema/ort.fbs of ONNX Runtime: InferenceSession

Resolver = dict[str, dict[str, list[tuple[int, int]]]]
"""By operator and type string: kinds and indices of the arguments that it speaks of."""


def to_ort(model: bytes) -> bytes:
    """Return the `.ort` form of an ONNX model.

    Raises:
        ExportError: ONNX Runtime cannot convert it.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="wildflower-ort-") as directory:
        target = Path(directory, "model.ort")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.add_session_config_entry("session.qdqisint8allowed", "0")  # 1 is for ARM only
        try:
            onnxruntime.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],
            )
        except Exception as error:  # ONNX Runtime's native errors share no base class
            raise ExportError(f"the model cannot become .ort: {error}") from error
        return canonical(target.read_bytes())


def canonical(data: bytes) -> bytes:
    """Return an `.ort` file with its resolver sorted; what the model computes is untouched.

    Raises:
        ExportError: Not an `.ort` file as this version of the format lays it out.
    """
    try:
        return _sorted(data)
    except FormatError as error:
        raise ExportError(f"the .ort file is damaged: {error}") from error


def _sorted(data: bytes) -> bytes:
    buffer = Buffer(data)
    root = buffer.follow(0)
    resolver, model = buffer.child(root, RESOLVER), buffer.child(root, MODEL)
    end = min(model, buffer.vtable(model))
    if data[4:8] != IDENTIFIER or not root < resolver < end < len(data):
        raise ExportError(
            "the .ort file is not laid out as expected",
            hint="ota.build.convert knows ONNX Runtime 1.20 to 1.32; this one is another.",
        )
    block = _resolver_bytes(_read(buffer, resolver))
    numbers = range(buffer.fields(root))
    fields = {n: at for n in numbers if (at := buffer.field(root, n)) is not None}
    head = bytearray(_head(len(numbers), list(fields)))
    # A FlatBuffer is aligned from its end; a multiple of ALIGNMENT as a whole keeps that true.
    gap = -(len(head) + len(block) + len(data) - end) % ALIGNMENT
    shift = len(head) + len(block) + gap - end
    for place, (number, at) in zip(range(-4 * len(fields), 0, 4), fields.items(), strict=True):
        target = buffer.follow(at) + shift
        if number == RESOLVER:
            target = len(head) + int(struct.unpack_from("<I", block)[0])
        struct.pack_into("<I", head, len(head) + place, target - len(head) - place)
    return bytes(head) + block + bytes(gap) + data[end:]


def _head(numbers: int, present: list[int]) -> bytes:
    """Return the begin of a file up to the end of its root table, whose fields are 0."""
    offsets = [4 + 4 * present.index(n) if n in present else 0 for n in range(numbers)]
    vtable = struct.pack(f"<{numbers + 2}H", 4 + 2 * numbers, 4 + 4 * len(present), *offsets)
    vtable += bytes(-len(vtable) % 4)
    root = 8 + len(vtable)
    table = struct.pack("<i", len(vtable)) + bytes(4 * len(present))
    return struct.pack("<I", root) + IDENTIFIER + vtable + table


def _read(buffer: Buffer, resolver: int) -> Resolver:
    return {
        buffer.text(operator, 0): {
            buffer.text(entry, 0): [
                (buffer.small(argument, 0, "<b"), buffer.small(argument, 1, "<I"))
                for argument in buffer.vector(entry, 1)
            ]
            for entry in buffer.vector(operator, 1)
        }
        for operator in buffer.vector(resolver, 0)
    }


def _resolver_bytes(resolver: Resolver) -> bytes:
    """Return a FlatBuffer of the table alone, everything in it sorted."""
    import flatbuffers  # type: ignore[import-untyped]  # ships no type information

    builder = flatbuffers.Builder()
    operators = []
    for operator, entries in sorted(resolver.items()):
        strings = []
        for name, arguments in sorted(entries.items()):
            pairs = [_argument(builder, *argument) for argument in sorted(arguments)]
            strings.append(_pair(builder, builder.CreateString(name), _vector(builder, pairs)))
        operators.append(_pair(builder, builder.CreateString(operator), _vector(builder, strings)))
    listed = _vector(builder, operators)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, listed, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _argument(builder: Any, kind: int, index: int) -> Any:
    builder.StartObject(2)
    builder.PrependInt8Slot(0, kind, 0)
    builder.PrependUint32Slot(1, index, 0)
    return builder.EndObject()


def _pair(builder: Any, first: Any, second: Any) -> Any:
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, first, 0)
    builder.PrependUOffsetTRelativeSlot(1, second, 0)
    return builder.EndObject()


def _vector(builder: Any, parts: list[Any]) -> Any:
    builder.StartVector(4, len(parts), 4)
    for part in reversed(parts):
        builder.PrependUOffsetTRelative(part)
    return builder.EndVector()
