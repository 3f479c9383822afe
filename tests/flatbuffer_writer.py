"""Writes FlatBuffers by field number, for the formats whose builders are not installed."""

from typing import Any

Builder = Any  # flatbuffers.Builder; the package ships no type information


def table(builder: Builder, **fields: tuple[int, Any]) -> int:
    """Write a table: by any name, a field's number and its offset or a function that adds it."""
    builder.StartObject(1 + max((number for number, _ in fields.values()), default=0))
    for number, value in fields.values():
        if callable(value):
            value(number)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    return int(builder.EndObject())


def vector(builder: Builder, parts: list[int]) -> int:
    """Write a vector of tables."""
    builder.StartVector(4, len(parts), 4)
    for part in reversed(parts):
        builder.PrependUOffsetTRelative(part)
    return int(builder.EndVector())
