"""Tensors of ExecuTorch files: of two that ExecuTorch 1.5.1 wrote, and of some built by hand.

The two are rounds of one network, `Linear(20, 30)`, an int32 buffer that is added, ReLU and
`Linear(30, 4)`: `to_edge(torch.export.export(net, (row,))).to_executorch().buffer`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no type information
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flatbuffer_writer import table, vector

from wildflower.ota.delta import pte_segments
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.errors import FormatError

GOLDENS = Path(__file__).parents[2] / "goldens"
BEFORE = (GOLDENS / "executorch-before.pte").read_bytes()
AFTER = (GOLDENS / "executorch-after.pte").read_bytes()


def test_the_tensors_of_a_real_file_are_found_where_their_bytes_are() -> None:
    found = {one.name: one for one in pte_segments.regions(BEFORE)}
    assert [(one.kind, one.length) for one in found.values()] == [
        (Kind.FLOAT32, 4 * 20 * 30),
        (Kind.FLOAT32, 4 * 30),
        (Kind.FLOAT32, 4 * 30 * 4),
        (Kind.FLOAT32, 4 * 4),
        (Kind.INT32, 4 * 30),
    ]
    shift = found["0/4"]
    assert BEFORE[shift.offset : shift.end] == np.arange(30, dtype="<i4").tobytes()
    weights = np.frombuffer(BEFORE, "<f4", 600, found["0/0"].offset)
    assert np.abs(weights).max() <= 20**-0.5 < 1.01 * np.abs(weights).max()


def test_two_rounds_of_a_real_file_make_a_delta_of_floats() -> None:
    delta = diff(BEFORE, AFTER, regions_of(BEFORE), regions_of(AFTER))
    made = bytearray()
    digest = hashlib.sha256(AFTER).hexdigest()
    decode(memoryview(BEFORE), memoryview(delta), made.extend, target=digest, size=len(AFTER))
    assert made == AFTER
    assert len(delta) < min(0.9 * len(diff(BEFORE, AFTER)), 0.4 * len(AFTER))


FLOATS = np.random.default_rng(0).normal(size=20).astype(np.float32).tobytes()
LONGS = np.arange(3, dtype="<i8").tobytes()
STATE = bytes(range(64))
FLOAT, LONG, BYTE = 6, 4, 0


@dataclass(frozen=True)
class Tensor:
    """One tensor; `changes` is the list of states that its first value is in."""

    scalar: int
    sizes: tuple[int, ...] | None
    index: int
    name: str = ""
    is_external: bool = False
    changes: int | None = None


def put(builder: Any, form: str, value: int) -> Callable[[int], None]:
    """Return what puts a number into a field."""
    return lambda slot: getattr(builder, f"Prepend{form}Slot")(slot, value, 0)


def numbers(builder: Any, form: str, width: int, values: tuple[int, ...]) -> int:
    builder.StartVector(width, len(values), width)
    for value in reversed(values):
        getattr(builder, f"Prepend{form}")(value)
    return int(builder.EndVector())


def told(builder: Any, one: Tensor) -> int:
    """Write a value of the plan."""
    fields: dict[str, tuple[int, Any]] = {
        "scalar": (0, put(builder, "Int8", one.scalar)),
        "index": (5, put(builder, "Uint32", one.index)),
    }
    if one.sizes is not None:
        fields["sizes"] = (2, numbers(builder, "Int32", 4, one.sizes))
    if one.changes is not None:
        fields["allocation"] = (6, table(builder))
    if one.name or one.is_external or one.changes:
        extra: dict[str, tuple[int, Any]] = {
            "which": (0, put(builder, "Uint64", one.changes or 0)),
            "external": (2, put(builder, "Int8", int(one.is_external))),
        }
        if one.name:
            extra["name"] = (1, builder.CreateString(one.name))
        fields["extra"] = (9, table(builder, **extra))
    tensor = table(builder, **fields)
    return table(builder, type=(0, put(builder, "Uint8", 5)), value=(1, tensor))


def offsets(builder: Any, segment: int, places: tuple[int, ...]) -> int:
    listed = numbers(builder, "Uint64", 8, places)
    return table(builder, segment=(0, put(builder, "Uint32", segment)), offsets=(1, listed))


def file(
    tensors: list[Tensor],
    segments: list[bytes],
    *,
    constants: tuple[int, ...] | None = None,
    states: tuple[int, ...] | None = None,
    inline: tuple[bytes, ...] = (),
    blobs: tuple[bytes, ...] = (),
    has_header: bool = True,
) -> bytes:
    """Return a file: constants in the first segment, states in the second, or constants inline."""
    builder = flatbuffers.Builder()
    number = table(builder, type=(0, put(builder, "Uint8", 2)))  # an integer: no tensor
    plan = table(
        builder, values=(2, vector(builder, [number, *(told(builder, one) for one in tensors)]))
    )
    fields: dict[str, tuple[int, Any]] = {"plans": (1, vector(builder, [plan]))}
    at, places = 0, []
    for segment in segments:
        size, begin = len(segment), at
        places.append(
            table(
                builder,
                offset=(0, put(builder, "Uint64", begin)),
                size=(1, put(builder, "Uint64", size)),
            )
        )
        at += len(segment)
    if segments:
        fields["segments"] = (4, vector(builder, places))
    if constants is not None:
        fields["constants"] = (5, offsets(builder, 0, constants))
    if states is not None:
        fields["states"] = (6, vector(builder, [offsets(builder, 1, states)]))
    for name, slot, held in (("inline", 2, inline), ("blobs", 3, blobs)):
        if held:
            parts = [table(builder, data=(0, builder.CreateByteVector(one))) for one in held]
            fields[name] = (slot, vector(builder, parts))
    builder.Finish(table(builder, **fields), b"ET12")
    written = bytes(builder.Output())
    if has_header:
        root = int.from_bytes(written[:4], "little")
        size = 32 + len(written) - 8
        header = b"eh00" + pack("<IQQ", 24, size, size)
        written = pack("<I", root + 24) + written[4:8] + header + written[8:]
    return written + b"".join(segments)


SEGMENTS = [FLOATS + LONGS, STATE, b"what a backend made"]
WHOLE = file(
    [
        Tensor(FLOAT, (4, 5), 1, name="w"),
        Tensor(FLOAT, (4, 5), 1, name="tied"),
        Tensor(LONG, (3,), 2),
        Tensor(BYTE, (40,), 1, changes=0),
        Tensor(FLOAT, (9, 9), 0),
        Tensor(FLOAT, (9, 9), 7, name="elsewhere", is_external=True),
    ],
    SEGMENTS,
    constants=(0, 0, 80),
    states=(0, 8),
    blobs=(b"inline",),
)


def test_every_place_for_bytes_is_looked_at() -> None:
    found = {one.name: one for one in pte_segments.regions(WHOLE)}
    bytes_of = {name: WHOLE[one.offset : one.end] for name, one in found.items()}
    assert bytes_of == {
        "tied": FLOATS,
        "0/3": LONGS,
        "0/4": STATE[8:48],
        "segment/2": SEGMENTS[2],
        "inline/0": b"inline",
    }
    assert found["tied"].kind is Kind.FLOAT32
    assert {one.kind for name, one in found.items() if name != "tied"} == {Kind.BYTES}


def test_a_file_from_before_there_were_segments_is_read() -> None:
    old = file(
        [Tensor(FLOAT, (20,), 1), Tensor(FLOAT, None, 2)],
        [],
        inline=(b"", FLOATS, FLOATS[:4]),
        has_header=False,
    )
    assert [old[one.offset : one.end] for one in pte_segments.regions(old)] in (
        [FLOATS, FLOATS[:4]],
        [FLOATS[:4], FLOATS],
    )


ONE = Tensor(FLOAT, (20,), 1)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not an ExecuTorch file"),
        (b"\xff\xff\xff\x7fET12", "ends before"),
        (file([ONE], [FLOATS], constants=(0, 0), has_header=False), "no extended header"),
        (file([ONE], [FLOATS], constants=(0,)), "no constant 1"),
        (file([ONE], [], constants=(0, 0)), "item 0 of 0"),
        (file([ONE], [], inline=(b"",)), "item 1 of 1"),
        (file([ONE], [FLOATS], constants=(0, 4)), "80 bytes has 76"),
        (file([ONE], [], inline=(b"", b"1234")), "80 bytes has 4"),
        (file([ONE], [FLOATS], constants=(0, 0))[:-1], "ends before"),
        (file([Tensor(FLOAT, (1,) * 17, 1)], [FLOATS], constants=(0, 0)), "17 dimensions"),
        (file([Tensor(BYTE, (1,), 1, changes=3)], [FLOATS], states=(0, 0)), "item 3 of 1"),
    ],
)
def test_what_is_no_executorch_file_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        pte_segments.regions(data)


@pytest.mark.parametrize("whole", [BEFORE, WHOLE], ids=["real", "by hand"])
@given(at=st.integers(0, 10_000), damage=st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused(whole: bytes, at: int, damage: bytes) -> None:
    at %= len(whole) - len(damage)
    data = whole[:at] + damage + whole[at + len(damage) :]
    try:
        found = pte_segments.regions(data)
    except FormatError:
        return
    assert all(0 <= one.offset <= one.end <= len(data) for one in found)


def test_a_file_finds_its_own_reader() -> None:
    assert regions_of(WHOLE) == pte_segments.regions(WHOLE)
    assert Region("segment/2", len(WHOLE) - 19, 19, Kind.BYTES) in regions_of(WHOLE)
    assert regions_of(b"\xff\xff\xff\x7fET12") == ()
