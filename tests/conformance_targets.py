"""Conformance, sections 5.6, 5.7 and 6.2: targets metadata, the fetching of a target."""

from collections.abc import Callable
from datetime import timedelta

from tests.conformance_bench import Bench, Case, collector

CASES: list[Case] = []
case = collector(CASES)


def tricky(path: str) -> Callable[[Bench], None]:
    """A signed target whose path leads elsewhere is refused, and nothing is written."""

    def play(on: Bench) -> None:
        on.repository.add_target("targets", path, b"evil")
        on.repository.publish("targets")
        assert on.init() == 0
        before = set(on.directory.rglob("*"))
        assert on.download(path) == 1
        assert not any(name.startswith("targets/") for name in on.asked)
        written = set(on.directory.rglob("*")) - before
        assert all(on.metadata in file.parents for file in written)

    return play


for _path in ("../evil", "a/../../evil", "/evil", "a//evil", "..", "a\\evil", "a\nevil"):
    CASES.append(Case("5.7.3", f"the path {_path!r} is a trick", tricky(_path)))


@case("5.6.1", "targets longer than the snapshot says are refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.hashed = True
    on.repository.publish("targets")
    on.repository.files["metadata/2.targets.json"] += b" "
    assert on.refresh() == 1
    assert on.version("targets") == 0


@case("5.6.1", "targets that are known are not fetched again")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    on.repository.publish_snapshot()
    assert on.refresh() == 0
    assert on.asked == ["2.root.json", "timestamp.json", "2.snapshot.json"]


@case("5.6.2", "targets of another digest are refused, however well they are signed")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.hashed = True
    on.repository.targets["targets"].unrecognized_fields["x"] = "one"
    on.repository.publish("targets")
    on.repository.targets["targets"].unrecognized_fields["x"] = "two"  # as long as the one before
    on.repository.put("targets")
    assert on.refresh() == 1
    assert on.version("targets") == 0


@case("5.6.3", "targets signed by online keys are refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.put("targets", on.repository.signers["snapshot"])
    assert on.refresh() == 1
    assert on.version("targets") == 0


@case("5.6.3", "a delegated role below its threshold is refused")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "role", threshold=2)
    on.repository.add_target("role", "file", b"data")
    on.repository.publish("role", "targets")
    on.repository.put("role", on.repository.signers["role"][:1])
    assert on.init() == 0
    assert on.download("file") == 1
    on.repository.put("role")
    assert on.download("file") == 0


@case("5.6.3", "a role that is cached must be signed as its delegator says now")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "role")
    on.repository.add_target("role", "file", b"data")
    on.repository.publish("role", "targets")
    assert on.init() == 0
    assert on.download("file") == 0
    delegations = on.repository.targets["targets"].delegations
    assert delegations is not None
    on.repository.targets["targets"].revoke_key(
        on.repository.signers["role"][0].public_key.keyid, "role"
    )
    on.repository.targets["targets"].add_key(on.repository.make_key().public_key, "role")
    on.repository.publish("targets")
    assert on.download("file") == 1


@case("5.6.4", "targets of another version than the snapshot says are refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.files["metadata/1.targets.json"]
    on.repository.publish("targets")
    on.repository.files["metadata/2.targets.json"] = old
    assert on.refresh() == 1
    assert on.version("targets") == 0


@case("5.6.5", "expired targets are refused")
def _(on: Bench) -> None:
    on.repository.targets["targets"].expires = on.now + timedelta(days=1)
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.refresh(days=2) == 1
    assert on.version("targets") == 0
    assert on.refresh() == 0


@case("5.6.5", "an expired delegated role is refused, also where it is cached")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "role")
    on.repository.targets["role"].expires = on.now + timedelta(days=1)
    on.repository.add_target("role", "file", b"data")
    on.repository.publish("role", "targets")
    assert on.init() == 0
    assert on.download("file") == 0
    assert on.download("file", days=2) == 1


@case("5.6.6", "targets and delegated roles are kept as they were served")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "a/role")
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("missing") == 1
    assert on.stored("targets") == on.repository.files["metadata/2.targets.json"]
    assert on.stored("a/role") == on.repository.files["metadata/1.a%2Frole.json"]


@case("5.6.7", "a role that is delegated to but in no snapshot ends the search")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "ghost")
    on.repository.delegate("targets", "role")
    on.repository.add_target("role", "file", b"data")
    del on.repository.snapshot.meta["ghost.json"]
    on.repository.publish("role", "targets")
    assert on.init() == 0
    assert on.download("file") == 1
    assert on.downloaded() == []


@case("5.6.7", "the most trusted role that has the target counts")
def _(on: Bench) -> None:
    for name in ("first", "second"):
        on.repository.delegate("targets", name)
        on.repository.add_target(name, "file", name.encode())
    on.repository.publish("first", "second", "targets")
    assert on.init() == 0
    assert on.download("file") == 0
    assert on.downloaded() == [b"first"]
    assert on.asked[4] == "2.first.json"
    assert not any("second.json" in name for name in on.asked)


@case("5.6.7.1", "the roles that one search visits have an end")
def _(on: Bench) -> None:
    for number in range(40):
        on.repository.delegate("targets", f"role{number}")
    on.repository.add_target("role39", "file", b"too far")
    on.repository.publish("role39", "targets")
    assert on.init() == 0
    assert on.download("file") == 1
    assert len(on.asked) == 4 + 32  # python-tuf's max_delegations, targets itself not counted


@case("5.7.2", "a target that nobody signed is told, after the metadata was brought up to date")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.files["targets/file"] = b"lies there, unsigned"
    assert on.download("file") == 1
    assert on.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert on.downloaded() == []


@case("5.7.3", "a digest is part of the name that is asked for, and of no name on disk")
def _(on: Bench) -> None:
    place = on.repository.add_target("targets", "deep/in/file.bin", b"data")
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("deep/in/file.bin") == 0
    assert on.asked[-1] == place
    assert on.downloaded() == [b"data"]


@case("5.7.3", "any digest that is signed will do")
def _(on: Bench) -> None:
    place = on.repository.add_target("targets", "file", b"data", ["sha512"])
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("file") == 0
    assert on.asked[-1] == place


@case("5.7.3", "every digest that is signed must be right")
def _(on: Bench) -> None:
    on.repository.add_target("targets", "file", b"data", ["sha256", "sha512"])
    on.repository.targets["targets"].targets["file"].hashes["sha512"] = "00" * 64
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("file") == 1
    assert on.downloaded() == []


@case("5.7.3", "without consistent snapshots a target has its own name")
def _(on: Bench) -> None:
    repository = on.use(consistent=False)
    repository.add_target("targets", "deep/file", b"data")
    repository.publish("targets")
    assert on.init() == 0
    assert on.download("deep/file") == 0
    assert on.asked[-1] == "targets/deep/file"


def substituted(served: bytes) -> Callable[[Bench], None]:
    """What is served is not what was signed: it is refused, and what was there stays."""

    def play(on: Bench) -> None:
        on.repository.add_target("targets", "file", b"the first")
        on.repository.publish("targets")
        assert on.init() == 0
        assert on.download("file") == 0
        place = on.repository.add_target("targets", "file", b"the second")
        on.repository.publish("targets")
        on.repository.files[place] = served
        assert on.download("file") == 1
        assert on.downloaded() == [b"the first"]

    return play


for _what, _served in {
    "other bytes": b"THE SECOND",
    "fewer bytes": b"the secon",
    "more bytes": b"the second!",
    "no end": b"the second" + bytes(1_000_000),
    "nothing": b"",
}.items():
    CASES.append(Case("5.7.3", f"a target served with {_what} is refused", substituted(_served)))


@case("5.7.3", "a target that is there is not fetched again")
def _(on: Bench) -> None:
    on.repository.add_target("targets", "file", b"data")
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("file") == 0
    assert on.download("file") == 0
    assert on.asked == ["2.root.json", "timestamp.json"]


@case("5.7.3", "a target that has changed takes the place of the old one")
def _(on: Bench) -> None:
    assert on.init() == 0
    for data in (b"one", b"two", b"three"):
        on.repository.add_target("targets", "file", data)
        on.repository.publish("targets")
        assert on.download("file") == 0
        assert on.downloaded() == [data]


@case("5.7.3", "a target damaged on disk is fetched again")
def _(on: Bench) -> None:
    on.repository.add_target("targets", "file", b"data")
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.download("file") == 0
    (on.targets / "file").write_bytes(b"DATA")
    assert on.download("file") == 0
    assert on.downloaded() == [b"data"]


@case("5.7.3", "targets come in order, up to the first that fails")
def _(on: Bench) -> None:
    for name in ("a", "b", "c"):
        on.repository.add_target("targets", name, name.encode())
    on.repository.publish("targets")
    on.repository.files[on.repository.add_target("targets", "b", b"b")] = b"B"
    assert on.init() == 0
    assert on.download("a", "b", "c") == 1
    assert on.downloaded() == [b"a"]


@case("6.2", "what was published since is not seen in the middle of an older snapshot")
def _(on: Bench) -> None:
    on.repository.add_target("targets", "file", b"old")
    on.repository.publish("targets")
    timestamp = on.repository.files["metadata/timestamp.json"]
    on.repository.add_target("targets", "file", b"new")
    on.repository.publish("targets")
    on.repository.files["metadata/timestamp.json"] = timestamp
    assert on.init() == 0
    assert on.download("file") == 0
    assert on.downloaded() == [b"old"]
    assert on.asked[2:4] == ["2.snapshot.json", "2.targets.json"]
