"""Small services that are known by the digest of their key, whatever their address or host name.

    helper: identity.key, identity.pem        their digest is printed, and pinned by people
    server: https://host:port  +  digest      the certificate that answers must be of that key

The certificate is self-signed: its signature says nothing, its key everything. It lasts as long as
the key does; who wants another key makes another service, and pins it anew.
"""

import hashlib
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from wildflower.server.ca import SKEW, private_pem, write_secret
from wildflower.server.errors import PinError, StartError

KEY_FILE: Final = "identity.key"
CERTIFICATE_FILE: Final = "identity.pem"
LIFETIME: Final = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class PinnedIdentity:
    """A service's identity.

    Attributes:
        key: EC P-256.
        certificate: Of that key, signed by it.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def make(cls, title: str, now: datetime) -> Self:
        """Make an identity with a new key, in memory.

        Args:
            title: What the service is called in its certificate, which names no host.
            now: From when the certificate holds.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, title)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Load the identity that `save` left in a directory.

        Raises:
            StartError: Its files are missing or damaged.
        """
        try:
            key = load_pem_private_key((directory / KEY_FILE).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(
                (directory / CERTIFICATE_FILE).read_bytes()
            )
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StartError(f"the identity in {directory} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartError(f"{directory / KEY_FILE} is not an EC key")
        return cls(key, certificate)

    def save(self, directory: Path) -> None:
        """Write the key (0600) and the certificate into a directory."""
        write_secret(directory / KEY_FILE, private_pem(self.key))
        pem = self.certificate.public_bytes(Encoding.PEM)
        (directory / CERTIFICATE_FILE).write_bytes(pem)

    @property
    def public_der(self) -> bytes:
        """Its public key, SubjectPublicKeyInfo in DER: what the digest is of."""
        return _public_der(self.certificate)

    @property
    def digest(self) -> str:
        """SHA-256 of the public key, hex."""
        return hashlib.sha256(self.public_der).hexdigest()

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA P-256 signature over the SHA-256 of `data`, DER."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def pinned_context(url: str, digest: str, *, timeout_s: float) -> ssl.SSLContext:
    """Return a TLS context that believes one service, and only if its key is the pinned one.

    Args:
        url: Where it listens, `https://host:port`.
        digest: SHA-256 of its public key, hex.
        timeout_s: How long to wait for its certificate, in seconds.

    Raises:
        PinError: Another key answers there, or the URL is none of a TLS service.
        OSError: Nobody answers.
    """
    place = urlsplit(url)
    if place.scheme != "https" or not place.hostname:
        raise PinError(f"{url!r} is not a TLS address", hint="Expected: https://host:port")
    pem = ssl.get_server_certificate((place.hostname, place.port or 443), timeout=timeout_s)
    found = hashlib.sha256(_public_der(x509.load_pem_x509_certificate(pem.encode()))).hexdigest()
    if found != digest:
        raise PinError(
            f"at {url} answers key {found[:12]}, pinned is {digest[:12]}",
            hint="Was the service set up anew, or is something in between?",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the key was compared: names say less than it does
    context.load_verify_locations(cadata=pem)
    return context


def _public_der(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
