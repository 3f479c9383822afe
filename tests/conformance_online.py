"""Conformance, sections 5.4 and 5.5: timestamp and snapshot."""

import json
from datetime import timedelta

from tests.conformance_bench import Bench, Case, collector

CASES: list[Case] = []
case = collector(CASES)


def _with_snapshot_of(on: Bench) -> None:
    """Pin, and see one snapshot that names another role."""
    on.repository.delegate("targets", "role")
    on.repository.publish("targets")
    assert on.init() == 0
    assert on.refresh() == 0


@case("5.4.1", "a timestamp that does not end is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.files["metadata/timestamp.json"] += b" " * 20_000
    assert on.refresh() == 1
    assert on.version("timestamp") == 0


@case("5.4.1", "without a timestamp there is no update")
def _(on: Bench) -> None:
    assert on.init() == 0
    del on.repository.files["metadata/timestamp.json"]
    assert on.refresh() == 1
    assert on.asked[-1] == "timestamp.json"


@case("5.4.2", "a timestamp signed by another role's key is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.put("timestamp", on.repository.signers["snapshot"])
    assert on.refresh() == 1
    assert on.version("timestamp") == 0


@case("5.4.2", "a timestamp below its threshold is refused")
def _(on: Bench) -> None:
    on.repository.renew_keys("timestamp", count=2)
    assert on.init(on.repository.put("root")) == 0
    on.repository.put("timestamp", on.repository.signers["timestamp"][:1])
    assert on.refresh() == 1
    on.repository.put("timestamp")
    assert on.refresh() == 0


@case("5.4.2", "bytes that are no metadata are refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    for data in (b"", b"{}", b"[" * 10_000, b"\xff\x00", b'{"signed": {}, "signatures": []}'):
        on.repository.files["metadata/timestamp.json"] = data
        assert on.refresh() == 1
    assert on.version("timestamp") == 0


@case("5.4.3.1", "an older timestamp is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.files["metadata/timestamp.json"]
    on.repository.publish_timestamp()
    assert on.refresh() == 0
    on.repository.files["metadata/timestamp.json"] = old
    assert on.refresh() == 1
    assert on.version("timestamp") == 2
    assert on.asked[-1] == "timestamp.json"


@case("5.4.3.1", "a timestamp of the version that is known changes nothing and is no error")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    known = on.stored("timestamp")
    on.repository.timestamp.snapshot_meta.version = 100
    on.repository.put("timestamp")
    assert on.refresh() == 0
    assert on.stored("timestamp") == known


@case("5.4.3.2", "a newer timestamp that names an older snapshot is refused")
def _(on: Bench) -> None:
    on.repository.publish_snapshot()
    assert on.init() == 0
    assert on.refresh() == 0
    on.repository.timestamp.snapshot_meta.version = 1
    on.repository.publish_timestamp()
    assert on.refresh() == 1
    assert (on.version("timestamp"), on.version("snapshot")) == (2, 2)


@case("5.4.4", "an expired timestamp is refused: nobody can freeze a client for longer")
def _(on: Bench) -> None:
    on.repository.timestamp.expires = on.now + timedelta(days=1)
    on.repository.publish_timestamp()
    assert on.init() == 0
    assert on.refresh() == 0
    assert on.refresh(days=2) == 1
    on.repository.timestamp.expires = on.repository.expires
    on.repository.publish_timestamp()
    assert on.refresh(days=2) == 0


@case("5.4.4", "a known timestamp that has expired still protects from older ones")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.files["metadata/timestamp.json"]
    on.repository.timestamp.expires = on.now + timedelta(days=1)
    on.repository.publish_timestamp()
    assert on.refresh() == 0
    on.repository.files["metadata/timestamp.json"] = old
    assert on.refresh(days=2) == 1
    assert on.version("timestamp") == 2


@case("5.4.5", "the timestamp is kept as it was served")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    assert on.stored("timestamp") == on.repository.files["metadata/timestamp.json"]


@case("5.5.1", "a snapshot that is known is not fetched again")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    on.repository.publish_timestamp()
    assert on.refresh() == 0
    assert on.asked == ["2.root.json", "timestamp.json"]


@case("5.5.1", "a snapshot longer than the timestamp says is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.hashed = True
    on.repository.publish_snapshot()
    on.repository.files["metadata/2.snapshot.json"] += b" "
    assert on.refresh() == 1
    assert on.version("snapshot") == 0


@case("5.5.2", "a snapshot of another digest is refused, however well it is signed")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.hashed = True
    on.repository.snapshot.unrecognized_fields["x"] = "one"
    on.repository.publish_snapshot()
    on.repository.snapshot.unrecognized_fields["x"] = "two"  # as long as the one before
    on.repository.put("snapshot")
    assert on.refresh() == 1
    assert on.version("snapshot") == 0


@case("5.5.3", "a snapshot signed by the timestamp's key is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    on.repository.put("snapshot", on.repository.signers["timestamp"])
    assert on.refresh() == 1
    assert on.version("snapshot") == 0


@case("5.5.4", "a snapshot of another version than the timestamp says is refused")
def _(on: Bench) -> None:
    assert on.init() == 0
    old = on.repository.files["metadata/1.snapshot.json"]
    on.repository.publish_snapshot()
    on.repository.files["metadata/2.snapshot.json"] = old
    assert on.refresh() == 1
    assert on.version("snapshot") == 0
    assert on.asked[-1] == "2.snapshot.json"


@case("5.5.5", "a snapshot that takes targets back is refused")
def _(on: Bench) -> None:
    _with_snapshot_of(on)
    on.repository.snapshot.meta["targets.json"].version = 1
    on.repository.publish_snapshot()
    assert on.refresh() == 1
    assert (on.version("snapshot"), on.version("targets")) == (2, 2)


@case("5.5.5", "a snapshot that takes a delegated role back is refused")
def _(on: Bench) -> None:
    on.repository.delegate("targets", "role")
    on.repository.publish("role", "targets")
    assert on.init() == 0
    assert on.refresh() == 0
    on.repository.snapshot.meta["role.json"].version = 1
    on.repository.publish_snapshot()
    assert on.refresh() == 1
    assert on.version("snapshot") == 2


@case("5.5.5", "a role does not vanish from the snapshot")
def _(on: Bench) -> None:
    _with_snapshot_of(on)
    del on.repository.snapshot.meta["role.json"]
    on.repository.publish_snapshot()
    assert on.refresh() == 1
    assert on.version("snapshot") == 2


@case("5.5.5", "digests in the timestamp do not switch the comparison of versions off")
def _(on: Bench) -> None:
    on.repository.hashed = True
    _with_snapshot_of(on)
    on.repository.snapshot.meta["targets.json"].version = 1
    on.repository.publish_snapshot()
    assert on.refresh() == 1
    assert on.version("snapshot") == 2


@case("5.5.6", "an expired snapshot is refused")
def _(on: Bench) -> None:
    on.repository.snapshot.expires = on.now + timedelta(days=1)
    on.repository.publish_snapshot()
    assert on.init() == 0
    assert on.refresh(days=2) == 1
    assert on.version("targets") == 0


@case("5.5.6", "a known snapshot that has expired still protects from older targets")
def _(on: Bench) -> None:
    on.repository.snapshot.expires = on.now + timedelta(days=1)
    _with_snapshot_of(on)
    on.repository.snapshot.expires = on.repository.expires
    on.repository.snapshot.meta["targets.json"].version = 1
    on.repository.publish_snapshot()
    assert on.refresh(days=2) == 1
    assert on.version("targets") == 2


@case("5.5.7", "the snapshot is kept as it was served")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    assert on.stored("snapshot") == on.repository.files["metadata/1.snapshot.json"]


@case("5.5.7", "a snapshot torn on disk is fetched again")
def _(on: Bench) -> None:
    assert on.init() == 0
    assert on.refresh() == 0
    (on.metadata / "snapshot.json").write_bytes(json.dumps({"signed": 1}).encode())
    assert on.refresh() == 0
    assert on.asked[-1] == "1.snapshot.json"
    assert on.version("snapshot") == 1
