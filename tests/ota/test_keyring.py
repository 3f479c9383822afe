"""The keys in a directory: files with and without a description, tokens, and what is refused."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.keyring import (
    KeyEntry,
    find_signers,
    import_token,
    make_key,
    open_key,
    read_entry,
)
from wildflower.ota.release.keys import generate_key

SECRET = "correct horse"
PIN = "1234"
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


def tell(name: str) -> str:
    return {"passphrase": SECRET, "pin": PIN}.get(name, "")


def tell_nothing(_: str) -> str:
    return ""


def test_a_key_is_found_by_its_id_and_signs(tmp_path: Path) -> None:
    made = make_key(tmp_path, "root-2", passphrase=SECRET.encode())
    make_key(tmp_path, "root-3", passphrase=SECRET.encode())
    [signer] = find_signers(tmp_path, [made.public.keyid], tell)
    made.public.verify_signature(signer.sign(b"data"), b"data")
    assert read_entry(tmp_path / "root-2.pub.json") == made
    assert made.uri == "file:root-2.pem"


def test_a_description_holds_nothing_secret(tmp_path: Path) -> None:
    make_key(tmp_path, "key", passphrase=None)
    told = (tmp_path / "key.pub.json").read_bytes()
    private = (tmp_path / "key.pem").read_bytes().splitlines()[1]
    assert private not in told
    assert b"PRIVATE" not in told


def test_a_key_file_without_a_description_is_a_key_too(tmp_path: Path) -> None:
    old = generate_key(tmp_path / "approved-1.pem")
    [signer] = find_signers(tmp_path, [old.public_key.keyid], tell_nothing)
    assert signer.public_key == old.public_key


def test_private_halves_that_are_not_wanted_stay_closed(tmp_path: Path) -> None:
    made = make_key(tmp_path, "encrypted", passphrase=SECRET.encode())
    assert find_signers(tmp_path, ["00"], tell_nothing) == []
    with pytest.raises(SigningError, match="passphrase is wrong"):
        find_signers(tmp_path, [made.public.keyid], tell_nothing)


def test_a_key_is_never_made_over_another(tmp_path: Path) -> None:
    make_key(tmp_path, "key", passphrase=None)
    with pytest.raises(SigningError, match="exists"):
        make_key(tmp_path, "key", passphrase=None)
    (tmp_path / "other.pub.json").write_bytes(b"")
    with pytest.raises(SigningError, match=r"other\.pub\.json exists"):
        make_key(tmp_path, "other", passphrase=None)


def test_a_description_of_another_private_half_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path, "one", passphrase=None)
    two = make_key(tmp_path, "two", passphrase=None)
    with pytest.raises(SigningError, match="another key than its description"):
        open_key(replace(two, uri="file:one.pem"), tmp_path, tell_nothing)


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=r"nowhere\.pub\.json: No such file"):
        read_entry(tmp_path / "nowhere.pub.json")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_type_come_back(kind: str) -> None:
    signer: CryptoSigner = getattr(CryptoSigner, f"generate_{kind}")()
    entry = KeyEntry(signer.public_key, "awskms:alias/release")
    assert KeyEntry.from_bytes(entry.to_bytes()) == entry


def document_of(entry: KeyEntry, **fields: object) -> bytes:
    found = canonical.from_bytes(entry.to_bytes(), kind="wildflower.public-key")
    return canonical.to_bytes(found | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"keyid": "00" * 32},  # the same key under a second id would count twice
        {"key": {}},
        {"key": 7},
        {"uri": "no-scheme"},
        {"uri": f"file:{'x' * 600}"},
        {"more": 1},
    ],
)
def test_a_description_of_another_form_is_refused(fields: dict[str, object]) -> None:
    entry = KeyEntry(CryptoSigner.generate_ed25519().public_key, "file:x.pem")
    assert KeyEntry.from_bytes(document_of(entry)) == entry
    with pytest.raises(FormatError, match="public key"):
        KeyEntry.from_bytes(document_of(entry, **fields))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_name(data: bytes) -> None:
    with pytest.raises(FormatError):
        KeyEntry.from_bytes(data)


def test_a_scheme_that_nobody_knows_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    entry = KeyEntry(CryptoSigner.generate_ed25519().public_key, "ftp://host/key")
    with pytest.raises(SigningError, match="no signer for ftp: URIs") as refused:
        open_key(entry, tmp_path, tell)
    assert "awskms" in refused.value.hint
    assert "hsm" in refused.value.hint


def test_a_key_service_is_asked_through_securesystemslib(tmp_path: Path) -> None:
    """Without the service's own package it says so; nothing of ours stands in between."""
    entry = KeyEntry(CryptoSigner.generate_ecdsa().public_key, "awskms:alias/release")
    with pytest.raises(SigningError, match="awskms:alias/release") as refused:
        open_key(entry, tmp_path, tell)
    assert "extra for awskms" in refused.value.hint


def test_an_ecdsa_key_is_made_for_those_who_verify_nothing_else(tmp_path: Path) -> None:
    made = make_key(tmp_path, "oms", passphrase=SECRET.encode(), ecdsa=True)
    assert made.public.keytype == "ecdsa"
    [signer] = find_signers(tmp_path, [made.public.keyid], tell)
    made.public.verify_signature(signer.sign(b"data"), b"data")
    make_key(tmp_path, "other", passphrase=None)
    with pytest.raises(SigningError, match="expected ECDSA, found Ed25519"):
        open_key(replace(made, uri="file:other.pem"), tmp_path, tell_nothing)


@dataclass(frozen=True)
class Token:
    """A software token with one key, number 2."""

    label: str
    public: Key


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    """Make a token with SoftHSM; its library reads its configuration once per process."""
    pytest.importorskip("pkcs11", reason="pip install python-pkcs11")
    if not SOFTHSM.exists():
        pytest.skip("apt install softhsm2")
    place = tmp_path_factory.mktemp("softhsm")
    (place / "tokens").mkdir()
    (place / "softhsm2.conf").write_text(f"directories.tokendir = {place / 'tokens'}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOFTHSM2_CONF", str(place / "softhsm2.conf"))
        environment.setenv("PYKCS11LIB", str(SOFTHSM))
        begin = ["--init-token", "--free", "--label", "vault", "--pin", PIN, "--so-pin", "4321"]
        subprocess.run(["softhsm2-util", *begin], check=True, capture_output=True)
        _generate()
        yield Token("vault", import_token(place, "probe", "hsm:", tell).public)


def _generate() -> None:
    from pkcs11 import Attribute, KeyType, lib
    from pkcs11.util.ec import encode_named_curve_parameters

    found = lib(str(SOFTHSM)).get_token(token_label="vault")
    curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    with found.open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
        parameters.generate_keypair(store=True, id=bytes([2]), label="release")


def test_a_token_signs_and_its_private_half_stays_in_it(token: Token, tmp_path: Path) -> None:
    entry = import_token(tmp_path, "root-hsm", "hsm:2?label=vault", tell)
    assert entry == KeyEntry(token.public, "hsm:2?label=vault")
    assert [path.name for path in tmp_path.iterdir()] == ["root-hsm.pub.json"]
    [signer] = find_signers(tmp_path, [entry.public.keyid], tell)
    entry.public.verify_signature(signer.sign(b"data"), b"data")


def test_a_wrong_pin_signs_nothing(token: Token, tmp_path: Path) -> None:
    entry = import_token(tmp_path, "root-hsm", "hsm:", tell)
    [signer] = find_signers(tmp_path, [entry.public.keyid], lambda _: "9999")
    with pytest.raises(RuntimeError):
        signer.sign(b"data")


@pytest.mark.parametrize("uri", ["hsm:9", "hsm:2?label=nowhere", "hsm:two"])
def test_a_token_or_key_that_is_not_there_is_named(token: Token, tmp_path: Path, uri: str) -> None:
    with pytest.raises(SigningError, match="hsm:") as refused:
        import_token(tmp_path, "key", uri, tell)
    assert "PYKCS11LIB" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_token_signs_metadata_that_a_device_accepts(token: Token, tmp_path: Path) -> None:
    from tests.ota_fakes import NOON

    from wildflower.ota.release.keys import RoleKeys, generate_roles
    from wildflower.ota.release.repository import Repository

    entry = import_token(tmp_path / "hsm", "root", "hsm:", tell)
    signers = find_signers(tmp_path / "hsm", [entry.public.keyid], tell)
    keys = {
        **generate_roles(tmp_path / "keys", tmp_path / "signer.pem"),
        "root": RoleKeys(tuple(signers)),
    }
    assert Repository(tmp_path / "tuf").create(keys, NOON)  # verified as a device does
