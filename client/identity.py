"""Who a device is: one EC P-256 key, made on the device, and what the server signed about it.

The key signs the CSR, is the Flower node key, signs secure-aggregation keys and device reports.
The CA and the first TUF root were checked against the join token and are pinned read-only.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wildflower.client.errors import AgentError
from wildflower.ota import canonical

FOLDER: Final = "identity"


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's identity.

    Attributes:
        folder: Where its files lie: key.pem, cert.pem, ca.pem, root.json.
        private_key: EC P-256.
        certificate_pem: The client certificate.
        ca_pem: The pinned enrolment CA.
        root: The pinned first TUF root.
    """

    folder: Path
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate_pem: bytes
    ca_pem: bytes
    root: bytes = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the identity in a device's directory.

        Raises:
            AgentError: The device is not enrolled, or a file is damaged.
        """
        folder = directory / FOLDER
        try:
            key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
            parts = [(folder / name).read_bytes() for name in ("cert.pem", "ca.pem", "root.json")]
        except (OSError, ValueError, TypeError) as error:
            raise AgentError(
                f"{directory} is no enrolled device: {error}",
                hint="Enrol it: wildflower device enroll TOKEN --dir DIR",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AgentError(f"{folder / 'key.pem'} is not an EC key")
        return cls(folder, key, *parts)

    @property
    def public_key_pem(self) -> str:
        """SubjectPublicKeyInfo, PEM."""
        return (
            self.private_key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    @property
    def device_id(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, hex."""
        return device_id_of(self.private_key)

    @property
    def certificate_der(self) -> bytes:
        """The client certificate, DER."""
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        return certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The private key, PEM."""
        return private_pem(self.private_key)

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA P-256 signature over the SHA-256 of `data`, DER."""
        return self.private_key.sign(data, ec.ECDSA(hashes.SHA256()))

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature is this device's."""
        try:
            self.private_key.public_key().verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context that shows the client certificate and trusts the pinned CA alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context


def device_id_of(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the id of the device that holds a key."""
    return canonical.digest(
        key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8, not encrypted: an agent starts unattended)."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
