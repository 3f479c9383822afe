"""Identities that are known by the digest of their key, over real TLS."""

import hashlib
import socket
import ssl
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from starlette.applications import Starlette
from tests.certificates import self_signed

from wildflower.server.errors import PinError, StartError
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import (
    CERTIFICATE_FILE,
    KEY_FILE,
    PinnedIdentity,
    pinned_context,
)

HERE = Place("127.0.0.1", 0, "port")


@pytest.fixture
def identity(tmp_path: Path) -> PinnedIdentity:
    made = PinnedIdentity.make("test", datetime.now(UTC))
    made.save(tmp_path)
    return made


def listener(folder: Path) -> Listener:
    return Listener(Starlette(), HERE, TlsFiles(folder / KEY_FILE, folder / CERTIFICATE_FILE))


def test_an_identity_comes_back_and_its_key_is_its_owners(
    identity: PinnedIdentity, tmp_path: Path
) -> None:
    found = PinnedIdentity.load(tmp_path)
    assert found.digest == identity.digest == hashlib.sha256(identity.public_der).hexdigest()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    identity.key.public_key().verify(found.sign(b"data"), b"data", ec.ECDSA(SHA256()))
    assert "key" not in repr(identity).partition("certificate")[0]


def test_the_pinned_key_is_believed_under_any_name(
    identity: PinnedIdentity, tmp_path: Path
) -> None:
    with listener(tmp_path) as served:
        url = f"https://127.0.0.1:{served.port}"
        context = pinned_context(url, identity.digest, timeout_s=5)
        with (
            socket.create_connection(("127.0.0.1", served.port)) as raw,
            context.wrap_socket(raw, server_hostname="elsewhere.example") as connection,
        ):
            assert connection.version() == "TLSv1.3"


def test_another_key_is_refused(identity: PinnedIdentity, tmp_path: Path) -> None:
    with listener(tmp_path) as served, pytest.raises(PinError, match=r"answers key .*, pinned is"):
        pinned_context(f"https://127.0.0.1:{served.port}", "0" * 64, timeout_s=5)


def test_a_service_that_takes_the_place_of_the_pinned_one_is_not_believed(
    identity: PinnedIdentity, tmp_path: Path
) -> None:
    with listener(tmp_path) as served:
        context = pinned_context(f"https://127.0.0.1:{served.port}", identity.digest, timeout_s=5)
    certificate, key = self_signed(tmp_path)
    with (
        Listener(Starlette(), replace(HERE, port=served.port), TlsFiles(key, certificate)) as other,
        socket.create_connection(("127.0.0.1", other.port)) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "https://", ""])
def test_what_is_no_tls_address_is_refused(url: str) -> None:
    with pytest.raises(PinError, match="is not a TLS address"):
        pinned_context(url, "0" * 64, timeout_s=1)


def test_a_missing_or_damaged_identity_is_told(identity: PinnedIdentity, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        PinnedIdentity.load(tmp_path / "nowhere")
    (tmp_path / KEY_FILE).write_bytes(b"damaged")
    with pytest.raises(StartError, match="cannot be read"):
        PinnedIdentity.load(tmp_path)
