"""Devices, join tokens, how the fleet does, and where things come from."""

from dataclasses import asdict

from fastapi import APIRouter, Query

from wildflower.ota.device.profile import SelfReport
from wildflower.ota.errors import FormatError
from wildflower.server import ingest
from wildflower.server import trace as tracing
from wildflower.server.api.desk import MAX_PAGE, Desk, DeskHere, page
from wildflower.server.api.requests import InviteRequest
from wildflower.server.api.views import DeviceView, InvitationView, Page, StatusView, SummaryView
from wildflower.server.records import Device, Report
from wildflower.server.trace import Trace

router = APIRouter()


@router.get("/status")
def get_status(desk: DeskHere) -> StatusView:
    """Return how the server is."""
    return desk.status()


@router.post("/tokens", status_code=201)
def post_token(desk: DeskHere, asked: InviteRequest) -> InvitationView:
    """Make a join token; it is shown once."""
    return desk.invite(asked.ring, asked.uses, asked.expires_s)


@router.get("/devices")
def get_devices(
    desk: DeskHere, cursor: str = "", limit: int = Query(default=200, ge=1, le=MAX_PAGE)
) -> Page[DeviceView]:
    """Return enrolled devices."""
    return page(desk.store.all(Device), cursor, limit, lambda device: device_view(desk, device))


@router.get("/summaries")
def get_summaries(desk: DeskHere) -> Page[SummaryView]:
    """Return how each artifact does, merged over all devices that told."""
    return Page([SummaryView(**asdict(one)) for one in ingest.fleet_metrics(desk.store)])


@router.get("/trace/{asked:path}")
def get_trace(desk: DeskHere, asked: str) -> Trace:
    """Follow something through the loop."""
    return tracing.trace(desk.store, asked)


def holds_of(self_report: bytes) -> str:
    """Return who keeps new releases out on a device, as it said last; "" for nobody."""
    try:
        return "; ".join(SelfReport.from_bytes(self_report).holds)
    except FormatError:
        return ""


def device_view(desk: Desk, device: Device) -> DeviceView:
    """Return what is told of a device."""
    reports = desk.store.all(Report, device_id=device.device_id)
    latest = max(reports, key=lambda report: report.sequence, default=None)
    return DeviceView(
        name=device.name,
        device_id=device.device_id,
        device_class=device.device_class,
        ring=device.ring,
        connected=desk.presence.connected(device.device_id),
        running=device.running,
        holds=holds_of(device.self_report),
        last_outcome=latest.outcome if latest else "",
        last_reason=latest.reason if latest else "",
        last_seen=device.last_seen,
        enrolled_at=device.enrolled_at,
        revoked=device.revoked,
    )
