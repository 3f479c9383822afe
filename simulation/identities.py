"""Identities for simulated devices: real keys, real certificates, a CA that lives in memory."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wildflower.strategies.secagg.keys import device_id_of


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A device's identity; see `wildflower.strategies.secagg.keys.Identity`."""

    device_id: str
    certificate_der: bytes = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA P-256 signature over the SHA-256 of `data`, DER."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


class SimulatedCa:
    """A certificate authority that lives as long as the simulation."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Simulated CA")
        self.certificate = (
            _builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The CA's certificate, PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def enrol(self) -> SimulatedDevice:
        """Return a new device with a certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        device = device_id_of(key.public_key())
        certificate = (
            _builder(_name(device), self.certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return SimulatedDevice(device, certificate.public_bytes(serialization.Encoding.DER), key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
    )
