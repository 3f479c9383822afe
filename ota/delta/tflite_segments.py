"""Finds the tensors of a TFLite file. The server's side; a device needs to know no file format.

Source: schema.fbs of TensorFlow Lite, version 3: Model.subgraphs = 2, buffers = 4; SubGraph.tensors
= 0; Tensor.type = 1, buffer = 2, name = 3; Buffer.data = 0. Buffers that lie behind the FlatBuffer,
as in files above 2 GiB, are left to what lies between.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from wildflower.ota.delta.flatbuffer import Buffer
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.errors import FormatError

IDENTIFIER: Final = b"TFL3"
KINDS: Final[Mapping[int, Kind]] = {0: Kind.FLOAT32, 1: Kind.FLOAT16, 2: Kind.INT32}
"""By TensorType; everything else is bytes."""


def regions(data: bytes) -> tuple[Region, ...]:
    """Return the tensors of a TFLite file, in the order of the file.

    Raises:
        FormatError: Not a TFLite file.
    """
    if data[4:8] != IDENTIFIER:
        raise FormatError("not a TFLite file")
    by_place = {one.offset: one for one in _regions(Buffer(data))}  # a buffer may be shared
    return tuple(by_place[place] for place in sorted(by_place))


def _regions(buffer: Buffer) -> Iterator[Region]:
    model = buffer.follow(0)
    holders = list(buffer.vector(model, 4))
    for number, graph in enumerate(buffer.vector(model, 2)):
        for tensor in buffer.vector(graph, 0):
            index = buffer.small(tensor, 2, "<I")
            if index >= len(holders):
                raise FormatError(f"a tensor of the TFLite file has no buffer {index}")
            if buffer.field(holders[index], 0) is None:
                continue  # computed, not kept
            begin, end = buffer.bytes(holders[index], 0)
            kind = KINDS.get(buffer.small(tensor, 1, "<b"), Kind.BYTES)
            if (end - begin) % kind.width:
                raise FormatError(f"a TFLite tensor has {end - begin} bytes, no whole elements")
            yield Region(f"{number}/{buffer.text(tensor, 3)}", begin, end - begin, kind)
