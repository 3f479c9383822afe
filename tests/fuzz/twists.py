"""Documents with one thing wrong in them, of the kinds that parsers fall over.

Noise rarely gets beyond the first check. A twist begins with a document that is right, changes one
place in its tree, and writes it as canonically as it can be written: what reads it sees nothing
wrong until it comes to that place.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import rfc8785
from hypothesis import strategies as st

DEEP: Final = 3000
HOSTILE: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 - 1, -(2**53) + 1, 2**63, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", " ", "0", "\0", "\ud800", "\u202e", "../..", "/", "x" * 5000,
    "9" * 5000, "\u0661", "2026-06-01T12:00:00.000000Z", "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00.000000+14:00", [], {}, [[]], [{}], [None], {"": None}, ["x"] * 300,
    {str(number): number for number in range(300)},
)  # fmt: skip


def nested(depth: int, kind: str) -> Any:
    """Return lists or objects in each other."""
    found: Any = 0
    for _ in range(depth):
        found = [found] if kind == "list" else {"a": found}
    return found


def written(document: Any) -> bytes:
    """Return a document's bytes, canonical where it has such a form."""
    try:
        return rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError):
        pass
    try:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * DEEP


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    found = [path]
    if isinstance(node, dict):
        found += [one for key in sorted(node) for one in places(node[key], (*path, key))]
    elif isinstance(node, list):
        found += [one for at, below in enumerate(node) for one in places(below, (*path, at))]
    return found


def _inside(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


@st.composite
def values(draw: st.DrawFn) -> Any:
    """Draw what stands where something else should."""
    kind = draw(st.sampled_from(["hostile", "hostile", "hostile", "text", "number", "nested"]))
    if kind == "text":
        return draw(st.text(max_size=30))
    if kind == "number":
        return draw(st.integers() | st.floats())
    if kind == "nested":
        return nested(draw(st.sampled_from([5, 200, 900])), draw(st.sampled_from(["list", "map"])))
    return draw(st.sampled_from(HOSTILE))


def twist(document: Any, choose: Callable[[Sequence[Any]], Any], value: Callable[[], Any]) -> Any:
    """Return a copy in which one place is another, missing, doubled or unheard of.

    Args:
        document: What is right.
        choose: Chooses among several.
        value: Makes what stands where something else should.
    """
    copy = json.loads(json.dumps(document))
    path = choose(places(copy))
    if not path:
        return value()
    above, last = _inside(copy, path[:-1]), path[-1]
    how = choose(["replace", "replace", "replace", "remove", "add", "double"])
    if how == "remove":
        del above[last]
    elif how == "add" and isinstance(above, dict):
        above[choose(["", "x", "\0", "kind", "format", "__class__"])] = value()
    elif how == "double" and isinstance(above, list):
        above.append(above[last])
    else:
        above[last] = value()
    return copy


@st.composite
def twisted(draw: st.DrawFn, document: Any) -> Any:
    """Draw a twist of a document."""
    return twist(document, lambda several: draw(st.sampled_from(several)), lambda: draw(values()))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes that differ a little from those given."""
    at = draw(st.integers(0, max(0, len(data) - 1)))
    noise = draw(st.binary(max_size=8))
    how = draw(st.sampled_from(["overwrite", "insert", "cut", "repeat", "drop"]))
    if how == "overwrite":
        return data[:at] + noise + data[at + len(noise) :]
    if how == "insert":
        return data[:at] + noise + data[at:]
    if how == "cut":
        return data[:at]
    if how == "repeat":
        return data[:at] + data[at : at + 40] * 3 + data[at + 40 :]
    return data[:at] + data[at + len(noise) + 1 :]


@st.composite
def twice(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """Draw a document in which a key comes twice."""
    key = draw(st.sampled_from(sorted(document)))
    again = json.dumps({key: draw(values())}).encode("utf-8", "surrogatepass")
    return written(document)[:-1] + b"," + again[1:]


def of(seed: bytes) -> st.SearchStrategy[bytes]:
    """Return bytes that begin with a seed: twists if it is JSON, damage in any case."""
    try:
        document = json.loads(seed)
    except ValueError:
        return damaged(seed)
    if not isinstance(document, dict):
        return damaged(seed)
    return st.one_of(twisted(document).map(written), damaged(seed), twice(document))
