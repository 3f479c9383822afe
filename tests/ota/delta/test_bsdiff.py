import bz2
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.delta import bsdiff
from wildflower.ota.errors import DeltaError


def apply(old: bytes, data: bytes, size: int) -> bytes:
    return b"".join(bsdiff.parts(memoryview(old), memoryview(data), size))


def hostile(triples: list[tuple[int, int, int]], added: bytes, literal: bytes, size: int) -> bytes:
    control = b"".join(
        struct.pack("<QQQ", *((-one | 1 << 63) if one < 0 else one for one in triple))
        for triple in triples
    )
    streams = [bz2.compress(one) for one in (control, added, literal)]
    head = struct.pack("<8sqqq", b"BSDIFF40", len(streams[0]), len(streams[1]), size)
    return head + b"".join(streams)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_patch_of_the_package_gives_the_new_file(old: bytes, new: bytes) -> None:
    assert apply(old, bsdiff.patch(old, new), len(new)) == new


def test_a_large_file_comes_in_parts() -> None:
    old = np.random.default_rng(0).bytes(1_000_000)
    new = old[500_000:] + b"between" + old[:500_000]
    data = memoryview(bsdiff.patch(old, new))
    found = list(bsdiff.parts(memoryview(old), data, len(new)))
    assert b"".join(found) == new
    assert max(map(len, found)) <= 1 << 18


def test_triples_are_followed_as_they_stand() -> None:
    data = hostile([(2, 1, -1), (2, 0, 0)], b"\1\0\0\1", b"!", 5)
    assert apply(b"abc", data, 5) == b"bb!bd"


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "another magic": (b"BSDIFF41" + bytes(24), "not a patch"),
    "another size": (hostile([(3, 0, 0)], b"abc", b"", 4), "not a patch"),
    "a negative length": (struct.pack("<8sqqq", b"BSDIFF40", -1, 0, 3), "not a patch"),
    "no bz2": (struct.pack("<8sqqq", b"BSDIFF40", 4, 4, 3) + b"x" * 12, "damaged"),
    "too much": (hostile([(4, 0, 0)], b"abcd", b"", 3), "more than"),
    "nothing at all": (hostile([(0, 0, 0)] * 999, b"", b"", 3), "less than"),
    "less than nothing": (hostile([(-1, 4, 0)], b"", b"abcd", 3), "more than"),
    "before the old file": (hostile([(0, 1, -1), (2, 0, 0)], b"ab", b"a", 3), "outside"),
    "behind the old file": (hostile([(3, 0, 0)], b"abc", b"", 3), "outside"),
    "no control": (hostile([], b"", b"", 3), "ends too early"),
    "too little to add": (hostile([(2, 1, 0)], b"a", b"c", 3), "ends too early"),
    "too little to take": (hostile([(0, 3, 0)], b"", b"ab", 3), "ends too early"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_patch_is_refused(name: str) -> None:
    data, what = BAD[name]
    with pytest.raises(DeltaError, match=what):
        apply(b"xy", data, 3)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_patch_is_refused_or_gives_its_size(at: int, flip: int) -> None:
    data = bytearray(bsdiff.patch(b"abc" * 100, b"abd" * 100))
    data[at % len(data)] ^= flip
    try:
        found = apply(b"abc" * 100, bytes(data), 300)
    except DeltaError:
        return
    assert len(found) == 300
