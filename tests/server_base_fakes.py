"""A CA, a server's TLS files and devices with real keys, for tests of the listeners."""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from wildflower.ota.device.profile import SelfReport
from wildflower.server.ca import Authority, device_id_of, private_pem, public_pem, write_secret
from wildflower.server.listener import Place, TlsFiles
from wildflower.server.records import Device
from wildflower.server.store import Store

ANYWHERE = Place("127.0.0.1", 0, "test_port")
REPORT = SelfReport("x86_64", ("avx2",), 2**30, 2**30, "0.1", {"onnxruntime": "1.20"})


def today() -> datetime:
    """OpenSSL knows no other clock than the real one."""
    return datetime.now(UTC)


def csr_of(key: ec.EllipticCurvePrivateKey | object, name: str = "anything") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]  # tests ask with wrong keys, too


@dataclass
class Clock:
    """A clock that tests set."""

    moment: datetime = field(default_factory=today)

    def __call__(self) -> datetime:
        return self.moment

    def pass_by(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass(frozen=True)
class FakeDevice:
    """A device's key, and the certificate that a CA gave it."""

    key: ec.EllipticCurvePrivateKey
    certificate: str
    directory: Path

    @classmethod
    def enrolled(
        cls, authority: Authority, directory: Path, store: Store | None = None, **fields: object
    ) -> Self:
        """Make a device with a certificate; with a store, one that the server knows."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = authority.issue_device(csr_of(key), today(), 7)
        home = directory / issued.device_id[:12]
        home.mkdir(parents=True)
        write_secret(home / "key.pem", private_pem(key))
        (home / "cert.pem").write_text(issued.certificate)
        device = cls(key, issued.certificate, home)
        if store is not None:
            store.put(device.record(**fields))
        return device

    @property
    def device_id(self) -> str:
        return device_id_of(self.key.public_key())

    @property
    def public_key(self) -> str:
        return public_pem(self.key.public_key())

    def record(self, **fields: object) -> Device:
        known: dict[str, object] = {
            "device_id": self.device_id,
            "name": "device",
            "public_key": self.public_key,
            "certificate": self.certificate,
            "device_class": "linux-x86_64-avx2",
            "ring": "default",
            "node_id": 7,
            "self_report": REPORT.to_bytes(),
            "enrolled_at": today(),
            "last_seen": today(),
        }
        return Device(**(known | fields))  # type: ignore[arg-type]  # fields by name

    def sign(self, document: bytes) -> bytes:
        return self.key.sign(document, ec.ECDSA(hashes.SHA256()))

    def tls(self, ca_pem: bytes) -> ssl.SSLContext:
        """Return what the device connects with: its certificate, and trust in one CA alone."""
        context = ssl.create_default_context(cadata=ca_pem.decode())
        context.load_cert_chain(self.directory / "cert.pem", self.directory / "key.pem")
        return context

    def channel(self, ca_pem: bytes, port: int) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            ca_pem, private_pem(self.key), self.certificate.encode()
        )
        return grpc.secure_channel(f"127.0.0.1:{port}", credentials)


def tls_files(authority: Authority, directory: Path, *, client_ca: bool = True) -> TlsFiles:
    """Write a server's key and certificate, and its CA."""
    directory.mkdir(parents=True, exist_ok=True)
    key, certificate = authority.issue_server((), today())
    write_secret(directory / "server.key", key)
    (directory / "server.pem").write_bytes(certificate)
    (directory / "ca.pem").write_bytes(authority.certificate_pem)
    return TlsFiles(
        directory / "server.key",
        directory / "server.pem",
        directory / "ca.pem" if client_ca else None,
    )


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition that another thread brings about."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        pause.wait(0.01)
