"""`wildflower server init`: everything that makes a directory a server.

    server.toml            the settings                .wildflower    the marker
    ca/                    the enrolment CA            operator.json  an operator's token (0600)
    tls/                   our listeners' key          wildflower.db  the database
    superlink/             Flower's own certificate, the superexec secret (0600)
    keys/                  TUF keys of the publisher: snapshot, timestamp, rollout
    keys/offline/          TUF keys that do not belong on this host: root, targets, approved-*
    signer/                the release signer's key
    tuf/                   the repository, blobs/ its files
    noise.key              the noise of trees of rounds is made from it (0600)

It is built beside its place and renamed, so that an init that fails leaves nothing behind.
"""

import json
import os
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from wildflower.ota import canonical
from wildflower.ota.release.audit import FILE as TRAIL
from wildflower.ota.release.audit import Trail, audited
from wildflower.ota.release.keys import APPROVED, generate_roles, key_files
from wildflower.ota.release.repository import Repository
from wildflower.server.ca import Authority, write_secret
from wildflower.server.errors import ConflictError, SettingsError
from wildflower.server.home import beside
from wildflower.server.ports import choose_ports
from wildflower.server.settings import Settings
from wildflower.server.signer import SOCKET
from wildflower.server.sql import SqlStore

NOISE_KEY: Final = "noise.key"
MARKER: Final = ".wildflower"
MARK: Final = {"kind": "server", "format": 1}
PRIVATE: Final = ("ca", "keys", "signer", "superlink", "tls")
PUBLIC: Final = ("blobs", "build", "logs", "tuf")
MAX_SOCKET: Final = 106
"""Bytes of the signer's socket path: unix(7) allows 107, its draft's name has one more."""
OFFLINE: Final = ("root", "targets", APPROVED)
"""Roles whose keys are not needed to run a server."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator chooses at init; everything else can be edited in `server.toml` later.

    Attributes:
        profile: Who holds which keys: "single" or "demo".
        host: Address that the devices' listeners bind to.
        names: Host names and addresses that devices know the server by.
        free_ports: Choose ports that are free now, instead of the usual ones.
        settings: Further keys of `server.toml` and their values.
    """

    profile: str = "single"
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    free_ports: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Initialised:
    """What init has made.

    Attributes:
        directory: The server's directory.
        profile: Its profile.
        enrol_url: Where devices enrol.
        operator_url: Where operators' commands go.
        ca: SHA-256 of the enrolment CA's DER, hex.
        root: SHA-256 of the first TUF root, hex.
        notes: What the operator must know or do now, a sentence each.
    """

    directory: Path
    profile: str
    enrol_url: str
    operator_url: str
    ca: str
    root: str
    notes: tuple[str, ...]


def initialise(directory: Path, options: Options, *, now: datetime) -> Initialised:
    """Make a directory a server.

    Args:
        directory: It may exist, but must be empty.
        options: What the operator chooses.
        now: From when certificates and metadata hold, UTC.

    Raises:
        ConflictError: The directory is not empty, or the database already holds a fleet.
        SettingsError: An option is outside its range.
        StartError: There are no free ports, or the database cannot be opened.
    """
    settings = _settings(directory, options)
    _require_empty(directory)
    with beside(directory) as place:
        _make_directories(place)
        authority = Authority.make("Wildflower enrolment", now)
        authority.save(place / "ca")
        _write_identity(place / "tls", authority, (settings.host, *settings.names), now)
        _make_superlink(place / "superlink", now)
        root = _make_repository(place, settings.profile, now)
        settings.write(place)
        _make_database(place, settings)
        _write_operator(place, settings)
        write_secret(place / NOISE_KEY, secrets.token_bytes(32))
        (place / MARKER).write_text(json.dumps(MARK))
    return Initialised(
        directory=directory,
        profile=settings.profile,
        enrol_url=settings.enrol_url,
        operator_url=settings.operator_url,
        ca=authority.digest,
        root=root,
        notes=_notes(directory, settings.profile),
    )


def is_server(directory: Path) -> bool:
    """Whether a directory carries the marker of a server."""
    try:
        found = json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == MARK)


def _settings(directory: Path, options: Options) -> Settings:
    if options.profile == "split":
        raise SettingsError(
            "profile = 'split' needs a CA on another host, which this version cannot run",
            hint="Choose single or demo.",
        )
    socket = directory.absolute() / "signer" / SOCKET
    if len(os.fsencode(socket)) > MAX_SOCKET:
        raise SettingsError(
            f"{socket} has more than {MAX_SOCKET} bytes, the most that a socket's name can have",
            hint="Choose a directory with a shorter path.",
        )
    values = {"profile": options.profile, "host": options.host, "names": options.names}
    settings = Settings.choose(directory, {**values, **options.settings})
    if not options.free_ports:
        return settings
    hosts = ("127.0.0.1", settings.host)
    free = choose_ports(len(settings.ports), hosts, random.SystemRandom())
    return replace(settings, **dict(zip(settings.ports, free, strict=True)))  # type: ignore[arg-type]  # ports are numbers


def _require_empty(directory: Path) -> None:
    if is_server(directory):
        raise ConflictError(
            f"{directory} is a server already",
            hint=f"Run it: wildflower server up --dir {directory}",
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConflictError(
            f"{directory} is not empty and is no server",
            hint="Choose another --dir; nothing in it was touched.",
        )


def _make_directories(place: Path) -> None:
    for name in PRIVATE:
        (place / name).mkdir(mode=0o700)
    for name in PUBLIC:
        (place / name).mkdir()


def _write_identity(
    place: Path, authority: Authority, names: tuple[str, ...], now: datetime
) -> None:
    key, certificate = authority.issue_server(names, now)
    write_secret(place / "server.key", key)
    (place / "server.pem").write_bytes(certificate)


def _make_superlink(place: Path, now: datetime) -> None:
    """Give the SuperLink an identity of its own, from a CA whose key nobody keeps.

    Under the enrolment CA whoever stole the SuperLink's key could speak as the server to devices.
    """
    authority = Authority.make("Wildflower SuperLink", now)
    _write_identity(place, authority, (), now)
    (place / "ca.pem").write_bytes(authority.certificate_pem)
    write_secret(place / "superexec.secret", secrets.token_hex(32).encode())


def _make_repository(place: Path, profile: str, now: datetime) -> str:
    """Make the keys of every role and the first metadata; return the first root's digest."""
    online = place / "keys"
    made = generate_roles(online, place / "signer/key.pem")
    root = Repository(place / "tuf").create(audited(made, Trail(online / TRAIL), lambda: now), now)
    if profile != "demo":
        (online / "offline").mkdir(mode=0o700)
        for role, files in key_files(online, place / "signer/key.pem").items():
            for file in files if role in OFFLINE else ():
                file.rename(online / "offline" / file.name)
    return canonical.digest(root)


def _make_database(place: Path, settings: Settings) -> None:
    url = settings.database
    if not url:
        write_secret(place / "wildflower.db", b"")  # an empty file is an empty database
        url = replace(settings, directory=place).database_url
    with SqlStore.open(url) as store:
        if store.events(limit=1):
            raise ConflictError(
                "the database holds a fleet already",
                hint="Its devices trust another CA: give this server a database of its own.",
            )


def _write_operator(place: Path, settings: Settings) -> None:
    told = {"url": settings.operator_url, "token": secrets.token_urlsafe(32)}
    write_secret(place / "operator.json", json.dumps(told).encode())


def _notes(directory: Path, profile: str) -> tuple[str, ...]:
    keys = directory / "keys"
    offline = keys / "offline"
    if profile == "demo":
        return (
            f"Profile demo keeps the offline keys on this host ({keys}): whoever owns it can "
            "sign any release for any device. Never use it for devices that matter.",
        )
    return (
        f"Move {offline} to a medium of its own, one approver's key each, and remove it here: "
        "these keys sign new roots and approved releases, and this server never needs them.",
    )
