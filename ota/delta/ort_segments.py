"""Finds the tensors of an ORT file. The server's side; a device needs to know no file format.

Source: schema/ort.fbs of ONNX Runtime 1.20 to 1.32: InferenceSession.model = 1; Model.graph = 7;
Graph.initializers = 0; Tensor.name = 0, data_type = 3, raw_data = 4. Tensors of branches are left
to what lies between.
"""

from collections.abc import Iterator
from typing import Final

from wildflower.ota.delta.flatbuffer import Buffer
from wildflower.ota.delta.onnx_segments import KINDS
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import FormatError

IDENTIFIER: Final = b"ORTM"


def regions(data: bytes) -> tuple[Region, ...]:
    """Return the tensors of an ORT file, in the order of the file.

    Raises:
        FormatError: Not an ORT file.
    """
    if data[4:8] != IDENTIFIER:
        raise FormatError("not an ORT file")
    return tuple(sorted(_regions(Buffer(data)), key=lambda one: one.offset))


def _regions(buffer: Buffer) -> Iterator[Region]:
    model = buffer.child(buffer.follow(0), 1)
    for tensor in buffer.vector(buffer.child(model, 7), 0):
        if buffer.field(tensor, 4) is None:
            continue  # strings, or elements in another file
        begin, end = buffer.bytes(tensor, 4)
        kind = KINDS.get(buffer.small(tensor, 3, "<i"), Kind.BYTES)
        if (end - begin) % kind.width:
            raise FormatError(
                f"a tensor of the ORT file has {end - begin} bytes, no whole elements"
            )
        yield Region(buffer.text(tensor, 0), begin, end - begin, kind)
