"""A service's directory, and a server's while it runs: one at a time, ports, status and token."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from wildflower.server.errors import StartError
from wildflower.server.listener import Place, bind
from wildflower.server.settings import Settings

STATUS_FILE: Final = "server.status.json"
LOCK_FILE: Final = ".lock"


@contextlib.contextmanager
def beside(directory: Path) -> Iterator[Path]:
    """Yield a new directory that takes the place of `directory` if the block succeeds."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{directory.name}.new-", dir=directory.parent))
    try:
        yield place
        place.chmod(0o755)
        place.rename(directory)  # takes the place of an empty directory, of no other
    except BaseException:
        shutil.rmtree(place)
        raise


@contextlib.contextmanager
def claimed(
    directory: Path,
    *,
    what: str = "a server",
    hint: str = "See: wildflower server status --dir DIR",
) -> Iterator[None]:
    """Hold a service's directory.

    Args:
        directory: The service's.
        what: What runs in it, for the error.
        hint: What to do about another one that does.

    Raises:
        StartError: Another one runs in it.
    """
    with (directory / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(f"{what} runs in {directory} already", hint=hint) from error
        yield


def listeners(settings: Settings) -> dict[str, str]:
    """Return where a server listens, by the settings' names."""
    return {
        "enrol": settings.enrol_url,
        "device": settings.device_url,
        "channel": settings.channel_address,
        "operator": settings.operator_url,
        "superlink": settings.superlink_address,
    }


def require_free_ports(settings: Settings) -> None:
    """Check every port before anything is started.

    Raises:
        StartError: One is in use; names it and its key.
    """
    for key in settings.ports:
        bind(place_of(settings, key)).close()


def place_of(settings: Settings, key: str) -> Place:
    """Return where a listener listens; operators' and Flower's are always on loopback."""
    is_inner = key in ("operator_port", "superlink_port")
    return Place("127.0.0.1" if is_inner else settings.host, settings.ports[key], key)


@contextlib.contextmanager
def status_file(settings: Settings, started_at: datetime) -> Iterator[None]:
    """Say in `server.status.json` that the server is ready, while the block lasts."""
    path = settings.directory / STATUS_FILE
    told: dict[str, Any] = {
        "pid": os.getpid(),
        "ready": True,
        "started_at": started_at.isoformat(),
        "listeners": listeners(settings),
    }
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(told))
    beside.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def operator_token(directory: Path) -> str:
    """Return the token that operators show.

    Raises:
        StartError: `operator.json` is missing or damaged.
    """
    try:
        return str(json.loads((directory / "operator.json").read_text())["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartError(f"{directory / 'operator.json'} cannot be read: {error}") from error


def read_file(path: Path) -> bytes:
    """Return a file of the server's directory.

    Raises:
        StartError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(
            f"{path} cannot be read: {error.strerror}",
            hint="Was the server set up? wildflower server init --dir DIR",
        ) from error
