"""A key holder's directory: made once, run by one process at a time.

identity.key, identity.pem    who it is
keyholder.toml                min_cohort, days, and the digest of the token
token                         what the server shows; to be moved to the server
runs/                         `server.keyholder`
"""

import base64
import hashlib
import logging
import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from wildflower.server.ca import write_secret
from wildflower.server.errors import ConflictError, SettingsError
from wildflower.server.home import beside, claimed
from wildflower.server.keyholder import KeyHolder, Terms
from wildflower.server.keyholder_http import create_app
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import CERTIFICATE_FILE, KEY_FILE, PinnedIdentity
from wildflower.strategies.he.bfv import tenseal
from wildflower.strategies.he.messages import SMALLEST
from wildflower.strategies.he.packing import MAX_ADDENDS

log = logging.getLogger(__name__)

SETTINGS_FILE: Final = "keyholder.toml"
TOKEN_FILE: Final = "token"  # noqa: S105  the file's name
SWEEP_S: Final = 3600.0  # between two looks for keys that expired
CONCURRENCY: Final = 16  # connections; a server keeps one
LIMITS: Final = {"min_cohort": (SMALLEST, MAX_ADDENDS), "days": (1, 3650)}


@dataclass(frozen=True, slots=True)
class KeyHolderHome:
    """A key holder's directory, read.

    Attributes:
        identity: Who it is.
        terms: On what terms it decrypts.
        holder: What answers.
        token_digest: SHA-256 of the token that the server shows, hex.
    """

    identity: PinnedIdentity
    terms: Terms
    holder: KeyHolder
    token_digest: str = field(repr=False)


def make_key_holder(
    directory: Path, terms: Terms, *, entropy: bytes, now: datetime
) -> PinnedIdentity:
    """Make a directory a key holder; return its identity.

    Args:
        directory: It may exist, but must be empty.
        terms: On what terms it decrypts.
        entropy: 32 secret random bytes: the token.
        now: From when its certificate holds.

    Raises:
        ConflictError: The directory is not empty.
        SettingsError: The terms are out of range.
        MissingPackageError: TenSEAL is not installed.
    """
    tenseal()
    _check(terms)
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError(f"{directory} is not empty", hint="Choose another --dir.")
    identity = PinnedIdentity.make("Wildflower key holder", now)
    token = base64.urlsafe_b64encode(entropy).rstrip(b"=")
    lines = [
        f"min_cohort = {terms.min_cohort}",
        f"days = {terms.days}",
        f'token_digest = "{token_digest(token)}"',
        "",
    ]
    with beside(directory) as place:
        identity.save(place)
        write_secret(place / TOKEN_FILE, token)
        write_secret(place / SETTINGS_FILE, "\n".join(lines).encode())
        (place / "runs").mkdir(mode=0o700)
    return identity


def open_key_holder(directory: Path, *, now: Callable[[], datetime]) -> KeyHolderHome:
    """Read a key holder's directory.

    Raises:
        SettingsError: It is none, or a setting is wrong.
        StartError: Its identity is missing or damaged.
    """
    found = _read(directory / SETTINGS_FILE)
    known = found.pop("token_digest", None)
    if set(found) != set(LIMITS) or not isinstance(known, str):
        raise SettingsError(
            f"{directory / SETTINGS_FILE}: expected min_cohort, days and token_digest"
        )
    terms = Terms(**found)
    _check(terms)
    identity = PinnedIdentity.load(directory)
    holder = KeyHolder(directory, identity, terms, now=now)
    return KeyHolderHome(identity, terms, holder, known)


def run_key_holder(
    directory: Path, place: Place, stopping: threading.Event, *, now: Callable[[], datetime]
) -> None:
    """Answer until told to stop.

    Raises:
        SettingsError: The directory is no key holder, or a setting is wrong.
        StartError: It runs already, its identity is damaged, or the port is in use.
        MissingPackageError: TenSEAL is not installed.
    """
    tenseal()
    home = open_key_holder(directory, now=now)
    files = TlsFiles(directory / KEY_FILE, directory / CERTIFICATE_FILE)
    with claimed(directory, what="a key holder", hint="One is enough."):
        application = create_app(home.holder, home.token_digest)
        with Listener(application, place, files, concurrency=CONCURRENCY) as listener:
            log.info("key holder ready", extra={"port": listener.port, "key": home.identity.digest})
            home.holder.erase_expired()
            while not stopping.wait(SWEEP_S):
                home.holder.erase_expired()


def token_digest(token: bytes) -> str:
    """Return that by which a key holder knows the server's token: its SHA-256, hex."""
    return hashlib.sha256(token).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}",
            hint="Make a key holder: wildflower keyholder init --dir DIR",
        ) from error


def _check(terms: Terms) -> None:
    for name, (low, high) in LIMITS.items():
        value = getattr(terms, name)
        if type(value) is not int or not low <= value <= high:
            raise SettingsError(
                f"{name} = {value!r} is not allowed", hint=f"Allowed: {low} to {high}."
            )
