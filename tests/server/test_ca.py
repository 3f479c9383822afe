import contextlib
import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server_base_fakes import csr_of

from wildflower.server.ca import MAX_CSR, SKEW, Authority, device_id_of, private_pem, write_secret
from wildflower.server.errors import EnrolmentError, StartError

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
AUTHORITY = Authority.make("Wildflower test", NOW)
KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_device_certificate_names_its_key_and_nothing_else() -> None:
    issued = AUTHORITY.issue_device(csr_of(KEY, "root"), NOW, 30)
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == [issued.device_id] == [device_id_of(KEY.public_key())]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_before_utc == NOW - SKEW
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert certificate.public_key() == KEY.public_key()
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_what_a_csr_asks_for_beyond_its_key_is_ignored() -> None:
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    issued = AUTHORITY.issue_device(greedy.public_bytes(Encoding.PEM), NOW, 30)
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca
    assert "localhost" not in certificate.subject.rfc4514_string()


def test_the_device_id_is_the_digest_of_the_public_key_info() -> None:
    der = ssl.PEM_cert_to_DER_cert(
        AUTHORITY.issue_device(csr_of(KEY), NOW, 1).public_key.replace("PUBLIC KEY", "CERTIFICATE")
    )
    assert device_id_of(KEY.public_key()) == hashlib.sha256(der).hexdigest()


def test_a_server_certificate_holds_for_loopback_and_its_names() -> None:
    _, pem = AUTHORITY.issue_server(("fl.example.org", "10.0.0.7", "localhost"), NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ip_address(text) for text in ("127.0.0.1", "::1", "10.0.0.7")
    ]
    policy = PolicyBuilder().store(Store([AUTHORITY.certificate])).time(NOW)
    policy.build_server_verifier(x509.DNSName("fl.example.org")).verify(certificate, [])


def test_a_devices_chain_verifies_against_our_ca_alone() -> None:
    issued = AUTHORITY.issue_device(csr_of(KEY), NOW, 30)
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    other = Authority.make("Wildflower test", NOW)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(other.certificate)


def tampered(pem: bytes) -> bytes:
    der = bytearray(
        ssl.PEM_cert_to_DER_cert(pem.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE"))
    )
    der[-1] ^= 1
    return (
        ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    )


WRONG = {
    "another curve": (csr_of(ec.generate_private_key(ec.SECP384R1())), "must be EC P-256"),
    "rsa": (csr_of(rsa.generate_private_key(65537, 2048)), "must be EC P-256"),
    "not signed by its key": (tampered(csr_of(KEY)), "not signed by the key"),
    "empty": (b"", "not a certificate signing request"),
    "a certificate": (AUTHORITY.certificate_pem, "not a certificate signing request"),
    "too long": (b"-" * (MAX_CSR + 1), "at most 8192"),
}


@pytest.mark.parametrize(("csr", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_csr_is_refused_and_told_why(csr: bytes, reason: str) -> None:
    with pytest.raises(EnrolmentError, match=reason):
        AUTHORITY.issue_device(csr, NOW, 30)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 500))
def test_any_bytes_are_a_csr_or_a_named_error(noise: bytes, at: int) -> None:
    whole = csr_of(KEY)
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        with contextlib.suppress(EnrolmentError):
            AUTHORITY.issue_device(data, NOW, 30)


def test_an_authority_comes_back_from_its_directory(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    loaded = Authority.load(tmp_path)
    assert loaded.digest == AUTHORITY.digest
    assert private_pem(loaded.key) == private_pem(AUTHORITY.key)
    assert (
        loaded.digest
        == hashlib.sha256(ssl.PEM_cert_to_DER_cert(AUTHORITY.certificate_pem.decode())).hexdigest()
    )


def test_a_secret_is_never_written_over_another(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"one")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"two")


def test_a_damaged_authority_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        Authority.load(tmp_path)
    AUTHORITY.save(tmp_path)
    (tmp_path / "ca.pem").write_text("damaged")
    with pytest.raises(StartError, match="cannot be read"):
        Authority.load(tmp_path)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate_pem)
    (tmp_path / "ca.key").write_bytes(_pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(StartError, match="not an EC key"):
        Authority.load(tmp_path)


def test_an_authority_keeps_its_key_from_logs() -> None:
    assert "key" not in repr(AUTHORITY).lower().replace("publickey", "")


def _pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return private_pem(key)  # type: ignore[arg-type]  # serialises alike
