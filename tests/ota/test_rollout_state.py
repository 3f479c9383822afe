"""The stored form of a rollout, and of the document devices get: no mistyped value is believed."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.ota_fakes import document_for, release_of

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.rollout import machine, policy, state
from wildflower.ota.rollout.document import RolloutDocument

ODD: list[Any] = [None, True, 0, -1, 1.5, 1e300, "", "x", [], {}, [1], {"a": 1}]


def drawn() -> state.State:
    plan = policy.staged([100, 1000], min_reports=1, max_failures=0, soak_s=5)
    fresh = machine.begin(
        "r1", plan, (state.Group("digits.a", "models/auto/digits.a/1.json", "ab"),)
    )
    return machine.step(fresh, machine.Drawn(bytes(32), {"digits.a": ("one", "two")}))


def read_document(data: bytes) -> bytes:
    return RolloutDocument.from_bytes(data).to_bytes()


def read_state(data: bytes) -> bytes:
    return state.to_bytes(state.from_bytes(data))


READERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "document": (document_for(release_of(b"model")).to_bytes(), read_document),
    "state": (state.to_bytes(drawn()), read_state),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        inside = list(value.items())
    else:
        inside = list(enumerate(value)) if isinstance(value, list) else []
    for key, part in inside:
        yield from places(part, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(document))
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


@pytest.mark.parametrize(("data", "read"), READERS.values(), ids=READERS)
def test_whatever_stands_in_any_place_is_refused_or_means_itself(
    data: bytes, read: Callable[[bytes], bytes]
) -> None:
    document = json.loads(data)
    assert read(data) == data
    for path in list(places(document))[1:]:
        for odd in ODD:
            try:
                changed = canonical.to_bytes(with_value(document, path, odd))
            except ValueError:
                continue  # 1e300 has no canonical form
            try:
                found = read(changed)
            except FormatError:
                continue
            assert found == changed, f"{path} = {odd!r} was read as something else"


@pytest.mark.parametrize(("data", "read"), READERS.values(), ids=READERS)
def test_a_field_that_is_not_known_is_refused(data: bytes, read: Callable[[bytes], bytes]) -> None:
    with pytest.raises(FormatError, match="unknown or of another type"):
        read(canonical.to_bytes(json.loads(data) | {"surprise": 1}))
