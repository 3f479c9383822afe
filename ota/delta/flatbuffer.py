"""Reads FlatBuffers without their schema compiler: tables, their fields, vectors, strings.

Every place that is read is checked against the end of the file; what lies outside is a
`FormatError`. Offsets point forward, so nothing is read in circles.

Source: https://flatbuffers.dev/internals/
"""

import struct
from collections.abc import Iterator

from wildflower.ota.errors import FormatError


class Buffer:
    """A FlatBuffer. Places are byte offsets from the begin of the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def number(self, at: int, form: str) -> int:
        """Return the number at a place, in a form of the module `struct`.

        Raises:
            FormatError: The place lies outside of the file, as for all methods here.
        """
        if not 0 <= at <= len(self._data) - struct.calcsize(form):
            raise FormatError(f"the file ends before byte {at}")
        return int(struct.unpack_from(form, self._data, at)[0])

    def u32(self, at: int) -> int:
        """Return an unsigned number of 32 bits."""
        return self.number(at, "<I")

    def follow(self, at: int) -> int:
        """Return where the offset at a place points to."""
        return at + self.u32(at)

    def vtable(self, table: int) -> int:
        """Return where the layout of a table lies."""
        return table - self.number(table, "<i")

    def fields(self, table: int) -> int:
        """Return how many fields a table's layout speaks of."""
        return (self.number(self.vtable(table), "<H") - 4) // 2

    def field(self, table: int, number: int) -> int | None:
        """Return where a field lies, or None if it has its default."""
        if number >= self.fields(table):
            return None
        offset = self.number(self.vtable(table) + 4 + 2 * number, "<H")
        return table + offset if offset else None

    def child(self, table: int, number: int) -> int:
        """Return where the table, vector or string of a field lies.

        Raises:
            FormatError: The field is not there.
        """
        place = self.field(table, number)
        if place is None:
            raise FormatError(f"the file lacks field {number} of a table")
        return self.follow(place)

    def vector(self, table: int, number: int) -> Iterator[int]:
        """Yield where the tables of a vector lie."""
        start = self.child(table, number)
        for index in range(self.u32(start)):
            yield self.follow(start + 4 + 4 * index)

    def text(self, table: int, number: int) -> str:
        """Return a string.

        Raises:
            FormatError: It is not UTF-8.
        """
        begin, end = self.bytes(table, number)
        try:
            return self._data[begin:end].decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"a name in the file is not UTF-8: {error}") from error

    def bytes(self, table: int, number: int) -> tuple[int, int]:
        """Return where a vector of bytes begins and ends."""
        start = self.child(table, number)
        end = start + 4 + self.u32(start)
        if end > len(self._data):
            raise FormatError(f"the file ends before byte {end}")
        return start + 4, end

    def small(self, table: int, number: int, form: str) -> int:
        """Return a number that is kept in the table itself; 0 if it has its default."""
        place = self.field(table, number)
        return 0 if place is None else self.number(place, form)
