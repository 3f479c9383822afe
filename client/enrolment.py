"""First contact: from a join token to an enrolled device.

The order is what makes it safe against a man in the middle: the CA is fetched over a connection
that proves nothing, compared with the token's digest, and only over a second connection that this
CA vouches for does the secret leave the device. The TUF root is compared with the token as well.
Everything is built in a sibling directory and renamed at the end: a failed enrolment leaves
nothing.
"""

import base64
import binascii
import json
import logging
import re
import shutil
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wildflower.client.config import FILE as CONFIG_FILE
from wildflower.client.config import AgentConfig, save_config
from wildflower.client.errors import (
    AgentError,
    ConfigError,
    EnrolmentError,
    JoinTokenError,
    UntrustedServerError,
)
from wildflower.client.identity import FOLDER, device_id_of, private_pem
from wildflower.client.policy import Policy, save_policy
from wildflower.client.self_report import measure_self
from wildflower.client.settings_file import check
from wildflower.ota import canonical
from wildflower.ota.device.report import MAX_REASON
from wildflower.ota.release.files import sync_directory, write_durably

log = logging.getLogger(__name__)

PREFIX: Final = "wf1."
MAX_TOKEN: Final = 2048  # characters; real ones have about 350
MAX_ANSWER: Final = 1_000_000  # bytes; a TUF root of a few keys has about 5 kB
TIMEOUT_S: Final = 30.0
DRAFT: Final[Mapping[str, Any]] = {
    "endpoints": {"device": "https://unknown", "channel": "unknown:0"},
    "ring": "unknown",
    "device_class": "unknown",
}
"""Stands for the server's answer while what the owner wants is checked."""
HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Leave to enrol, and how to recognise the server.

    Attributes:
        url: Base URL of the enrolment listener.
        secret: What proves the leave.
        ca: SHA-256 of the enrolment CA's certificate, DER, hex.
        root: SHA-256 of the first TUF root, hex.
    """

    url: str
    secret: str = field(repr=False)
    ca: str
    root: str


def parse_token(text: str) -> JoinToken:
    """Parse a join token.

    Raises:
        JoinTokenError: Damaged, too long, or not one of ours.
    """
    hint = "Copy the whole token, or ask for a new one: wildflower device invite"
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TOKEN:
        raise JoinTokenError(f"a join token begins with {PREFIX!r}", hint=hint)
    body = text[len(PREFIX) :]
    try:
        found = json.loads(
            base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        )
        token = JoinToken(*(str(found[name]) for name in ("url", "secret", "ca", "root")))
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JoinTokenError("the join token is damaged", hint=hint) from error
    good = HEX.fullmatch(token.ca) and HEX.fullmatch(token.root)
    if not good or not token.url.startswith("https://") or not token.secret:
        raise JoinTokenError("the join token lacks a URL, a secret or a digest", hint=hint)
    return token


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the device's owner wants of it.

    Attributes:
        directory: Where the device lives; must not hold an enrolled device.
        name: What people call it.
        device_class: The class it asks for; "" leaves it to the server.
        app: What it trains; "" for inference only.
        data: Path of its examples; "" for none.
        sources: Where it looks for releases first.
        cpu_flags: CPU flags that it claims beyond its own.
        policy: What it allows.
        poll_s: How often it looks for releases, in seconds.
        upload_s: How often it uploads summaries, in seconds.
    """

    directory: Path
    name: str
    device_class: str = ""
    app: str = ""
    data: str = ""
    sources: tuple[str, ...] = ()
    cpu_flags: tuple[str, ...] = ()
    policy: Policy = Policy()  # noqa: RUF009  frozen: sharing one is as good as making many
    poll_s: float = 60.0
    upload_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes


def enrol(text: str, wanted: Enrolment) -> AgentConfig:
    """Enrol this device and return its settings.

    Raises:
        JoinTokenError: The token is damaged.
        UntrustedServerError: Who answers is not who the token speaks of; nothing was sent.
        EnrolmentError: The server refused, or cannot be reached.
        AgentError: The directory already holds a device, or cannot be written.
        ConfigError: A setting that is wanted is not allowed.
    """
    token = parse_token(text)
    check(_settings(DRAFT, "0" * 64, wanted))  # before the token is spent
    check(wanted.policy)
    if (wanted.directory / CONFIG_FILE).exists():
        raise AgentError(
            f"{wanted.directory} already holds an enrolled device",
            hint="Choose another --dir, or remove it first.",
        )
    ca = fetch_ca(token)
    key = ec.generate_private_key(ec.SECP256R1())
    answer = _request(token, ca, key, wanted)
    pins = {
        "cert.pem": _checked_certificate(answer, ca, key),
        "ca.pem": ca,
        "root.json": _checked_root(answer, token),
    }
    config = _settings(answer, device_id_of(key), wanted)
    try:
        check(config)
    except ConfigError as error:
        raise EnrolmentError(f"the server's answer cannot be used: {error}") from error
    _write(config, key, pins, wanted.policy)
    log.info("enrolled", extra={"device": config.device_id[:12], "class": config.device_class})
    return config


def fetch_ca(token: JoinToken) -> bytes:
    """Return the server's CA as PEM, once it is the one that the token names.

    Raises:
        UntrustedServerError: It is another one.
        EnrolmentError: The server cannot be reached.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE  # nothing is sent; what comes is checked below
    pem = _exchange(unverified, "GET", f"{token.url}/v1/ca").body
    try:
        found = canonical.digest(
            x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        )
    except ValueError as error:
        raise UntrustedServerError("the server did not answer with a certificate") from error
    if found != token.ca:
        raise UntrustedServerError(
            f"{token.url} is not the server of this join token: its CA is {found[:12]}, "
            f"expected {token.ca[:12]}",
            hint="Somebody may be in between. Check the network, or ask for a new token.",
        )
    return pem


def _request(
    token: JoinToken, ca: bytes, key: ec.EllipticCurvePrivateKey, wanted: Enrolment
) -> dict[str, Any]:
    report = measure_self(
        wanted.directory, claimed_flags=wanted.cpu_flags, wanted_class=wanted.device_class
    )
    body = {
        "secret": token.secret,
        "csr": _csr(key),
        "self_report": report.to_bytes().decode(),
        "name": wanted.name,
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    return read_answer(_exchange(context, "POST", f"{token.url}/v1/enrol", body))


def read_answer(answer: Answer) -> dict[str, Any]:
    """Return the server's answer to the request to enrol.

    Raises:
        EnrolmentError: It refused, and says why; or it is not an answer.
    """
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise EnrolmentError(f"the server answered {answer.status} without JSON") from error
    if answer.status != 200:
        told = found.get("error") if isinstance(found, dict) else None
        told = told if isinstance(told, dict) else {}
        message = str(told.get("message") or f"the server answered {answer.status}")
        raise EnrolmentError(message[:MAX_REASON], hint=str(told.get("hint", ""))[:MAX_REASON])
    if not isinstance(found, dict):
        raise EnrolmentError("the server's answer is not an object")
    return found


def _exchange(
    context: ssl.SSLContext, method: str, url: str, body: dict[str, str] | None = None
) -> Answer:
    """Ask the server something; read no more of the answer than any honest one has."""
    try:
        with (
            httpx.Client(verify=context, timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream(method, url, json=body) as response,
        ):
            found = b""
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MAX_ANSWER:
                    raise EnrolmentError(f"{url} answers with more than {MAX_ANSWER} bytes")
            return Answer(response.status_code, found)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UntrustedServerError(
                f"the server's certificate is not signed by the CA of the join token: {error}",
                hint="Somebody may be in between. Check the network, or ask for a new token.",
            ) from error
        raise EnrolmentError(
            f"{url} cannot be reached: {type(error).__name__}: {error}",
            hint="Is the server up, and does the token's URL lead to it from here?",
        ) from error


def _csr(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device_id_of(key))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _settings(answer: Mapping[str, Any], device_id: str, wanted: Enrolment) -> AgentConfig:
    try:
        return AgentConfig(
            name=wanted.name,
            device_id=device_id,
            endpoints_device=str(answer["endpoints"]["device"]),
            endpoints_channel=str(answer["endpoints"]["channel"]),
            sources=wanted.sources,
            app=wanted.app,
            data=wanted.data,
            ring=str(answer["ring"]),
            device_class=str(answer["device_class"]),
            model=str(answer.get("model", "")),
            poll_s=wanted.poll_s,
            upload_s=wanted.upload_s,
            cpu_flags=wanted.cpu_flags,
            directory=wanted.directory,
        )
    except (KeyError, TypeError) as error:
        raise EnrolmentError(f"the server's answer lacks {error}") from error


def _write(
    config: AgentConfig,
    key: ec.EllipticCurvePrivateKey,
    pins: Mapping[str, bytes],
    policy: Policy,
) -> None:
    """Put the device's directory in place, whole or not at all."""
    target = config.directory
    partial = target.with_name(f".{target.name}.enrolling")
    mark = {"kind": "device", "format": 1, "enrolled_at": canonical.to_time(datetime.now(UTC))}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write_durably(partial / FOLDER / "key.pem", private_pem(key), mode=0o600)
        for name, data in pins.items():
            write_durably(partial / FOLDER / name, data, mode=0o444)
        write_durably(partial / ".wildflower", json.dumps(mark).encode())
        save_policy(policy, partial)
        save_config(replace(config, directory=partial))
        _put_in_place(partial, target)
    except OSError as error:
        raise AgentError(
            f"{target} cannot be written: {error}",
            hint="Nothing was enrolled here. The token may be spent; ask for a new one.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    """Move the directory to its place; into one that exists file by file, the settings last."""
    if not target.exists():
        partial.rename(target)
        sync_directory(target.parent)
        return
    moved: list[Path] = []
    try:
        for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            if (target / path.name).exists():
                raise FileExistsError(f"there is a {path.name} already")
            moved.append(path.rename(target / path.name))
    except OSError:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    sync_directory(target)


def _checked_root(answer: dict[str, Any], token: JoinToken) -> bytes:
    try:
        root = base64.b64decode(answer["root"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise EnrolmentError("the server's answer holds no TUF root") from error
    if canonical.digest(root) != token.root:
        raise UntrustedServerError(
            f"the TUF root is {canonical.digest(root)[:12]}, the join token says {token.root[:12]}",
            hint="Nothing of this server's releases may be trusted. Ask for a new token.",
        )
    return root


def _checked_certificate(
    answer: dict[str, Any], ca: bytes, key: ec.EllipticCurvePrivateKey
) -> bytes:
    try:
        pem = str(answer["certificate"]).encode()
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    except Exception as error:
        raise UntrustedServerError("the certificate is not signed by the server's CA") from error
    if certificate.public_key() != key.public_key():
        raise UntrustedServerError("the certificate is for another key than this device's")
    return pem
