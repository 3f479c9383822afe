"""Attacks by the bytes of files: endless, dripping, packed, other than signed, named as paths."""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.bench import (
    TIMESTAMP,
    Bench,
    Mirror,
    Thief,
    dripping,
    recovers,
    refused,
    sampled,
    unharmed,
)
from tests.client_fakes import FakeServer
from tests.delta_fakes import bomb, digest_of, model_of, with_deltas
from tests.device_fakes import document
from tests.ota_fakes import FaultServer
from tests.update_fakes import Kit, offer

from wildflower.client.sneakernet import apply_bundle
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FormatError, RefusedError
from wildflower.ota.release import download
from wildflower.ota.rollout.document import document_path


@pytest.fixture
def mirror(bench: Bench) -> Iterator[FaultServer]:
    with FaultServer(Mirror(bench.releases)) as server:
        yield server


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "endless": ({"endless": True}, "served .*: endless, expected"),
    "said to be longer": ({"liar": 1000}, "served .* bytes, expected"),
    "a byte flipped": ({"corrupt": -1}, "served .*: wrong digest: found SHA-256"),
    "packed": ({"encoding": "gzip"}, "served .*: encoded as gzip, expected identity"),
}


@pytest.mark.parametrize("name", sampled(LIES, "endless", "packed"))
def test_a_file_that_is_not_what_was_signed(bench: Bench, mirror: FaultServer, name: str) -> None:
    faults, said = LIES[name]
    offer(bench.server, 2)
    for fault, value in faults.items():
        setattr(mirror.faults, fault, value)
    refused(bench, mirror.url, said, error=None)
    recovers(bench)


def test_a_file_that_drips(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SLOW_AFTER_S", 0.1)
    offer(bench.server, 2)
    said = "served .*: too slow, expected at least 256 bytes a second"
    with dripping(Mirror(bench.releases), "/blobs/") as url:
        refused(bench, url, said, error=None)
    monkeypatch.undo()
    recovers(bench)


def test_metadata_that_is_packed_is_not_unpacked(bench: Bench, mirror: FaultServer) -> None:
    assert isinstance(mirror.origin, Mirror)
    mirror.origin.instead[TIMESTAMP] = gzip.compress(bytes(16_000_000))
    refused(bench, mirror.url, "metadata: (malformed|endless)", error=RefusedError)
    recovers(bench)


def test_a_delta_that_is_a_bomb(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "server") as server:
        kit = Kit(server.enrol(tmp_path / "device"))
        first = with_deltas(1)
        server.releases.publish(first)
        server.releases.roll_out(first)
        kit.look()
        evil = bomb(model_of(1), model_of(2))
        second = with_deltas(2, ((model_of(1), evil),))
        server.releases.publish(second)
        server.releases.roll_out(second)
        for _ in range(3):
            kit.look()
        assert kit.running == second.digest
        assert Slots(kit.directory / "slots").is_complete(second.release)
        assert server.served[digest_of(model_of(2))] == len(model_of(2))
        [told] = [reason for outcome, reason in kit.told() if outcome == "refused"]
        assert told.startswith(f"delta {digest_of(evil)[:12]} of model.onnx:")


def test_a_bundle_that_is_packed_is_refused_unread(bench: Bench, tmp_path: Path) -> None:
    big = tmp_path / "zeros"
    big.write_bytes(bytes(10_000_000))
    for mode in ("w:gz", "w:bz2", "w:xz"):
        packed = tmp_path / "bundle.tar"
        with tarfile.open(packed, mode) as archive:
            archive.add(big, "blobs/zeros")
        with pytest.raises(FormatError, match="parcel"):
            apply_bundle(bench.kit.directory, packed)
    unharmed(bench)
    recovers(bench)


TRICKS = {
    "climbing": "../../light.linux-generic",
    "packed slash": "..%2flight.linux-generic",
    "backslash": "li\\ght.linux-generic",
    "a NUL": "li\0ght.linux-generic",
    "a new line": "li\nght.linux-generic",
    "hidden": "li\u202eght.linux-generic",
    "very long": f"{'x' * 3000}.linux-generic",
    "absolute": "/etc.linux-generic",
}


@pytest.mark.parametrize("name", sampled(TRICKS, "climbing"))
def test_a_target_whose_name_is_a_trick(bench: Bench, tmp_path: Path, name: str) -> None:
    """The metadata of the role `rollout` lists groups, from which a device learns its own."""
    thief = Thief(bench.releases, tmp_path / "thief")
    path, data = document_path(TRICKS[name]), document(bench.first.release).to_bytes()
    thief.put("rollout", path, data, is_there=False)
    with FaultServer(thief) as server:
        said = "rollout metadata lists .*, which is no target group"
        refused(bench, server.url, said, error=None)
    bench.rotate("timestamp", "snapshot", "rollout")
    recovers(bench)
