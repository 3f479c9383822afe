"""Which deltas a new artifact is offered by."""

from pathlib import Path

import numpy as np
import pytest

from wildflower.ota import canonical
from wildflower.ota.build.deltas import deltas_to
from wildflower.ota.build.store import BuildStore
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.errors import DeltaError

FILES = [
    np.random.default_rng(0).bytes(20_000)[: 20_000 - 500 * n] + bytes([n]) * 500 * n
    for n in range(5)
]
"""Each shares most of its bytes with the one before it."""
NEW = FILES[4]
COMPARE = "wildflower.ota.build.deltas.diff"
STRANGE = np.random.default_rng(9).bytes(20_000)


@pytest.fixture
def store(tmp_path: Path) -> BuildStore:
    return BuildStore(tmp_path / "cache")


def test_the_last_three_are_compared_the_newest_first(store: BuildStore) -> None:
    made = list(deltas_to(NEW, FILES[:4], store))
    assert [one.base for one in made] == [canonical.digest(one) for one in FILES[3:0:-1]]
    for old, one in zip(FILES[3:0:-1], made, strict=True):
        found = bytearray()
        digest = canonical.digest(NEW)
        decode(memoryview(old), memoryview(one.data), found.extend, target=digest, size=len(NEW))
        assert found == NEW
        assert len(one.data) <= 0.7 * len(NEW)


def test_a_delta_that_saves_little_is_not_offered(store: BuildStore) -> None:
    assert list(deltas_to(NEW, [STRANGE], store)) == []


def test_the_first_release_and_one_of_the_same_file_have_none(store: BuildStore) -> None:
    assert list(deltas_to(NEW, [], store)) == []
    assert list(deltas_to(NEW, [NEW], store)) == []


def test_what_was_compared_is_not_compared_again(
    store: BuildStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(deltas_to(NEW, FILES[2:4], store))

    def refuse(*_: object) -> bytes:
        raise AssertionError("compared again")

    monkeypatch.setattr(COMPARE, refuse)
    assert list(deltas_to(NEW, FILES[2:4], store)) == first


def test_a_file_that_cannot_be_compared_costs_no_other(
    store: BuildStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_on_the_newest(base: bytes, target: bytes, *regions: object) -> bytes:
        if base == FILES[3]:
            raise DeltaError("it does not give the new file")
        return diff(base, target)

    monkeypatch.setattr(COMPARE, fail_on_the_newest)
    (made,) = deltas_to(NEW, FILES[2:4], store)
    assert made.base == canonical.digest(FILES[2])
