"""Changes of keys from the proposal to the devices: rotations, revocations, crashes, refusals."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tests.ota_fakes import NOON, Origin

from wildflower.ota.errors import RefusedError, SigningError
from wildflower.ota.release import audit
from wildflower.ota.release.bundle import Bundle
from wildflower.ota.release.ceremony import Change, read_root
from wildflower.ota.release.keyring import find_signers, make_key
from wildflower.ota.release.keys import APPROVED, AUTO, ROLLOUT, generate_key, load_key
from wildflower.ota.release.repository import Changes
from wildflower.ota.release.trust import NotThereError, TrustedView
from wildflower.ota.rollout.document import document_path
from wildflower.server.key_ceremony import Ceremony
from wildflower.server.publish import Publisher

OFFLINE = ("root", "targets", "approved-1", "approved-2")


class Wire:
    """What a static server would answer."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def read(self, path: str) -> Iterator[bytes]:
        data = self.origin.read(path)
        if data is None:
            raise NotThereError(path)
        yield data


class Device:
    """A device that keeps what it has seen."""

    def __init__(self, origin: Origin, cache: Path) -> None:
        self.origin, self.cache, self.root = origin, cache, origin.root

    def look(self, *paths: str) -> list[bytes | None]:
        view = TrustedView(self.cache, self.root, Wire(self.origin), NOON)
        view.refresh()
        return [view.target(path) for path in paths]

    def root_version(self) -> int:
        return int(read_root((self.cache / "root.json").read_bytes()).signed.version)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """A server whose offline keys lie elsewhere."""
    origin = Origin(tmp_path / "server")
    vault(origin).mkdir()
    for name in OFFLINE:
        path = origin.directory / "keys" / f"{name}.pem"
        path.rename(vault(origin) / path.name)
    origin.roll_out(origin.publish(b"model"))
    return origin


def vault(origin: Origin) -> Path:
    return origin.directory.parent / "vault"


@pytest.fixture
def device(origin: Origin, tmp_path: Path) -> Device:
    found = Device(origin, tmp_path / "device")
    found.look()
    return found


@pytest.fixture
def ceremony(origin: Origin) -> Ceremony:
    return Ceremony(origin.directory, lambda: NOON)


def offline(origin: Origin, bundle: Bundle) -> Bundle:
    """Have every key in the vault sign, as on a machine of its own."""
    travelled = Bundle.from_bytes(bundle.to_bytes())
    signers = find_signers(vault(origin), travelled.wanted(), lambda _: "")
    return travelled.signed_by(signers)[0]


def fresh(origin: Origin, name: str, place: str = "vault") -> Signer:
    """Make a key in the vault, or among the server's."""
    folder = vault(origin) if place == "vault" else origin.directory / "keys"
    entry = make_key(folder, name, passphrase=None)
    [signer] = find_signers(folder, [entry.public.keyid], lambda _: "")
    return signer


def old_key(origin: Origin, role: str) -> str:
    return origin.keys[role].public_keys[0].keyid


def test_a_root_key_is_rotated_and_devices_follow_from_their_old_root(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    for number in (2, 3):
        [before] = [role.keys for role in ceremony.authority().roles() if role.name == "root"]
        new = fresh(origin, f"root-{number}")
        bundle = ceremony.propose(Change("root", (new.public_key,), before))
        ceremony.publish(offline(origin, bundle))
    device.look()
    assert device.root_version() == 3
    newcomer = Device(origin, device.cache.with_name("newcomer"))
    newcomer.look()
    assert newcomer.root_version() == 3


def test_a_root_without_the_old_keys_is_not_published(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    new = fresh(origin, "root-2")
    bundle = ceremony.propose(Change("root", (new.public_key,), (old_key(origin, "root"),)))
    half, _ = bundle.signed_by([new])
    with pytest.raises(SigningError, match=r"signatures are missing: root needs 1 more .*root 1"):
        ceremony.publish(half)
    device.look()
    assert device.root_version() == 1


def test_a_revoked_approver_signs_nothing_more(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    release = origin.publish(b"approved", role="approved")
    path = f"models/approved/{release.target_group}/1.json"
    assert device.look(path) != [None]
    new = fresh(origin, "approved-3")
    gone = old_key(origin, APPROVED)
    bundle = ceremony.propose(Change(APPROVED, (new.public_key,), (gone,)))
    assert set(bundle.proposals) == {"targets", APPROVED}
    ceremony.publish(offline(origin, bundle))
    assert device.look(path) == [release.to_bytes()]  # what was approved stays approved
    with pytest.raises(RefusedError, match=r"models/approved was signed by 1/2 keys"):
        origin.put(APPROVED, path.replace("1.json", "2.json"), b"by the old two")


def test_a_revocation_must_leave_as_many_keys_as_the_threshold(
    origin: Origin, ceremony: Ceremony
) -> None:
    with pytest.raises(SigningError, match="would have 1 keys and a threshold of 2"):
        ceremony.propose(Change(APPROVED, remove=(old_key(origin, APPROVED),)))


def test_a_role_that_nobody_signed_anew_is_not_published(
    origin: Origin, ceremony: Ceremony
) -> None:
    """Else devices would refuse every approved release from then on."""
    new = fresh(origin, "approved-3")
    change = Change(APPROVED, (new.public_key,), (old_key(origin, APPROVED),))
    signed = offline(origin, ceremony.propose(change))
    without = replace(signed, proposals={"targets": signed.proposals["targets"]})
    with pytest.raises(RefusedError, match=r"models/approved was signed by 1/2 keys"):
        ceremony.publish(without)


@pytest.mark.parametrize("role", ["snapshot", "timestamp", ROLLOUT])
def test_an_online_key_is_rotated_while_the_publisher_runs(
    origin: Origin, ceremony: Ceremony, device: Device, role: str
) -> None:
    publisher = Publisher(origin.directory, Path("no signer"), lambda: NOON)
    new = fresh(origin, f"{role}-2", "server")
    change = Change(role, (new.public_key,), (old_key(origin, role),))
    ceremony.publish(offline(origin, ceremony.propose(change)))
    installed = load_key(origin.directory / "keys" / f"{role}.pem").public_key
    assert installed == new.public_key
    publisher.refresh()
    assert device.look(document_path("digits.linux-generic")) != [None]


def test_the_release_signers_key_is_replaced_by_one_beside_it(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    new = generate_key(origin.directory / "signer" / "next.pem")
    change = Change(AUTO, (new.public_key,), (old_key(origin, AUTO),))
    ceremony.publish(offline(origin, ceremony.propose(change)))
    assert device.look("models/auto/digits.linux-generic/1.json") != [None]
    assert load_key(origin.directory / "signer/key.pem").public_key == new.public_key


def test_an_online_key_that_the_server_lacks_is_asked_for(
    origin: Origin, ceremony: Ceremony
) -> None:
    elsewhere = fresh(origin, "snapshot-2")
    change = Change("snapshot", (elsewhere.public_key,), (old_key(origin, "snapshot"),))
    bundle = offline(origin, ceremony.propose(change))
    with pytest.raises(SigningError, match="holds 0 of the 1 keys for snapshot") as refused:
        ceremony.publish(bundle)
    assert ".pem" in refused.value.hint


def test_publishing_again_changes_nothing_that_devices_trust(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    new = fresh(origin, "root-2")
    bundle = offline(origin, ceremony.propose(Change("root", (new.public_key,))))
    published = ceremony.publish(bundle)
    assert ceremony.publish(published) == published
    assert ceremony.publish(bundle).proposals == published.proposals
    device.look()
    assert device.root_version() == 2


def test_a_crash_right_before_the_timestamp_is_made_good_by_publishing_again(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    new = fresh(origin, "timestamp-2", "server")
    change = Change("timestamp", (new.public_key,), (old_key(origin, "timestamp"),))
    bundle = offline(origin, ceremony.propose(change))
    (origin.directory / "tuf/metadata/2.root.json").write_bytes(bundle.proposals["root"])
    with pytest.raises(RefusedError, match="timestamp was signed by 0/1 keys"):
        device.look()
    ceremony.publish(bundle)
    device.look()
    assert device.root_version() == 2


def test_a_bundle_made_from_what_holds_no_longer_is_refused(
    origin: Origin, ceremony: Ceremony
) -> None:
    first = offline(origin, ceremony.propose(Change("root", (fresh(origin, "a").public_key,))))
    second = offline(origin, ceremony.propose(Change("root", (fresh(origin, "b").public_key,))))
    ceremony.publish(first)
    with pytest.raises(SigningError, match="hold no longer"):
        ceremony.publish(second)


def test_one_version_of_the_root_is_never_two(origin: Origin, ceremony: Ceremony) -> None:
    first = offline(origin, ceremony.propose(Change("root", (fresh(origin, "a").public_key,))))
    second = offline(origin, ceremony.propose(Change("root", (fresh(origin, "b").public_key,))))
    ceremony.publish(first)
    with pytest.raises(SigningError, match="published already, and is another"):
        origin.repository.publish(
            Changes(root=second.proposals["root"]), origin.keys, NOON + timedelta(seconds=1)
        )


def test_what_the_servers_own_keys_sign_is_in_its_trail(origin: Origin, ceremony: Ceremony) -> None:
    new = fresh(origin, "rollout-2", "server")
    change = Change(ROLLOUT, (new.public_key,), (old_key(origin, ROLLOUT),))
    ceremony.publish(offline(origin, ceremony.propose(change)))
    records = audit.follow((origin.directory / "keys" / audit.FILE).read_bytes())
    assert {record.what.split()[0] for record in records} == {"targets", "snapshot", "timestamp"}
    assert new.public_key.keyid in {record.key for record in records}


def test_a_key_with_a_passphrase_among_the_servers_is_left_alone(
    origin: Origin, ceremony: Ceremony
) -> None:
    make_key(origin.directory / "keys", "aaa", passphrase=b"secret")
    new = fresh(origin, "snapshot-2", "server")
    change = Change("snapshot", (new.public_key,), (old_key(origin, "snapshot"),))
    ceremony.publish(offline(origin, ceremony.propose(change)))
    assert load_key(origin.directory / "keys/snapshot.pem").public_key == new.public_key


def test_a_threshold_of_three_devices_demand_three(
    origin: Origin, ceremony: Ceremony, device: Device
) -> None:
    keys = [CryptoSigner.generate_ed25519() for _ in range(2)]
    change = Change("root", tuple(key.public_key for key in keys), threshold=3)
    bundle = offline(origin, ceremony.propose(change))
    with pytest.raises(SigningError, match="root needs 2 more"):
        ceremony.publish(bundle)
    ceremony.publish(bundle.signed_by(keys)[0])
    device.look()
    assert device.root_version() == 2
