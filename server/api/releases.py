"""Releases, rollouts, and the files and metadata that offline signing needs."""

from typing import Final

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from wildflower.ota.release.manifest import Release
from wildflower.ota.rollout import policy
from wildflower.ota.rollout.state import from_bytes
from wildflower.server.api.desk import MAX_PAGE, Desk, DeskHere, find, page
from wildflower.server.api.requests import AbortRequest, ReleaseRequest, RolloutRequest
from wildflower.server.api.views import BlobView, GroupView, Page, ReleaseView, RolloutView
from wildflower.server.errors import NotFoundError
from wildflower.server.line import release_record
from wildflower.server.records import ReleaseRecord, Rollout

router = APIRouter()

APPROVED: Final = "approved"
MAX_BLOB: Final = 512 << 20  # bytes that one request may bring; it is held in memory once


@router.get("/releases")
def get_releases(
    desk: DeskHere, cursor: str = "", limit: int = Query(default=200, ge=1, le=MAX_PAGE)
) -> Page[ReleaseView]:
    """Return published releases."""
    return page(desk.store.all(ReleaseRecord), cursor, limit, ReleaseView.of)


@router.post("/releases", status_code=201)
def post_release(desk: DeskHere, asked: ReleaseRequest) -> ReleaseView:
    """Publish a release that offline keys have signed."""
    manifest = Release.from_bytes(asked.manifest.encode())
    missing = [entry.name for entry in manifest.files if not desk.files.has(entry.digest)]
    if missing:
        raise NotFoundError(
            f"files of the release are not on this server: {', '.join(missing)}",
            hint="Bring them: wildflower sign … --files DIR",
        )
    path = desk.publisher.approved(asked.metadata.encode(), manifest, asked.statement.encode())
    desk.files.put(manifest.to_bytes())
    record = release_record(manifest, path, APPROVED, desk.bus.now())
    desk.store.put(record)
    return ReleaseView.of(record)


@router.get("/releases/{release}/statement")
def get_statement(desk: DeskHere, release: str) -> Response:
    """Return the signed statement of where a release comes from; nothing if it has none."""
    found = find(desk.store, ReleaseRecord, release)
    return Response(desk.publisher.statement(found.path), media_type="application/json")


@router.get("/rollouts")
def get_rollouts(
    desk: DeskHere, cursor: str = "", limit: int = Query(default=200, ge=1, le=MAX_PAGE)
) -> Page[RolloutView]:
    """Return rollouts."""
    return page(desk.store.all(Rollout), cursor, limit, lambda one: rollout_view(desk, one))


@router.post("/rollouts", status_code=201)
def post_rollout(desk: DeskHere, asked: RolloutRequest) -> RolloutView:
    """Begin a rollout."""
    plan = policy.Plan(
        tuple(
            policy.Stage(permille, asked.min_reports, asked.max_failures, asked.soak_s)
            for permille in asked.stages
        ),
        window_s=asked.window_s,
    )
    return rollout_view(desk, desk.rollouts.create(asked.releases, plan))


@router.get("/rollouts/{rollout}")
def get_rollout(desk: DeskHere, rollout: str) -> RolloutView:
    """Return one rollout, or the "latest"."""
    return rollout_view(desk, find(desk.store, Rollout, rollout))


@router.post("/rollouts/{rollout}/abort")
def post_abort(desk: DeskHere, rollout: str, asked: AbortRequest) -> RolloutView:
    """End a rollout."""
    found = find(desk.store, Rollout, rollout)
    ended = desk.rollouts.abort(found.rollout_id, asked.reason, roll_back=asked.roll_back)
    return rollout_view(desk, ended)


@router.post("/blobs", status_code=201)
async def post_blob(desk: DeskHere, request: Request) -> BlobView:
    """Store the body of the request."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BLOB:
            raise HTTPException(413, f"a file has at most {MAX_BLOB} bytes")
    from starlette.concurrency import run_in_threadpool

    digest = await run_in_threadpool(desk.files.put, bytes(data))
    return BlobView(digest, len(data))


@router.get("/blobs/{digest}")
@router.head("/blobs/{digest}")
def get_blob(desk: DeskHere, digest: str) -> FileResponse:
    """Return a stored file."""
    return FileResponse(desk.files.path(digest), media_type="application/octet-stream")


@router.get("/repository/{role:path}")
def get_repository(desk: DeskHere, role: str) -> Response:
    """Return the current metadata of a TUF role."""
    return Response(desk.publisher.current(role), media_type="application/json")


def rollout_view(desk: Desk, rollout: Rollout) -> RolloutView:
    """Return what is told of a rollout."""
    state = from_bytes(rollout.state)
    return RolloutView(
        rollout_id=rollout.rollout_id,
        phase=rollout.phase,
        stage=state.stage + 1,
        permille=state.demands.permille,
        stages=[stage.permille for stage in state.plan.stages],
        reason=rollout.reason,
        groups=[
            GroupView(
                target_group=one.target_group,
                release=one.release,
                reach=one.reach,
                committed=one.tally.committed,
                failed=one.tally.failed,
                incompatible=one.tally.incompatible,
            )
            for one in desk.rollouts.progress(rollout)
        ],
        created_at=rollout.created_at,
        finished_at=rollout.finished_at,
    )
