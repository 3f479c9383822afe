"""Edits of metadata: what they add, what they never lose, and what they refuse."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Signer
from tests.ota_fakes import GROUP, NOON, release_of
from tuf.api.metadata import Metadata

from wildflower.ota.errors import FormatError, RefusedError, SigningError
from wildflower.ota.release import signing
from wildflower.ota.release.keys import APPROVED, AUTO, ROLES, RoleKeys
from wildflower.ota.release.manifest import target_path

LATER = NOON + timedelta(days=30)
KEYS = {
    role: RoleKeys((CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()), 2)
    for role in ROLES
}
ALICE, BOB = KEYS[APPROVED].signers
EMPTY = signing.first_delegated(KEYS[APPROVED], expires=LATER)
TARGETS = signing.first_targets(KEYS, expires=LATER)


def added(metadata: bytes, order: int, *signers: Signer, role: str = "approved") -> bytes:
    release = release_of(b"model", order)
    path = target_path(role, GROUP, order)
    return signing.add_release(metadata, path, release.to_bytes(), signers, expires=LATER)


def paths(metadata: bytes) -> set[str]:
    return set(signing.read_targets(metadata).signed.targets)


def test_a_release_is_added_in_the_next_version_and_named_by_its_digest() -> None:
    metadata = signing.read_targets(added(EMPTY, 1, ALICE))
    target = metadata.signed.targets[target_path("approved", GROUP, 1)]
    manifest = release_of(b"model", 1)
    assert metadata.signed.version == 2
    assert metadata.signed.expires == LATER
    assert target.hashes == {"sha256": manifest.digest}
    assert target.length == len(manifest.to_bytes())


def test_an_edit_keeps_every_release_that_was_there() -> None:
    metadata = EMPTY
    for order in (1, 2, 5):
        metadata = added(metadata, order, ALICE)
    assert paths(metadata) == {target_path("approved", GROUP, order) for order in (1, 2, 5)}


def test_signatures_of_the_version_before_do_not_survive_an_edit() -> None:
    metadata = signing.read_targets(added(EMPTY, 1, ALICE))
    assert list(metadata.signatures) == [ALICE.public_key.keyid]


@pytest.mark.parametrize("order", [1, 2])
def test_an_order_is_used_once_and_only_grows(order: int) -> None:
    metadata = added(EMPTY, 2, ALICE)
    with pytest.raises(SigningError, match=f"order {order} of {GROUP}: 2 is signed already"):
        added(metadata, order, ALICE)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "1.json",
        f"models/approved/{GROUP}/2.json",
        f"models/approved/{GROUP}/1",
        f"models/other/{GROUP}/1.json",
        f"rollout/{GROUP}.json",
        "models/approved/../1.json",
        f"models/approved/x/{GROUP}/1.json",
    ],
)
def test_a_path_that_is_not_the_releases_own_is_refused(path: str) -> None:
    manifest = release_of(b"model", 1).to_bytes()
    with pytest.raises(SigningError, match="is not that of release 1"):
        signing.add_release(EMPTY, path, manifest, [ALICE], expires=LATER)


def test_what_is_no_manifest_is_not_signed() -> None:
    path = target_path("approved", GROUP, 1)
    with pytest.raises(FormatError):
        signing.add_release(EMPTY, path, b"{}", [ALICE], expires=LATER)


def test_the_next_order_counts_only_releases_of_the_group() -> None:
    metadata = added(EMPTY, 4, ALICE)
    for other in ("rollout/digits.json", f"{GROUP}/x.json", "models/approved/other/9.json"):
        metadata = signing.put_target(metadata, other, b"x", [ALICE], expires=LATER)
    assert signing.next_order(metadata, GROUP) == 5
    assert signing.next_order(metadata, "digits") == 1
    assert signing.next_order(EMPTY, GROUP) == 1


def test_one_of_two_signatures_is_not_enough() -> None:
    metadata = added(EMPTY, 1, ALICE)
    with pytest.raises(RefusedError, match="1/2") as refused:
        signing.check_delegated(TARGETS, APPROVED, metadata)
    assert "missing signers" in refused.value.hint
    signing.check_delegated(TARGETS, APPROVED, signing.countersign(metadata, BOB))


def test_countersigning_changes_nothing_that_is_signed() -> None:
    once = added(EMPTY, 1, ALICE)
    twice = signing.countersign(once, BOB)
    read = signing.read_targets
    assert read(twice).signed_bytes == read(once).signed_bytes
    assert set(read(twice).signatures) == {ALICE.public_key.keyid, BOB.public_key.keyid}


def test_signing_twice_with_one_key_does_not_make_two() -> None:
    metadata = signing.countersign(added(EMPTY, 1, ALICE), ALICE)
    with pytest.raises(RefusedError):
        signing.check_delegated(TARGETS, APPROVED, metadata)


def test_the_keys_of_another_role_do_not_count() -> None:
    metadata = added(EMPTY, 1, *KEYS[AUTO].signers)
    with pytest.raises(RefusedError, match="0/2"):
        signing.check_delegated(TARGETS, APPROVED, metadata)
    with pytest.raises(RefusedError, match="nobody"):
        signing.check_delegated(TARGETS, "nobody", metadata)


def test_a_signature_is_checked_against_one_key() -> None:
    metadata = added(EMPTY, 1, ALICE)
    assert signing.check_signed_by(metadata, ALICE.public_key).signed.version == 2
    with pytest.raises(RefusedError, match=f"{BOB.public_key.keyid}, found none"):
        signing.check_signed_by(metadata, BOB.public_key)
    forged = signing.read_targets(metadata)
    forged.signed.version = 9
    with pytest.raises(RefusedError, match="is wrong"):
        signing.check_signed_by(forged.to_bytes(), ALICE.public_key)


def test_a_renewal_changes_version_and_expiry_alone() -> None:
    before = signing.read_targets(added(EMPTY, 1, ALICE))
    after = signing.read_targets(
        signing.renew(before.to_bytes(), [ALICE], expires=LATER + timedelta(days=1))
    )
    assert after.signed.targets == before.signed.targets
    assert after.signed.version == before.signed.version + 1
    assert signing.expiry(after.to_bytes()) == LATER + timedelta(days=1)


def test_a_snapshot_takes_new_versions_and_keeps_the_others() -> None:
    first = signing.first_snapshot(KEYS["snapshot"], ["targets", AUTO], expires=LATER)
    second = signing.next_snapshot(first, {AUTO: 4}, KEYS["snapshot"].signers, expires=LATER)
    assert signing.published_versions(second) == {"targets": 1, AUTO: 4}


@pytest.mark.parametrize(("version", "why"), [(1, "version 2 is published"), (0, "is published")])
def test_a_snapshot_never_goes_back(version: int, why: str) -> None:
    first = signing.first_snapshot(KEYS["snapshot"], [AUTO], expires=LATER)
    second = signing.next_snapshot(first, {AUTO: 2}, KEYS["snapshot"].signers, expires=LATER)
    with pytest.raises(SigningError, match=why):
        signing.next_snapshot(second, {AUTO: version}, KEYS["snapshot"].signers, expires=LATER)


def test_a_published_version_is_never_published_again() -> None:
    """Clients that have it would refuse other bytes under the same version."""
    first = signing.first_snapshot(KEYS["snapshot"], [AUTO], expires=LATER)
    with pytest.raises(SigningError, match="version 1 is published"):
        signing.next_snapshot(first, {AUTO: 1}, KEYS["snapshot"].signers, expires=LATER)


def test_a_role_that_is_not_in_the_snapshot_cannot_be_published() -> None:
    first = signing.first_snapshot(KEYS["snapshot"], [AUTO], expires=LATER)
    with pytest.raises(SigningError, match="no such role"):
        signing.next_snapshot(first, {"other": 1}, KEYS["snapshot"].signers, expires=LATER)


def test_a_timestamp_names_the_snapshot() -> None:
    first = signing.first_timestamp(KEYS["timestamp"], expires=LATER)
    signers = KEYS["timestamp"].signers
    assert signing.snapshot_version(first) == 1
    assert signing.snapshot_version(signing.next_timestamp(first, 7, signers, expires=LATER)) == 7


def test_times_have_whole_seconds() -> None:
    moment: datetime = NOON.replace(microsecond=5)
    assert signing.expiry(signing.first_root(KEYS, expires=moment)) == NOON


READERS: list[Callable[[bytes], Any]] = [
    signing.read_targets,
    signing.published_versions,
    signing.snapshot_version,
]


@pytest.mark.parametrize("read", [*READERS, signing.expiry])
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"null", b"[" * 20_000])
def test_what_is_no_metadata_is_refused(read: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize("read", READERS)
def test_metadata_of_another_kind_or_without_end_is_refused(read: Callable[[bytes], Any]) -> None:
    with pytest.raises(FormatError, match="found root"):
        read(signing.first_root(KEYS, expires=LATER))
    with pytest.raises(FormatError, match="at most"):
        read(bytes(signing.MAX_METADATA + 1))


@pytest.mark.parametrize("value", [1.5, float("nan"), "\ud800", [[0.1]]])
def test_metadata_that_no_key_could_have_signed_is_refused(value: Any) -> None:
    """JSON has it, but the canonical form has not: only the signature's check would find out."""
    document = json.loads(EMPTY)
    document["signed"]["extra"] = value
    with pytest.raises(FormatError, match="no signed form"):
        signing.read_targets(json.dumps(document).encode())


ONE = signing.countersign(added(EMPTY, 1, ALICE), BOB)


@settings(deadline=None)
@given(st.integers(0, len(ONE) - 1), st.integers(1, 255))
def test_no_changed_byte_passes_as_signed(position: int, change: int) -> None:
    """Either the reader refuses it, or the signatures do, or what is signed is unchanged."""
    mutated = ONE[:position] + bytes([ONE[position] ^ change]) + ONE[position + 1 :]
    try:
        signing.check_delegated(TARGETS, APPROVED, mutated)
    except (FormatError, RefusedError):
        return
    assert Metadata.from_bytes(mutated).signed_bytes == Metadata.from_bytes(ONE).signed_bytes
