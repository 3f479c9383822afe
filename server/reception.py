"""What connected devices tell the server and are told: the device channel without its transport.

Who speaks is the key of the client certificate and nothing that a message says. A report is
believed for its own signature, which anybody can check later, and not for the connection it came
through. Everything may come twice: it is stored once.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from wildflower.ota.device.profile import SelfReport
from wildflower.ota.device.report import DeviceReport
from wildflower.ota.errors import FormatError
from wildflower.server import ingest
from wildflower.server.ca import device_id_of
from wildflower.server.presence import Hint, HintKind
from wildflower.server.records import Device, Event, Report
from wildflower.server.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckIn:
    """What a device is told when it checks in.

    Attributes:
        training: Id of the training it is invited to, "" for none.
        next_s: Seconds until it should come again.
        now: The server's clock, UTC.
    """

    training: str
    next_s: int
    now: datetime


class Reception:
    """Takes what devices bring. Safe to use from several threads.

    Args:
        store: Where it is remembered.
        invited: Returns the id of the training a device is invited to, "" for none.
        now: The clock, UTC.
        next_s: Seconds until the next check-in, as suggested to devices.
    """

    def __init__(
        self,
        store: Store,
        *,
        invited: Callable[[str], str],
        now: Callable[[], datetime],
        next_s: int = 30,
    ) -> None:
        self._store = store
        self._invited = invited
        self._now = now
        self._next_s = next_s
        self._reporting = threading.Lock()
        self._newest: dict[str, int] = {}  # sequence of each device's newest report, once asked

    def identify(self, certificate_pem: bytes) -> Device:
        """Return the device that shows a certificate; TLS has checked its chain.

        Raises:
            PermissionError: It is unknown or revoked.
        """
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise PermissionError("the client certificate has no EC key")
        device = self._store.get(Device, device_id_of(key))
        if device is None or device.revoked:
            raise PermissionError("the device is unknown or revoked")
        return device

    def came(self, device_id: str, epoch: int) -> None:
        """Remember that a device has connected, for the `epoch`-th time."""
        self._saw(device_id, "device.connected", {"epoch": epoch})

    def went(self, device_id: str) -> None:
        """Remember that a device's last stream has ended."""
        self._saw(device_id, "device.disconnected", {})

    def greet(self, device: Device) -> list[Hint]:
        """Return what a device is told when it connects: what it may have missed until then."""
        training = self._invited(device.device_id)
        missed = [Hint(HintKind.TRAINING, training)] if training else []
        return [*missed, Hint(HintKind.RELEASE)]

    def report(self, device: Device, document: bytes, signature: bytes) -> int:
        """Store a signed outcome, once; return its sequence.

        Args:
            device: Who sends it.
            document: Canonical bytes of an `ota.device.report.DeviceReport`.
            signature: The device's, ECDSA P-256 over SHA-256, DER.

        Raises:
            FormatError: Not this device's report, or not signed by its key.
        """
        told = _verified(device, document, signature)
        report = Report(
            report_id=f"{device.device_id}/{told.sequence}",
            device_id=device.device_id,
            sequence=told.sequence,
            outcome=told.outcome.value,
            rollout=_clean(told.rollout),
            release=_clean(told.release),
            running=_clean(told.running),
            reason=_clean(told.reason),
            document=document,
            signature=signature,
            received_at=self._now(),
        )
        with self._reporting:  # or two copies of a report at once would both be new
            if self._store.get(Report, report.report_id) is None:
                self._remember(report)
        log.info("device report", extra={"device": device.device_id, "outcome": report.outcome})
        return report.sequence

    def upload(
        self, device: Device, stream: bytes, summaries: Sequence[tuple[int, bytes]]
    ) -> ingest.Taken:
        """Store monitoring summaries, each once.

        Raises:
            FormatError: The upload breaks its own rules.
        """
        return ingest.take(self._store, device.device_id, stream, summaries, self._now())

    def check_in(self, device: Device, self_report: bytes) -> CheckIn:
        """Remember what a device says of itself; tell it what a hint would have.

        Raises:
            FormatError: The self-report cannot be read.
        """
        report = SelfReport.from_bytes(self_report)
        now = self._now()
        self._store.change(Device, device.device_id, self_report=report.to_bytes(), last_seen=now)
        return CheckIn(self._invited(device.device_id), self._next_s, now)

    def _saw(self, device_id: str, kind: str, fields: dict[str, int]) -> None:
        now = self._now()
        happened = Event(0, kind, device_id, fields, now)
        self._store.change(Device, device_id, events=[happened], last_seen=now)

    def _remember(self, report: Report) -> None:
        told = {
            "outcome": report.outcome,
            "rollout": report.rollout,
            "release": report.release,
            "running": report.running,
            "reason": report.reason,
        }
        happened = Event(0, "device.report", report.device_id, told, report.received_at)
        fields: dict[str, object] = {"last_seen": report.received_at}
        newest = self._newest_of(report.device_id)
        if report.sequence > newest:
            fields["running"] = report.running  # an old report that comes late changes nothing
        self._store.change(Device, report.device_id, report, events=[happened], **fields)
        self._newest[report.device_id] = max(newest, report.sequence)

    def _newest_of(self, device_id: str) -> int:
        """Return the sequence of a device's newest report; the store is asked once per device."""
        if device_id not in self._newest:
            known = self._store.all(Report, device_id=device_id)
            return max((report.sequence for report in known), default=0)
        return self._newest[device_id]


def has_signed(device: Device, data: bytes, signature: bytes) -> bool:
    """Whether a device's key made a signature: ECDSA P-256 over SHA-256, DER."""
    key = load_pem_public_key(device.public_key.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  enrolment takes no other
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _verified(device: Device, document: bytes, signature: bytes) -> DeviceReport:
    """Return a report whose signature is the device's."""
    report = DeviceReport.from_bytes(document)
    if report.device_id != device.device_id:
        raise FormatError(
            f"a report of device {report.device_id[:12]}, sent by {device.device_id[:12]}"
        )
    if report.sequence < 1:
        raise FormatError(f"reports count from 1, found {report.sequence}")
    if not has_signed(device, document, signature):
        raise FormatError("the report is not signed by the device's key")
    return report


def _clean(text: str) -> str:
    """Return text from outside without control characters; PostgreSQL's texts hold no NUL."""
    return "".join(c if c.isprintable() else " " for c in text)
