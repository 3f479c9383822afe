"""The release signer: a process of its own that holds the key of `models/auto` and little else.

    python -m wildflower.server.signer --dir D      D/key.pem (0600), D/signer.sock (0600)

It reads one request per connection from a unix socket, checks it (`server.signature_request`) and
signs exactly that addition. It opens no network socket, imports no store, and remembers what it
signed last (`D/last.json`): a server that presents older metadata, to make the key sign one order
twice, gets the addition on top of what was signed, and a server that crashed before it could
publish gets the same bytes again.

Every frame is a length (4 bytes, big-endian) and that many bytes. A request is a `SignRequest` and
the current metadata; the answer is "" and the new metadata, or the reason for the refusal and "".
"""

import argparse
import contextlib
import fcntl
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from wildflower.logs import LogFormat, configure_logging
from wildflower.ota import canonical
from wildflower.ota.errors import OtaError
from wildflower.ota.release import signing
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.keys import load_key
from wildflower.server.errors import ServerError, SignerError, StartError
from wildflower.server.signature_request import Rule, SignRequest, examined, parsed

log = logging.getLogger(__name__)

KEY_FILE: Final = "key.pem"
SOCKET_FILE: Final = "signer.sock"
LIFETIME: Final = timedelta(days=365)
PATIENCE_S: Final = 10.0
"""Seconds that either side waits for the other's bytes; signing takes milliseconds."""
MAX_REASON: Final = 10_000  # bytes
LONGEST_SOCKET_PATH: Final = 100  # bytes; the kernel takes 107, with what we append

Clock = Callable[[], datetime]


class ReleaseSigner:
    """Checks requests and signs with one key.

    Args:
        directory: Holds the key and what was signed last.
        now: The time.

    Raises:
        SigningError: The key is missing or others may read it.
    """

    def __init__(self, directory: Path, now: Clock) -> None:
        self._key: Signer = load_key(directory / KEY_FILE)
        self._last = directory / "last.json"
        self._now = now

    def sign(self, request: SignRequest, metadata: bytes) -> bytes:
        """Return `models/auto` with the request's release added.

        Args:
            request: The release and the evidence for it.
            metadata: The role's metadata as it is published now.

        Raises:
            SignerError: A rule is broken; the message begins with its name.
            OSError: What was signed cannot be remembered; it is not handed out either.
        """
        newest = self._newest(metadata)
        asked = parsed(request)
        known = signing.read_targets(newest).signed.targets.get(asked.path)
        if known is not None and known.hashes["sha256"] == asked.release.digest:
            return newest
        order = signing.next_order(newest, asked.release.target_group) - 1
        evidence = examined(request, order)
        signed = signing.add_release(
            newest, evidence.path, request.manifest, [self._key], expires=self._now() + LIFETIME
        )
        write_durably(self._last, signed, mode=0o600)
        log.info(
            "signed a release",
            extra={
                "release": evidence.release.digest,
                "path": evidence.path,
                "artifact": evidence.release.artifact.digest,
                "gate_report": evidence.gate_report.digest,
                "training": evidence.round_record.training,
                "round": evidence.round_record.number,
            },
        )
        return signed

    def _newest(self, metadata: bytes) -> bytes:
        """Return the newer of what was sent and what is remembered, if the key has signed it."""
        try:
            sent = signing.check_signed_by(metadata, self._key.public_key).signed.version
        except OtaError as error:
            raise Rule.METADATA.refusal(str(error)) from error
        if not self._last.exists():
            return metadata
        remembered = self._last.read_bytes()
        return remembered if signing.read_targets(remembered).signed.version >= sent else metadata


def ask(path: Path, request: SignRequest, metadata: bytes) -> bytes:
    """Ask the signer that listens at `path`.

    Args:
        path: Its socket.
        request: The release and the evidence for it.
        metadata: `models/auto` as it is published now.

    Returns:
        The new metadata of `models/auto`.

    Raises:
        SignerError: It refused, or could not be reached.
    """
    try:
        with (
            socket.socket(socket.AF_UNIX) as connection,
            _reachable(path) as address,
        ):
            connection.settimeout(PATIENCE_S)
            connection.connect(address)
            _send(connection, request.to_bytes())
            _send(connection, metadata)
            reason = _receive(connection, MAX_REASON)
            signed = _receive(connection, signing.MAX_METADATA)
    except OSError as error:
        raise SignerError(
            f"the release signer at {path} does not answer: {error}",
            hint="`wildflower server status` says whether it runs.",
        ) from error
    if reason:
        raise SignerError(reason.decode(errors="replace"))
    return signed


def serve(directory: Path, now: Clock, stop: socket.socket) -> None:
    """Answer requests until `stop` becomes readable.

    The socket appears when requests are answered, and is gone afterwards.

    Raises:
        StartError: Another signer runs in this directory.
        SigningError: The key cannot be used.
        OSError: The socket cannot be made.
    """
    signer = ReleaseSigner(directory, now)
    with _only_one(directory), _listening(directory) as listener, selectors.DefaultSelector() as on:
        on.register(listener, selectors.EVENT_READ)
        on.register(stop, selectors.EVENT_READ)
        while all(key.fileobj is not stop for key, _ in on.select()):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                _answer(connection, signer)


def main(arguments: list[str] | None = None) -> int:
    """Run the signer until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m wildflower.server.signer")
    parser.add_argument("--dir", type=Path, required=True, help="directory of key.pem")
    parser.add_argument("--log-format", type=LogFormat, default=LogFormat.TEXT)
    given = parser.parse_args(arguments)
    configure_logging(given.log_format, verbosity=1)
    with contextlib.closing(_stop_signal()) as stop:
        try:
            serve(given.dir, lambda: datetime.now(UTC), stop)
        except (ServerError, OtaError, OSError) as error:
            log.error("the release signer does not run: %s", error)
            return 1
    return 0


def _answer(connection: socket.socket, signer: ReleaseSigner) -> None:
    """Answer one request; a peer that goes away or sends garbage costs this connection only."""
    try:
        request = _receive(connection, canonical.MAX_DOCUMENT)
        metadata = _receive(connection, signing.MAX_METADATA)
        reason, signed = b"", signer.sign(SignRequest.from_bytes(request), metadata)
    except (SignerError, OtaError) as error:
        log.warning("refused to sign: %s", error)
        reason, signed = str(error).encode()[:MAX_REASON], b""
    except OSError as error:
        log.warning("a request was lost: %s", error)
        return
    with contextlib.suppress(OSError):  # who went away asks again and gets the same bytes
        _send(connection, reason)
        _send(connection, signed)


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(len(data).to_bytes(4, "big") + data)


def _receive(connection: socket.socket, limit: int) -> bytes:
    """Read one frame.

    Raises:
        SignerError: Longer than `limit`.
        OSError: The peer went away.
    """
    length = int.from_bytes(_exactly(connection, 4), "big")
    if length > limit:
        raise Rule.REQUEST.refusal(f"{length} bytes, at most {limit} are read")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(min(count - len(data), 1 << 16))
        if not chunk:
            raise ConnectionResetError(f"the peer went away after {len(data)} of {count} bytes")
        data += chunk
    return bytes(data)


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield an address for a socket, however deep its directory: the kernel takes 107 bytes."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextmanager
def _listening(directory: Path) -> Iterator[socket.socket]:
    """Listen on a socket that only the owner may use; it takes its name when it is ready."""
    path = directory / SOCKET_FILE
    beside = directory / f".{SOCKET_FILE}"
    beside.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        try:
            with _reachable(beside) as address:
                listener.bind(address)
        finally:
            os.umask(before)
        listener.listen()
        beside.replace(path)
        log.info("the release signer listens", extra={"socket": str(path)})
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(
                f"another release signer runs in {directory}", hint="One key, one signer."
            ) from error
        yield


def _stop_signal() -> socket.socket:
    """Return a socket that becomes readable at SIGTERM or SIGINT."""
    stop, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return stop


if __name__ == "__main__":
    sys.exit(main())
