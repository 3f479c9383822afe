"""Events: what has happened, and what happens, as server-sent events (WHATWG HTML, section 9.2).

    id: 17
    event: round.recorded
    data: {"number":17,"kind":"round.recorded","subject":"…","fields":{…},"at":"…"}

A client that reconnects sends the last `id` as `Last-Event-ID` and misses nothing. A comment every
few seconds tells both sides that the connection lives.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from wildflower.server.api.desk import Desk, DeskHere
from wildflower.server.api.views import EventView

router = APIRouter()

HEARTBEAT_S: Final = 15.0
BATCH: Final = 500  # events read at a time
VIEW: Final = TypeAdapter(EventView)


@router.get("/events/log")
def get_log(
    desk: DeskHere, after: int = Query(default=0, ge=0), limit: int = Query(1000, ge=1, le=1000)
) -> list[EventView]:
    """Return what has happened after an event, without waiting."""
    return [EventView.of(event) for event in desk.store.events(after, limit)]


@router.get("/events")
async def follow(
    desk: DeskHere,
    request: Request,
    after: int = Query(default=0, ge=0),
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """Stream events as they happen, beginning with those after `after` or `Last-Event-ID`."""
    start = int(last_event_id) if last_event_id.isdecimal() else after
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _events(desk, request, start), media_type="text/event-stream", headers=headers
    )


async def _events(desk: Desk, request: Request, after: int) -> AsyncIterator[str]:
    with desk.bus.bell() as bell:
        yield ": welcome\n\n"
        while not await request.is_disconnected():
            bell.clear()
            found = await run_in_threadpool(desk.store.events, after, BATCH)
            for event in found:
                after = event.number
                yield to_text(EventView.of(event))
            if len(found) == BATCH:
                continue
            try:
                await asyncio.wait_for(bell.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield ": still here\n\n"
            if desk.bus.closed:
                return


def to_text(event: EventView) -> str:
    """Return an event in its form on the wire."""
    data = VIEW.dump_json(event).decode()
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"
