"""A device's identity: one key, one certificate, pins that nobody changes."""

import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from tests.client_fakes import FakeServer

from wildflower.client.errors import AgentError
from wildflower.client.identity import Identity


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with FakeServer(tmp_path / "server") as server:
        return server.enrol(tmp_path / "device")


def test_the_id_is_the_digest_of_the_key_and_the_name_in_the_certificate(directory: Path) -> None:
    identity = Identity.load(directory)
    key = serialization.load_pem_public_key(identity.public_key_pem.encode())
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    assert identity.device_id == hashlib.sha256(der).hexdigest()
    assert certificate.subject.rfc4514_string() == f"CN={identity.device_id}"


def test_a_signature_is_of_these_bytes_and_no_others(directory: Path) -> None:
    identity = Identity.load(directory)
    signature, key = identity.sign(b"report"), identity.private_key.public_key()
    key.verify(signature, b"report", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(signature, b"reporT", ec.ECDSA(hashes.SHA256()))


def test_only_the_pinned_authority_is_trusted(directory: Path) -> None:
    context = Identity.load(directory).ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_the_key_is_its_owners_alone_and_pins_are_read_only(directory: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory / "identity").iterdir()}
    assert modes == {"key.pem": 0o600, "cert.pem": 0o444, "ca.pem": 0o444, "root.json": 0o444}


def test_nothing_secret_shows_when_an_identity_is_printed(directory: Path) -> None:
    shown = repr(Identity.load(directory))
    assert "PRIVATE" not in shown
    assert "private_key" not in shown


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem", "root.json"])
def test_an_identity_without_a_file_is_none(directory: Path, name: str) -> None:
    (directory / "identity" / name).unlink()
    with pytest.raises(AgentError, match="is no enrolled device") as error:
        Identity.load(directory)
    assert "device enroll" in error.value.hint


def test_a_key_of_another_kind_is_refused(directory: Path) -> None:
    path = directory / "identity" / "key.pem"
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(AgentError, match="is not an EC key"):
        Identity.load(directory)
    path.write_bytes(b"damaged")
    with pytest.raises(AgentError, match="is no enrolled device"):
        Identity.load(directory)
