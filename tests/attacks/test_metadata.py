"""Attacks by who stands between a device and its server: lies about what is newest."""

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from tests import update_fakes
from tests.attacks.bench import (
    METADATA,
    TIMESTAMP,
    Bench,
    Mirror,
    Thief,
    begin,
    dripping,
    edited,
    recovers,
    refused,
    sampled,
    silent,
    unharmed,
)
from tests.client_fakes import today
from tests.ota_fakes import FaultServer
from tests.update_fakes import offer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from wildflower.ota.errors import RefusedError, SlowError
from wildflower.ota.release import fetch, signing
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.repository import Changes

FAR = 2**31 - 1


@pytest.fixture
def mirror(bench: Bench) -> Iterator[FaultServer]:
    with FaultServer(Mirror(bench.releases)) as server:
        yield server


def lies(server: FaultServer) -> dict[str, bytes | None]:
    """Return what a mirror serves in place of what is published."""
    assert isinstance(server.origin, Mirror)
    return server.origin.instead


def test_a_timestamp_that_is_rolled_back(bench: Bench, mirror: FaultServer) -> None:
    old = bench.releases.repository.current("timestamp")
    bench.releases.repository.publish(Changes(), bench.releases.keys, today())
    bench.kit.look()
    lies(mirror)[TIMESTAMP] = old
    refused(bench, mirror.url, r"rollback: .*timestamp version", error=RefusedError)
    recovers(bench)


def test_a_repository_that_is_served_as_it_was(bench: Bench, mirror: FaultServer) -> None:
    assert isinstance(mirror.origin, Mirror)
    mirror.origin.freeze()
    second = offer(bench.server, 2)
    bench.kit.look()
    bench.first = second
    bench.kit.changes["endpoints_device"] = mirror.url
    with pytest.raises(RefusedError, match="rollback"):
        bench.kit.look()
    assert bench.kit.running == second.digest
    [told] = [one for one in bench.reports() if one.outcome == "refused"]
    assert "rollback" in told.reason
    recovers(bench)


def test_a_freeze_shows_when_what_is_served_expires(
    bench: Bench, mirror: FaultServer, tmp_path: Path
) -> None:
    two_days = timedelta(days=2)
    bench = begin(bench.server, tmp_path / "slow clock", order=2, late=-two_days)
    bench.releases.repository.publish(Changes(), bench.releases.keys, today() - two_days)
    bench.kit.look()
    assert isinstance(mirror.origin, Mirror)
    mirror.origin.freeze()
    offer(bench.server, 3)
    bench.look(mirror.url)
    assert bench.errors == []  # what is good for a day may be old for a day
    bench.kit.late = timedelta()
    refused(bench, mirror.url, "expired: .*timestamp", error=RefusedError)
    recovers(bench)


def test_versions_that_do_not_belong_together(bench: Bench, mirror: FaultServer) -> None:
    before = bench.releases.repository.current("rollout")
    offer(bench.server, 2)
    after = Metadata.from_bytes(bench.releases.repository.current("rollout")).signed.version
    lies(mirror)[f"{METADATA}/{after}.rollout.json"] = before
    refused(bench, mirror.url, f"rollback: Expected rollout v{after}", error=RefusedError)
    recovers(bench)


def test_metadata_without_end(bench: Bench, mirror: FaultServer) -> None:
    mirror.faults.endless_metadata = True
    refused(bench, mirror.url, "metadata: endless", error=RefusedError)
    recovers(bench)


def test_metadata_that_drips(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LONGEST_S", 0.1)
    with dripping(Mirror(bench.releases), TIMESTAMP) as url:
        refused(bench, url, r"timestamp\.json: not there after", error=SlowError)
    monkeypatch.undo()
    recovers(bench)


def test_headers_that_never_come(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = partial(Connection, headers_s=0.1)
    monkeypatch.setattr(update_fakes, "Connection", made)
    with silent() as url:
        refused(bench, url, r"no headers within 0\.1 s", error=SlowError)
    monkeypatch.undo()
    recovers(bench)


def test_a_signature_by_a_key_that_is_not_the_roles(bench: Bench, mirror: FaultServer) -> None:
    wrong = bench.releases.keys["rollout"].signers
    current = bench.releases.repository.current("timestamp")
    number = signing.snapshot_version(current)
    soon = today() + timedelta(days=1)
    lies(mirror)[TIMESTAMP] = signing.next_timestamp(current, number, wrong, expires=soon)
    refused(
        bench, mirror.url, "wrong signature: timestamp was signed by 0/1 keys", error=RefusedError
    )
    recovers(bench)


def test_a_root_that_the_root_before_has_not_signed(bench: Bench, mirror: FaultServer) -> None:
    def next_one(document: dict[str, dict[str, object]]) -> None:
        document["signed"]["version"] = 2

    lies(mirror)[f"{METADATA}/2.root.json"] = edited(bench.releases.root, next_one)
    refused(bench, mirror.url, "wrong signature: root was signed by 0/1", error=RefusedError)
    recovers(bench)


def test_a_snapshot_and_roles_that_are_rolled_back_by_stolen_keys(
    bench: Bench, tmp_path: Path
) -> None:
    offer(bench.server, 2)
    bench.kit.look()
    bench.first = offer(bench.server, 3)
    bench.kit.look()
    thief = Thief(bench.releases, tmp_path / "thief")
    _forge_timestamp(thief, lambda signed: signed.snapshot_meta.version - 1)
    with FaultServer(thief) as server:
        refused(bench, server.url, "rollback: .*snapshot", error=RefusedError)
    thief = Thief(bench.releases, tmp_path / "another")
    _forge_snapshot(thief, "rollout", 1)
    bench.errors.clear()
    with FaultServer(thief) as server:
        refused(bench, server.url, r"rollback: .*rollout\.json", error=RefusedError)
    bench.rotate("timestamp", "snapshot")
    recovers(bench)


def test_a_device_that_was_wound_forward_comes_back_when_the_keys_are_rotated(
    bench: Bench, tmp_path: Path
) -> None:
    thief = Thief(bench.releases, tmp_path / "thief")
    _forge_snapshot(thief, "snapshot", FAR)
    _forge_timestamp(thief, lambda _: FAR, version=FAR)
    with FaultServer(thief) as server:
        bench.look(server.url)
    assert bench.errors == []  # the keys are right: nobody can tell
    unharmed(bench)
    with FaultServer(Mirror(bench.releases)) as honest:
        refused(bench, honest.url, f"rollback: .*{FAR}", error=RefusedError)
    bench.rotate("timestamp", "snapshot", "rollout")
    recovers(bench)


def _forge_timestamp(
    thief: Thief, snapshot: Callable[[Timestamp], int], *, version: int = 0
) -> None:
    """Sign a timestamp that names another snapshot, by the stolen key."""
    found = Metadata[Timestamp].from_bytes(thief.repository.current("timestamp"))
    found.signed.version = version or found.signed.version + 1
    found.signed.snapshot_meta = MetaFile(snapshot(found.signed))
    found.sign(thief.releases.keys["timestamp"].signers[0])
    (thief.directory / "tuf/metadata/timestamp.json").write_bytes(found.to_bytes())


def _forge_snapshot(thief: Thief, role: str, version: int) -> None:
    """Sign a snapshot that names another version of a role, or has one itself."""
    found = Metadata[Snapshot].from_bytes(thief.repository.current("snapshot"))
    found.signed.version += 1
    if role == "snapshot":
        found.signed.version = version
    else:
        found.signed.meta[f"{role}.json"] = MetaFile(version)
    found.sign(thief.releases.keys["snapshot"].signers[0])
    name = f"tuf/metadata/{found.signed.version}.snapshot.json"
    (thief.directory / name).write_bytes(found.to_bytes())
    if role != "snapshot":
        _forge_timestamp(thief, lambda _: found.signed.version)


def test_a_rollout_document_that_is_served_again(bench: Bench, mirror: FaultServer) -> None:
    targets = Path(bench.releases.directory, "tuf/targets/rollout")
    [old] = targets.iterdir()
    offer(bench.server, 2)
    [new] = [path for path in targets.iterdir() if path != old]
    lies(mirror)[f"/tuf/targets/rollout/{new.name}"] = old.read_bytes()
    refused(bench, mirror.url, "wrong digest: found .* bytes of SHA-256", error=RefusedError)
    recovers(bench)


NONSENSE = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "binary": bytes(range(256)),
    "another role": b'{"signed": {"_type": "root"}, "signatures": []}',
    "a packed bomb": gzip.compress(bytes(10_000_000)),
    "nested": b"[" * 8_000,
    "no version": b'{"signed": {"_type": "timestamp", "version": NaN}, "signatures": []}',
}


@pytest.mark.parametrize("name", sampled(NONSENSE, "nested"))
def test_metadata_that_is_malformed(bench: Bench, mirror: FaultServer, name: str) -> None:
    lies(mirror)[TIMESTAMP] = NONSENSE[name]
    refused(bench, mirror.url, "metadata: (malformed|endless)", error=RefusedError)
    recovers(bench)


TWISTS: dict[str, Callable[[dict[str, dict[str, object]]], None]] = {
    "a huge version": lambda document: document["signed"].update(version=10**400),
    "a version that is a text": lambda document: document["signed"].update(version="7"),
    "a fraction": lambda document: document["signed"].update(extra=1.5),
    "an expiry that is none": lambda document: document["signed"].update(expires="soon"),
    "no signature": lambda document: document.update(signatures=[]),  # type: ignore[call-overload]  # a list, on purpose
    "another specification": lambda document: document["signed"].update(spec_version="9.0.0"),
}


@pytest.mark.parametrize("name", sampled(TWISTS, "a huge version"))
def test_metadata_in_which_one_thing_is_wrong(bench: Bench, mirror: FaultServer, name: str) -> None:
    current = bench.releases.repository.current("timestamp")
    lies(mirror)[TIMESTAMP] = edited(current, TWISTS[name])
    refused(bench, mirror.url, "metadata: (malformed|wrong signature)", error=RefusedError)
    recovers(bench)


def test_a_key_that_comes_twice_in_a_document(bench: Bench, mirror: FaultServer) -> None:
    current = bench.releases.repository.current("timestamp")
    forged = json.dumps(json.loads(current)["signed"] | {"version": FAR}).encode()
    lies(mirror)[TIMESTAMP] = current[:-1] + b', "signed": ' + forged + b"}"
    refused(bench, mirror.url, "metadata: (malformed|wrong signature)", error=RefusedError)
    recovers(bench)
