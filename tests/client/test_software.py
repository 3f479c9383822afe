"""Software from the keys of its role to the handler on a device, over real TLS and TUF."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import Signer
from tests.client_fakes import FakeServer, today
from tests.device_fakes import bundle
from tests.ota.test_software import LABELS
from tests.update_fakes import Kit, offer

from wildflower.client.policy import Policy
from wildflower.ota.device.machine import Phase
from wildflower.ota.errors import RefusedError
from wildflower.ota.release import signing
from wildflower.ota.release.bundle import Bundle, propose
from wildflower.ota.release.ceremony import Authority, Change
from wildflower.ota.release.keys import SOFTWARE, RoleKeys, generate_key
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.software import Software, software_path
from wildflower.ota.release.software_role import propose_role, propose_software

HANDLER = '#!/bin/sh\ntest "$1" != Install || cp "$2/files/labels.txt" "$WILDFLOWER_DIR/labels"\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def keys(tmp_path: Path, server: FakeServer) -> RoleKeys:
    """The keys of software, which the top-level targets speak of from now on."""
    two = tuple(generate_key(tmp_path / f"software-{number}.pem") for number in (1, 2))
    found = RoleKeys(two, 2)
    bundle = propose_role(authority(server), found.public_keys, 2, today())
    put(server, bundle, [*server.releases.keys["targets"].signers, *two])
    return found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    found = Kit(server.enrol(tmp_path / "device"), policy=Policy(software=("labels",)))
    handler = found.directory / "handlers" / "files"
    handler.parent.mkdir()
    handler.write_text(HANDLER)
    handler.chmod(0o755)
    return found


def soon() -> datetime:
    return today() + timedelta(days=1)


def authority(server: FakeServer) -> Authority:
    current = server.releases.repository.current
    return Authority(current("root"), current("targets"))


def put(server: FakeServer, bundle: Bundle, signers: Sequence[Signer]) -> None:
    """Sign a bundle and publish it."""
    signed, _ = bundle.signed_by(signers)
    changes = Changes(signed.proposals, signed.targets)
    server.releases.repository.publish(changes, server.releases.keys, today())


def labels(order: int, text: bytes) -> Software:
    entry = FileEntry("payload", "labels.txt", hashlib.sha256(text).hexdigest(), len(text))
    return replace(LABELS, order=order, files=(entry,), agent_min="0.0.1")


def publish(server: FakeServer, keys: RoleKeys, order: int, text: bytes) -> Software:
    one, releases = labels(order, text), server.releases
    current = releases.repository.current(SOFTWARE)
    put(server, propose_software(authority(server), current, one, today()), keys.signers)
    releases.blobs[one.files[0].digest] = text
    return one


def test_software_comes_beside_models_and_is_told(
    kit: Kit, server: FakeServer, keys: RoleKeys
) -> None:
    offer(server, 1)
    publish(server, keys, 1, b"dark\nbright\n")
    kit.look()
    assert (kit.directory / "labels").read_bytes() == b"dark\nbright\n"
    publish(server, keys, 2, b"night\nday\n")
    kit.look()
    assert (kit.directory / "labels").read_bytes() == b"night\nday\n"
    assert [outcome for outcome, _ in kit.told()] == ["committed"] * 3


def test_it_does_not_wait_for_a_model_on_probation(
    kit: Kit, server: FakeServer, keys: RoleKeys
) -> None:
    offer(server, 1, trial=replace(bundle().release.trial, probation_s=600))
    publish(server, keys, 1, b"dark\nbright\n")
    kit.look()
    with kit.wired() as updates:
        assert updates.journal.load().phase is Phase.PROBATION
    assert (kit.directory / "labels").exists()


def test_by_default_a_device_does_not_even_ask(
    kit: Kit, server: FakeServer, keys: RoleKeys
) -> None:
    publish(server, keys, 1, b"dark\nbright\n")
    kit.policy = Policy()
    assert kit.look() == []
    assert not (kit.directory / "labels").exists()
    assert not any("software" in path for path in server.asked)


def test_where_nobody_delegated_it_there_is_none(kit: Kit) -> None:
    assert kit.look() == []


def test_a_document_of_another_line_is_refused(
    kit: Kit, server: FakeServer, keys: RoleKeys
) -> None:
    releases, data = server.releases, replace(labels(1, b"x"), name="other").to_bytes()
    metadata = signing.put_target(
        releases.repository.current(SOFTWARE),
        software_path("labels"),
        data,
        keys.signers,
        expires=soon(),
    )
    changes = Changes({SOFTWARE: metadata}, {software_path("labels"): data})
    releases.repository.publish(changes, releases.keys, today())
    with pytest.raises(RefusedError, match="software of other, expected labels"):
        kit.look()
    ((outcome, reason),) = kit.told()
    assert outcome == "refused"
    assert "software of other, expected labels" in reason


def test_half_of_the_keys_are_not_enough(kit: Kit, server: FakeServer, keys: RoleKeys) -> None:
    half = RoleKeys(keys.signers[:1], 1)
    with pytest.raises(RefusedError, match="software"):
        publish(server, half, 1, b"dark\nbright\n")


def test_new_keys_take_the_place_of_the_old(
    tmp_path: Path, kit: Kit, server: FakeServer, keys: RoleKeys
) -> None:
    publish(server, keys, 1, b"dark\nbright\n")
    kit.look()
    fresh = RoleKeys((generate_key(tmp_path / "fresh.pem"),), 1)
    old = tuple(key.keyid for key in keys.public_keys)
    change = Change(SOFTWARE, fresh.public_keys, old, 1)
    current = {SOFTWARE: server.releases.repository.current(SOFTWARE)}
    bundle = propose(authority(server), current, change, today())
    put(server, bundle, [*server.releases.keys["targets"].signers, *fresh.signers])
    publish(server, fresh, 2, b"night\nday\n")
    kit.look()
    assert (kit.directory / "labels").read_bytes() == b"night\nday\n"
    with pytest.raises(RefusedError, match="software"):
        publish(server, keys, 3, b"dark\nbright\n")
