"""A real SuperLink for tests: its files, its process, its end."""

import contextlib
import ipaddress
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wildflower.server.flower_link import superlink_command, superlink_environment
from wildflower.simulation.identities import SimulatedCa


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a key's public half as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@dataclass
class RunningSuperLink:
    """A SuperLink that runs as a child process."""

    directory: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ca_pem(self) -> bytes:
        return (self.directory / "superlink" / "ca.pem").read_bytes()

    @property
    def secret(self) -> bytes:
        return (self.directory / "superlink" / "superexec.secret").read_bytes()

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca_pem.decode())

    def start(self) -> None:
        with (self.directory / "superlink.log").open("ab") as log:
            self.process = subprocess.Popen(
                superlink_command(self.directory, self.port),
                env={**os.environ, **superlink_environment(self.directory)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with httpx.Client(verify=self.tls) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"https://{self.address}/health").is_success:
                        return
                assert self.process.poll() is None, (self.directory / "superlink.log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _server_certificate(ca: SimulatedCa, files: Path) -> None:
    """Write a certificate for the loopback address, signed by the CA of the devices."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(ca._key, hashes.SHA256())
    )
    (files / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (files / "server.key").write_bytes(pem_of(key))
    (files / "ca.pem").write_bytes(ca.pem)


@contextlib.contextmanager
def running_superlink(directory: Path, ca: SimulatedCa | None = None) -> Iterator[RunningSuperLink]:
    """Start a SuperLink on a free port; end it afterwards."""
    files = directory / "superlink"
    files.mkdir(parents=True)
    _server_certificate(ca or SimulatedCa(), files)
    (files / "superexec.secret").write_text(secrets.token_hex(32))
    (files / "superexec.secret").chmod(0o600)
    superlink = RunningSuperLink(directory, free_port())
    try:
        superlink.start()
        yield superlink
    finally:
        superlink.stop()
