"""Conformance, sections 4.2, 4.3, 5.2, 5.3 and 6.1: the anchor, the chain of roots, the keys."""

import json
from collections.abc import Callable
from datetime import timedelta

from securesystemslib.signer import CryptoSigner
from tests.conformance_bench import Bench, Case, collector

CASES: list[Case] = []
case = collector(CASES)

KEY_TYPES: dict[str, Callable[[], CryptoSigner]] = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsa": CryptoSigner.generate_rsa,
}


def _tampered(data: bytes) -> bytes:
    document = json.loads(data)
    document["signatures"][0]["sig"] = "00" * 64
    return json.dumps(document).encode()


def with_keys_of(kind: str) -> Callable[[Bench], None]:
    def play(on: Bench) -> None:
        repository = on.use(make_key=KEY_TYPES[kind])
        repository.add_target("targets", "file", b"data")
        repository.publish("targets")
        assert on.init() == 0
        assert on.download("file") == 0
        assert on.downloaded() == [b"data"]

    return play


for _kind in KEY_TYPES:
    CASES.append(Case("4.2.1", f"keys of type {_kind} sign every role", with_keys_of(_kind)))


@case("4.2", "fields that nobody knows are kept and signed")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.root.unrecognized_fields["new-field"] = {"a": [1, 2]}
    on.repository.root.roles["timestamp"].unrecognized_fields["other"] = "value"
    data = on.repository.new_root()
    assert on.refresh() == 0
    assert on.stored("root") == data


@case("4.2", "a field that was changed after signing is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.root.unrecognized_fields["new-field"] = "genuine"
    data = on.repository.new_root()
    on.repository.files["metadata/2.root.json"] = data.replace(b"genuine", b"altered")
    assert on.repository.files["metadata/2.root.json"] != data
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.2", "a pinned root that has expired is a beginning all the same")
def _(on: Bench) -> None:
    on.repository.root.expires = on.now - timedelta(days=1)
    assert on.init(on.repository.put("root")) == 0
    on.repository.root.expires = on.repository.expires
    on.repository.new_root()
    assert on.refresh() == 0
    assert on.version("root") == 2


@case("5.2", "a pinned root without its signatures anchors nothing and nobody is asked")
def _(on: Bench) -> None:
    assert on.init(_tampered(on.repository.first_root)) == 1
    assert on.refresh() == 1
    assert on.asked == []


@case("5.2", "a pinned root that is malformed anchors nothing and nobody is asked")
def _(on: Bench) -> None:
    document = json.loads(on.repository.first_root)
    del document["signed"]["version"]
    assert on.init(json.dumps(document).encode()) == 1
    assert on.refresh() == 1
    assert on.asked == []


@case("5.2", "init asks nobody")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.asked == []


@case("5.3.3", "roles are asked for in the order of the workflow")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    assert on.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert [on.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1] * 4


@case("5.3.3", "every root in between is fetched, each once")
def _(on: Bench) -> None:
    assert on.init() == 0
    for _count in range(3):
        on.repository.renew_keys("root")
        on.repository.new_root()
    assert on.refresh() == 0
    assert on.asked[:4] == [f"{version}.root.json" for version in (2, 3, 4, 5)]
    assert on.version("root") == 4
    assert on.refresh() == 0
    assert on.asked == ["5.root.json", "timestamp.json"]


@case("5.3.3", "a root that does not end is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    data = on.repository.new_root()
    on.repository.files["metadata/2.root.json"] = data + b" " * 600_000
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.3", "a forbidden next root is a missing one")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.server.statuses["metadata/2.root.json"] = 403
    assert on.refresh() == 0


@case("5.3.3", "a server that fails at the next root has not said that there is none")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.server.statuses["metadata/2.root.json"] = 500
    assert on.refresh() == 1
    assert on.version("timestamp") == 0


@case("5.3.3", "the chain of roots that one update follows has an end")
def _(on: Bench) -> None:
    assert on.init() == 0
    for _count in range(258):
        on.repository.new_root()
    assert on.refresh() == 0
    assert on.version("root") == 257  # python-tuf's 256 steps
    assert on.asked[-4] == "257.root.json"


@case("5.3.4", "a root that the old root's keys have not signed is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.renew_keys("root")
    on.repository.new_root(on.repository.signers["root"])
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.4", "a root that its own keys have not signed is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.new_root(on.repository.renew_keys("root"))
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.4", "a root signed by both thresholds takes over")
def _(on: Bench) -> None:
    on.repository.renew_keys("root", count=3, threshold=2)
    assert on.init(on.repository.put("root")) == 0
    old = on.repository.renew_keys("root", count=4, threshold=3)
    on.repository.new_root([*old[:2], *on.repository.signers["root"][1:]])
    assert on.refresh() == 0
    assert on.version("root") == 2


@case("5.3.4", "one signature fewer than the new threshold is too few")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.renew_keys("root", count=3, threshold=3)
    on.repository.new_root([*old, *on.repository.signers["root"][:2]])
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.4", "one key's signature twice is not two")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.renew_keys("root", count=2, threshold=2)
    document = json.loads(on.repository.new_root([*old, on.repository.signers["root"][0]]))
    document["signatures"].append(document["signatures"][-1])
    on.repository.files["metadata/2.root.json"] = json.dumps(document).encode()
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.5", "a root of another version than its name says is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.new_root()
    files = on.repository.files
    files["metadata/2.root.json"] = on.repository.new_root()
    assert on.refresh() == 1
    assert on.version("root") == 1


@case("5.3.6", "a root in between may have expired")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.root.expires = on.now - timedelta(days=1)
    on.repository.new_root()
    on.repository.root.expires = on.repository.expires
    on.repository.new_root()
    assert on.refresh() == 0
    assert on.version("root") == 3


@case("5.3.8", "the newest root is kept as it was served")
def _(on: Bench) -> None:
    assert on.init() == 0
    data = on.repository.new_root()
    assert on.refresh() == 0
    assert on.stored("root") == data


@case("5.3.10", "a newest root that has expired ends the update")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.root.expires = on.now - timedelta(days=1)
    on.repository.new_root()
    assert on.refresh() == 1
    assert (on.version("root"), on.version("timestamp")) == (2, 0)


@case("5.3.11", "new timestamp keys undo a fast-forwarded timestamp")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.timestamp.version = 99_999
    on.repository.publish_timestamp()
    assert on.refresh() == 0
    on.repository.renew_keys("timestamp")
    on.repository.new_root()
    on.repository.timestamp.version = 1
    on.repository.publish_timestamp()
    assert on.refresh() == 0
    assert on.version("timestamp") == 2


@case("5.3.11", "new snapshot and timestamp keys undo a fast-forwarded snapshot")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.snapshot.version = 99_999
    on.repository.publish_snapshot()
    assert on.refresh() == 0
    assert on.version("snapshot") == 100_000
    on.repository.renew_keys("snapshot")
    on.repository.renew_keys("timestamp")
    on.repository.new_root()
    on.repository.snapshot.version = 1
    on.repository.publish_snapshot()
    assert on.refresh() == 0
    assert on.version("snapshot") == 2


@case("5.3.11", "new snapshot keys undo fast-forwarded targets")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.targets["targets"].version = 99_999
    on.repository.publish("targets")
    assert on.refresh() == 0
    assert on.version("targets") == 100_000
    on.repository.renew_keys("snapshot")
    on.repository.new_root()
    on.repository.targets["targets"].version = 1
    on.repository.publish("targets")
    assert on.refresh() == 0
    assert on.version("targets") == 2


@case("5.3.12", "without consistent snapshots nothing but roots has a version in its name")
def _(on: Bench) -> None:
    on.use(consistent=False)
    assert on.init() == 0
    assert on.refresh() == 0
    assert on.asked == ["2.root.json", "timestamp.json", "snapshot.json", "targets.json"]


@case("5.3.12", "a new root may begin consistent snapshots")
def _(on: Bench) -> None:
    repository = on.use(consistent=False)
    assert on.init() == 0
    assert on.refresh() == 0
    repository.root.consistent_snapshot = True
    repository.new_root()
    repository.publish("targets")
    assert on.refresh() == 0
    assert on.asked[-2:] == ["2.snapshot.json", "2.targets.json"]


def replaced_keys_of(role: str) -> Callable[[Bench], None]:
    """A role's keys are replaced: what the old ones sign is refused, the new ones' is not."""

    def play(on: Bench) -> None:
        assert on.init() == 0
        assert on.refresh() == 0
        old = on.repository.renew_keys(role)
        new, on.repository.signers[role] = on.repository.signers[role], old
        on.repository.new_root()
        on.repository.publish("targets")
        assert on.refresh() == 1
        on.repository.signers[role] = new
        on.repository.publish("targets")
        assert on.refresh() == 0

    return play


for _role in ("timestamp", "snapshot", "targets"):
    CASES.append(Case("6.1", f"replaced {_role} keys sign nothing more", replaced_keys_of(_role)))
