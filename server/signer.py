"""The release signer: a process that signs models for `models/auto`, and nothing else.

    python -m wildflower.server.signer --dir SERVER/signer

It has its own key, which the server cannot read where the host allows that, and its own opinion:
it re-checks that the gates passed on this very artifact, and that the round it comes from made this
very model, before it adds the one manifest to the role's metadata. It imports no store and keeps
no state; what it may not sign, it refuses by name.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from wildflower.logs import LogFormat, configure_logging
from wildflower.ota.build.gates import GateReport
from wildflower.ota.errors import OtaError
from wildflower.ota.release import signing
from wildflower.ota.release.audit import FILE as TRAIL
from wildflower.ota.release.audit import AuditedSigner, Trail
from wildflower.ota.release.keys import load_key
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import Provenance, sign_statement
from wildflower.server.errors import SignerError, StartError
from wildflower.server.signer_wire import Signed, SignRequest, receive, send

log = logging.getLogger("wildflower.server.signer")  # as a program its __name__ is "__main__"

SOCKET: Final = "signer.sock"
KEY: Final = "key.pem"
LIFETIME: Final = timedelta(days=365)
PATIENCE_S: Final = 10.0  # for one request, from the first byte to the last


def approve(request: SignRequest) -> Release:
    """Return the release that a request may have signed.

    Raises:
        SignerError: It may not; says what was found and what was expected.
        FormatError: A part of the request is not the document it should be.
    """
    release = Release.from_bytes(request.manifest.encode())
    report = GateReport.from_bytes(request.gate_report.encode())
    record = RoundRecord.from_bytes(request.round_record.encode())
    lineage, artifact = release.lineage, release.artifact.digest
    claims = (
        ("gate report", lineage.gate_report, report.digest),
        ("artifact of the gate report", artifact, report.artifact),
        ("model of the gate report", lineage.model, report.model),
        ("device class of the gate report", release.requires.device_class, report.device_class),
        ("model of the round", lineage.model, record.model),
        ("training of the round", lineage.training, record.training),
        ("number of the round", str(lineage.round_number), str(record.number)),
    )
    for what, expected, found in claims:
        if expected != found:
            raise SignerError(f"{what}: the manifest says {expected[:12]}, found {found[:12]}")
    if not report.passed:
        raise SignerError(f"the gates did not pass: {'; '.join(report.failures)}")
    return release


def sign(request: SignRequest, signer: Signer, now: datetime) -> Signed:
    """Return `models/auto` metadata with the request's release and its provenance in it.

    Raises:
        SignerError: The release may not be signed.
        OtaError: A document cannot be read, or the current metadata is not the signer's own.
    """
    release = approve(request)
    current = request.metadata.encode()
    signing.check_signed_by(current, signer.public_key)
    envelope = sign_statement(_provenance(release, request), [signer])
    metadata = signing.add_release(
        current,
        target_path("auto", release.target_group, release.order),
        release.to_bytes(),
        [signer],
        expires=now + LIFETIME,
        provenance=envelope,
    )
    return Signed(metadata, envelope)


def _provenance(release: Release, request: SignRequest) -> Provenance:
    record = RoundRecord.from_bytes(request.round_record.encode())
    report = GateReport.from_bytes(request.gate_report.encode())
    return Provenance.of(release, record, report.toolchain, record.privacy)


def answer(data: bytes, signer: Signer, now: datetime) -> bytes:
    """Return the answer to one request, as it is sent."""
    try:
        request = SignRequest.from_json(data)
        signed = sign(request, signer, now)
    except (SignerError, OtaError) as error:
        log.warning("refused to sign: %s", error)
        return json.dumps({"error": str(error), "hint": error.hint}).encode()
    release = Release.from_bytes(request.manifest.encode())
    log.info(
        "release signed",
        extra={
            "release": release.digest,
            "group": release.target_group,
            "order": release.order,
            "key": signer.public_key.keyid,
        },
    )
    told = {"metadata": signed.metadata.decode(), "provenance": signed.provenance.decode()}
    return json.dumps(told).encode()


def serve(directory: Path, stopping: threading.Event) -> None:
    """Answer requests, one at a time, until told to stop.

    Raises:
        StartError: A signer already runs in the directory.
        SigningError: The key cannot be loaded.
    """
    trail = Trail(directory / TRAIL)
    signer = AuditedSigner(load_key(directory / KEY), trail, lambda: datetime.now(UTC))
    with _alone(directory), _listening(directory / SOCKET) as listener:
        log.info("release signer ready", extra={"key": signer.public_key.keyid})
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                _serve_one(connection, signer)


def _serve_one(connection: socket.socket, signer: Signer) -> None:
    connection.settimeout(PATIENCE_S)
    try:
        if request := receive(connection):
            send(connection, answer(request, signer, datetime.now(UTC)))
    except (OSError, OtaError) as error:
        log.warning("request dropped: %s", error)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"a release signer already runs in {directory}", hint="One is enough."
            ) from error
        yield


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen; the socket takes its name when it answers and only its owner may ask."""
    beside = path.with_name(f".{path.name}")
    beside.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(beside))
        beside.chmod(0o600)
        listener.listen()
        beside.replace(path)
        listener.settimeout(0.5)  # between two looks at whether to stop
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def main() -> None:
    """Run the signer until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Run the release signer.")
    parser.add_argument("--dir", type=Path, required=True, help="where its key and socket are")
    options = parser.parse_args()
    configure_logging(LogFormat.TEXT, verbosity=1)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    serve(options.dir, stopping)


if __name__ == "__main__":
    main()
