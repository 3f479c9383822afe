"""Conformance, sections 4.5, 5.6.6 and 5.6.7: the graph of delegations and the names in it."""

import hashlib
from collections.abc import Callable
from urllib.parse import quote

from tests.conformance_bench import Bench, Case, collector

CASES: list[Case] = []
case = collector(CASES)

Edge = tuple[str, str] | tuple[str, str, str]
GRAPHS: dict[str, tuple[tuple[Edge, ...], str]] = {
    "siblings come in order": ((("targets", "A"), ("targets", "B")), "AB"),
    "the order is the delegator's": ((("targets", "B"), ("targets", "A")), "BA"),
    "children come before siblings": (
        (("targets", "A"), ("targets", "B"), ("A", "C"), ("A", "D")),
        "ACDB",
    ),
    "grandchildren come before siblings": (
        (("targets", "A"), ("targets", "B"), ("A", "C"), ("C", "D")),
        "ACDB",
    ),
    "a role that two delegate to is visited once": (
        (("targets", "A"), ("targets", "B"), ("A", "C"), ("B", "C")),
        "ACB",
    ),
    "a cycle ends": (
        (("targets", "A"), ("targets", "B"), ("B", "C"), ("C", "D"), ("D", "B")),
        "ABCD",
    ),
    "a role may delegate to itself": ((("targets", "A"), ("A", "A"), ("targets", "B")), "AB"),
    "branches for other paths are not entered": (
        (("targets", "A", "*.py"), ("targets", "B"), ("A", "C")),
        "B",
    ),
}
TERMINATING: dict[str, tuple[tuple[Edge, ...], str, str]] = {
    "a terminating delegation ends the search after its own branch": (
        (("targets", "A"), ("targets", "B"), ("A", "C"), ("A", "D")),
        "C",
        "AC",
    ),
    "below a terminating delegation the search goes on": (
        (("targets", "A"), ("targets", "B"), ("A", "C"), ("C", "D")),
        "C",
        "ACD",
    ),
    "a terminating delegation for other paths ends nothing": (
        (("targets", "A", "*.py"), ("targets", "B")),
        "A",
        "B",
    ),
}


def walk(edges: tuple[Edge, ...], terminating: str, visited: str) -> Callable[[Bench], None]:
    """A target that is nowhere makes the client visit every role that could have it."""

    def play(on: Bench) -> None:
        assert on.init() == 0
        for parent, name, *paths in edges:
            on.repository.delegate(
                parent, name, paths=paths or ["*"], terminating=name in terminating
            )
        on.repository.publish(*dict.fromkeys(parent for parent, *_ in edges))
        assert on.download("missing") == 1
        assert [name.split(".")[1] for name in on.asked[4:]] == [*visited]
        assert on.downloaded() == []

    return play


for _title, (_edges, _visited) in GRAPHS.items():
    CASES.append(Case("5.6.7", _title, walk(_edges, "", _visited)))
for _title, (_edges, _ends, _visited) in TERMINATING.items():
    CASES.append(Case("5.6.7.2.1", _title, walk(_edges, _ends, _visited)))


def named(role: str) -> Callable[[Bench], None]:
    """The name of a role is quoted in requests and leads to no other place on disk."""

    def play(on: Bench) -> None:
        on.repository.delegate("targets", role)
        on.repository.publish("targets")
        assert on.init() == 0
        around = set(on.directory.iterdir())
        assert on.download("missing") == 1
        assert on.asked[-1] == f"1.{quote(role, safe='')}.json"
        assert on.stored(role) is not None
        assert set(on.directory.iterdir()) == around

    return play


for _role in ("?", "#", "/role", "../role", "a b", "%2e%2e", "é"):
    CASES.append(Case("5.6.6", f"a role may be called {_role!r}", named(_role)))


@case("4.5", "a star matches no slash")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "flat", paths=["files/*"])
    on.repository.delegate("targets", "deep", paths=["files/*/*"])
    on.repository.add_target("flat", "files/deep/one", b"by flat")
    on.repository.add_target("deep", "files/deep/one", b"by deep")
    on.repository.publish("flat", "deep", "targets")
    assert on.init() == 0
    assert on.download("files/deep/one") == 0
    assert on.downloaded() == [b"by deep"]
    assert not any("flat" in name for name in on.asked)


@case("4.5", "a role cannot sign what it was not given")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "role", paths=["mine/*"])
    on.repository.add_target("role", "yours/file", b"data")
    on.repository.publish("role", "targets")
    assert on.init() == 0
    assert on.download("yours/file") == 1
    assert on.downloaded() == []


@case("4.5", "a path must be given by every role on the way to it")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "outer", paths=["x/*"])
    on.repository.delegate("outer", "inner", paths=["x/*", "y/*"])
    on.repository.add_target("inner", "x/file", b"allowed")
    on.repository.add_target("inner", "y/file", b"not allowed")
    on.repository.publish("inner", "outer", "targets")
    assert on.init() == 0
    assert on.download("x/file") == 0
    assert on.download("y/file") == 1
    assert on.downloaded() == [b"allowed"]


@case("4.5", "a prefix of a path's digest chooses the role")
def _(on: Bench) -> None:
    path = "bins/file"
    first = hashlib.sha256(path.encode()).hexdigest()[0]
    others = "".join(digit for digit in "0123456789abcdef" if digit != first)
    on.repository.delegate("targets", "others", prefixes=[*others])
    on.repository.delegate("targets", "own", prefixes=[first])
    on.repository.add_target("own", path, b"binned")
    on.repository.publish("own", "targets")
    assert on.init() == 0
    assert on.download(path) == 0
    assert on.asked[4:5] == ["2.own.json"]
