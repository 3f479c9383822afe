"""Key files: what may be used, and what is refused before it signs anything."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner

from wildflower.ota.errors import SigningError
from wildflower.ota.release.keys import (
    APPROVED,
    AUTO,
    ROLES,
    RoleKeys,
    generate_key,
    generate_roles,
    key_files,
    load_key,
    load_keys,
)

PASSPHRASE = b"correct horse"


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_key_comes_back_as_it_was_made(tmp_path: Path, passphrase: bytes | None) -> None:
    made = generate_key(tmp_path / "deep" / "key.pem", passphrase=passphrase)
    loaded = load_key(tmp_path / "deep" / "key.pem", passphrase=passphrase)
    assert loaded.public_key == made.public_key
    loaded.public_key.verify_signature(made.sign(b"data"), b"data")


def test_only_its_owner_can_read_a_key(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


def test_a_passphrase_keeps_the_key_unreadable_at_rest(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem", passphrase=PASSPHRASE)
    assert b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem")
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(SigningError, match="exists"):
        generate_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == before


@pytest.mark.parametrize("passphrase", [None, b"wrong"])
def test_a_wrong_or_missing_passphrase_is_told(tmp_path: Path, passphrase: bytes | None) -> None:
    generate_key(tmp_path / "key.pem", passphrase=PASSPHRASE)
    with pytest.raises(SigningError, match="passphrase is wrong"):
        load_key(tmp_path / "key.pem", passphrase=passphrase)


def test_a_passphrase_for_a_key_without_one_is_told(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem")
    with pytest.raises(SigningError, match="cannot be loaded"):
        load_key(tmp_path / "key.pem", passphrase=b"needless")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    generate_key(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(mode)
    with pytest.raises(SigningError, match="others than its owner") as refused:
        load_key(tmp_path / "key.pem")
    assert refused.value.hint == f"chmod 600 {tmp_path / 'key.pem'}"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=r"nowhere\.pem: No such file"):
        load_key(tmp_path / "nowhere.pem")


@pytest.mark.parametrize("data", [b"", b"not a key", b"\x00" * 20_000])
def test_bytes_that_are_no_key_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(SigningError, match="cannot be loaded"):
        load_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(SigningError, match="expected Ed25519, found EC"):
        load_key(path)


def test_every_role_has_keys_and_no_two_share_one(tmp_path: Path) -> None:
    made = generate_roles(tmp_path / "keys", tmp_path / "signer" / "key.pem", approved=3)
    assert set(made) == set(ROLES)
    ids = [key.keyid for role in made.values() for key in role.public_keys]
    assert len(ids) == len(set(ids)) == len(ROLES) + 2
    assert made[APPROVED].threshold == 2


def test_role_keys_are_found_where_they_were_made(tmp_path: Path) -> None:
    made = generate_roles(tmp_path / "keys", tmp_path / "signer" / "key.pem")
    for role, paths in key_files(tmp_path / "keys", tmp_path / "signer" / "key.pem").items():
        loaded = RoleKeys(load_keys(paths))
        assert loaded.public_keys == made[role].public_keys


def test_the_release_signer_has_its_key_to_itself(tmp_path: Path) -> None:
    generate_roles(tmp_path / "keys", tmp_path / "signer" / "key.pem")
    files = key_files(tmp_path / "keys", tmp_path / "signer" / "key.pem")
    assert files[AUTO] == [tmp_path / "signer" / "key.pem"]
    assert all(
        tmp_path / "signer" not in path.parents
        for role in set(ROLES) - {AUTO}
        for path in files[role]
    )


@pytest.mark.parametrize("threshold", [0, 3])
def test_a_threshold_that_nobody_can_meet_is_our_mistake(tmp_path: Path, threshold: int) -> None:
    with pytest.raises(ValueError, match=f"threshold {threshold} of 2"):
        generate_roles(tmp_path, tmp_path / "key.pem", approved_threshold=threshold)
    assert list(tmp_path.iterdir()) == []


def test_one_key_twice_does_not_make_two() -> None:
    signer = CryptoSigner.generate_ed25519()
    with pytest.raises(ValueError, match="threshold 2 of 1"):
        RoleKeys((signer, signer), 2)
