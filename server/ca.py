"""The enrolment CA: it turns a device's public key into an identity, and says who the server is.

Every certificate is EC P-256 and names its holder once: a device's common name is its device id,
the SHA-256 of its SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), so that a certificate cannot
speak for another key. Of a CSR only the key counts; what else it asks for is ignored.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wildflower.server.errors import EnrolmentError, StartError

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 825  # the most that Apple's TLS stacks accept
SKEW: Final = timedelta(hours=1)  # a device's clock may be this far behind ours
MAX_CSR: Final = 8192  # bytes; a P-256 CSR has about 500
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Issued:
    """A device's certificate.

    Attributes:
        device_id: Of the key that the certificate names.
        public_key: SubjectPublicKeyInfo, PEM.
        certificate: PEM.
    """

    device_id: str
    public_key: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that holds its own key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def make(cls, name: str, now: datetime) -> Self:
        """Make an authority with a new key, in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _certificate(subject, subject, key.public_key(), now, days=CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Load the authority that `save` left in `directory`.

        Raises:
            StartError: Its files are missing or damaged.
        """
        try:
            key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StartError(f"the enrolment CA in {directory} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartError(f"{directory / 'ca.key'} is not an EC key")
        return cls(certificate, key)

    def save(self, directory: Path) -> None:
        """Write `ca.key` (0600) and `ca.pem` into `directory`."""
        write_secret(directory / "ca.key", private_pem(self.key))
        (directory / "ca.pem").write_bytes(self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def digest(self) -> str:
        """SHA-256 of the certificate's DER, hex: what a join token pins."""
        return hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    def issue_server(self, names: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
        """Make a TLS server's key and certificate.

        Args:
            names: Host names and addresses it is known by; loopback's are added.
            now: From when it holds, for `SERVER_DAYS`.

        Returns:
            The private key and the certificate, both PEM.
        """
        known = list(dict.fromkeys([*LOOPBACK, *names]))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf(known[-1][:64], key.public_key(), now, SERVER_DAYS)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in known]), False
        )
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = builder.add_extension(purpose, False).sign(self.key, hashes.SHA256())
        return private_pem(key), certificate.public_bytes(Encoding.PEM)

    def issue_device(self, csr_pem: bytes, now: datetime, days: int) -> Issued:
        """Make the certificate of the device whose key signed a CSR.

        Args:
            csr_pem: A PKCS #10 request from outside.
            now: From when the certificate holds.
            days: For how long.

        Raises:
            EnrolmentError: Not a CSR, not signed by its key, or its key is not EC P-256.
        """
        key = read_csr(csr_pem)
        device_id = device_id_of(key)
        builder = self._leaf(device_id, key, now, days)
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = builder.add_extension(purpose, False).sign(self.key, hashes.SHA256())
        return Issued(device_id, public_pem(key), certificate.public_bytes(Encoding.PEM).decode())

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int
    ) -> x509.CertificateBuilder:
        builder = _certificate(_name(name), self.certificate.subject, key, now, days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(signs_certificates=False), True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(issuer, False)


def read_csr(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a CSR from outside, once the CSR has proven that its maker holds it.

    Raises:
        EnrolmentError: Not a CSR, not signed by its key, or its key is not EC P-256.
    """
    if len(csr_pem) > MAX_CSR:
        raise EnrolmentError(f"a CSR of {len(csr_pem)} bytes; at most {MAX_CSR} are read")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise EnrolmentError(f"not a certificate signing request: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentError("a device's key must be EC P-256", hint="Make one of that curve.")
    if not valid:
        raise EnrolmentError("the CSR is not signed by the key it names")
    return key


def device_id_of(key: ec.EllipticCurvePublicKey) -> str:
    """Return the id of the device with this key: SHA-256 of its SubjectPublicKeyInfo, hex."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """Return a key's SubjectPublicKeyInfo, PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8, PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    *,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
