"""Changes of keys: what an edit makes, what it refuses, what signatures it then needs."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key
from tests.ota_fakes import NOON, Origin

from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.ceremony import Authority, Change, change_keys, owed, read_root
from wildflower.ota.release.keys import APPROVED, DELEGATED, ROLES, ROLLOUT
from wildflower.ota.release.signing import read_targets

LATER = NOON + timedelta(days=365)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return Origin(tmp_path_factory.mktemp("server"))


@pytest.fixture
def authority(origin: Origin) -> Authority:
    return Authority(origin.repository.current("root"), origin.repository.current("targets"))


def new_key() -> Key:
    return CryptoSigner.generate_ed25519().public_key


def ids(origin: Origin, role: str) -> list[str]:
    return [key.keyid for key in origin.keys[role].public_keys]


def test_between_them_root_and_targets_say_who_signs_for_every_role(
    origin: Origin, authority: Authority
) -> None:
    roles = {role.name: role for role in authority.roles()}
    assert set(roles) == set(ROLES)
    assert {name: list(role.keys) for name, role in roles.items()} == {
        role: ids(origin, role) for role in ROLES
    }
    assert roles[APPROVED].threshold == 2
    assert authority.holders(ids(origin, ROLLOUT)[0]) == (ROLLOUT,)
    assert authority.holders("00") == ()


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_the_keys_of_a_top_level_role_are_changed_in_the_next_root(
    origin: Origin, authority: Authority, role: str
) -> None:
    added = new_key()
    where, data = change_keys(
        authority, Change(role, (added,), tuple(ids(origin, role))), expires=LATER
    )
    made = read_root(data)
    assert where == "root"
    assert (made.signed.version, made.signed.expires, made.signatures) == (2, LATER, {})
    assert made.signed.roles[role].keyids == [added.keyid]
    assert ids(origin, role)[0] not in made.signed.keys


@pytest.mark.parametrize("role", DELEGATED)
def test_the_keys_of_a_delegated_role_are_changed_in_the_next_targets(
    authority: Authority, role: str
) -> None:
    added = new_key()
    where, data = change_keys(authority, Change(role, add=(added,)), expires=LATER)
    made = read_targets(data).signed
    assert (where, made.version) == ("targets", 2)
    assert made.delegations is not None
    assert made.delegations.roles is not None
    assert made.delegations.roles[role].keyids[-1] == added.keyid
    assert made.delegations.roles[role].paths == [f"{role}/*" + "/*" * (role != ROLLOUT)]


def test_a_threshold_alone_can_be_changed(authority: Authority) -> None:
    _, data = change_keys(authority, Change(APPROVED, threshold=1), expires=LATER)
    after = Authority(authority.root, data)
    assert {role.name: role.threshold for role in after.roles()}[APPROVED] == 1


def test_what_cannot_be_is_refused_by_name(origin: Origin, authority: Authority) -> None:
    approver, root_key = origin.keys[APPROVED].public_keys[0], origin.keys["root"].public_keys[0]
    refused = {
        "no role 'mirrors'": Change("mirrors", add=(new_key(),)),
        "nothing to change in root": Change("root"),
        "does not sign for targets": Change("targets", remove=(approver.keyid,)),
        "signs for models/approved already": Change("root", add=(approver,)),
        "signs for root already": Change("root", add=(root_key,)),
        "models/approved would have 1 keys and a threshold of 2": Change(
            APPROVED, remove=(approver.keyid,)
        ),
        "root would have 0 keys and a threshold of 1": Change("root", remove=(root_key.keyid,)),
        "models/approved would have 2 keys and a threshold of 3": Change(APPROVED, threshold=3),
        "would have 2 keys and a threshold of -1": Change(APPROVED, threshold=-1),
    }
    for message, change in refused.items():
        with pytest.raises(SigningError, match=message) as error:
            change_keys(authority, change, expires=LATER)
        assert error.value.hint


def test_a_new_root_is_owed_by_the_old_keys_and_by_its_own(
    origin: Origin, authority: Authority
) -> None:
    added = new_key()
    _, data = change_keys(authority, Change("root", (added,), threshold=2), expires=LATER)
    by_old, by_new = owed(authority, {"root": data})
    [old] = ids(origin, "root")
    assert (by_old.judge, by_old.threshold, by_old.unsigned) == ("root 1", 1, (old,))
    assert (by_new.judge, by_new.missing, by_new.unsigned) == ("root 2", 2, (old, added.keyid))


def test_signatures_are_counted_and_only_those_that_verify(
    origin: Origin, authority: Authority
) -> None:
    _, data = change_keys(authority, Change(APPROVED, add=(new_key(),)), expires=LATER)
    metadata = read_targets(data)
    metadata.sign(origin.keys["targets"].signers[0])
    [found] = owed(authority, {"targets": metadata.to_bytes()})
    assert (found.missing, found.signed) == (0, tuple(ids(origin, "targets")))
    metadata.signed.version += 1
    [broken] = owed(authority, {"targets": metadata.to_bytes()})
    assert (broken.missing, broken.signed) == (1, ())


def test_a_delegated_role_is_judged_by_the_targets_that_are_proposed(
    origin: Origin, authority: Authority
) -> None:
    gone = ids(origin, APPROVED)[0]
    _, data = change_keys(authority, Change(APPROVED, (new_key(),), (gone,)), expires=LATER)
    published = origin.repository.current(APPROVED)
    [before] = owed(authority, {APPROVED: published})
    after = owed(authority, {"targets": data, APPROVED: published})[1]
    assert (before.missing, after.missing, after.judge) == (0, 1, "targets 2")


def test_a_root_that_does_not_follow_is_refused(authority: Authority) -> None:
    _, second = change_keys(authority, Change("root", add=(new_key(),)), expires=LATER)
    _, third = change_keys(
        Authority(second, authority.targets), Change("root", add=(new_key(),)), expires=LATER
    )
    with pytest.raises(SigningError, match="root 3 does not follow root 1"):
        owed(authority, {"root": third})


def test_a_role_that_nobody_delegates_to_is_refused(authority: Authority) -> None:
    with pytest.raises(SigningError, match="models/other"):
        owed(authority, {"models/other": authority.targets})


def test_without_delegations_the_top_level_roles_are_left(
    origin: Origin, authority: Authority
) -> None:
    bare = read_targets(authority.targets)
    bare.signed.delegations = None
    found = Authority(authority.root, bare.to_bytes()).roles()
    assert {role.name for role in found} == {"root", "targets", "snapshot", "timestamp"}


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 50_000, bytes(6_000_000)])
def test_bytes_that_are_no_root_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="root metadata"):
        read_root(data)


def test_other_metadata_is_no_root(authority: Authority) -> None:
    with pytest.raises(FormatError, match="expected root metadata, found targets"):
        read_root(authority.targets)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_name(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_root(data)


def test_the_authority_is_what_was_read(tmp_path: Path, authority: Authority) -> None:
    before = (authority.root, authority.targets)
    change_keys(authority, Change("root", add=(new_key(),)), expires=LATER)
    assert (authority.root, authority.targets) == before
