"""Trainings and rounds, models and what was built from them."""

from fastapi import APIRouter, Query

from wildflower.ota.build.gates import GateReport
from wildflower.server.api.desk import MAX_PAGE, Desk, DeskHere, find, page
from wildflower.server.api.requests import BuildRequest, TrainingRequest
from wildflower.server.api.views import (
    ArtifactView,
    GateLine,
    GateView,
    LineView,
    ModelView,
    Page,
    ReleaseView,
    RoundView,
    TrainingView,
)
from wildflower.server.errors import NotFoundError
from wildflower.server.records import Artifact, Line, Model, ReleaseRecord, Round, Training

router = APIRouter()

RECORDED = "recorded"


@router.post("/trainings", status_code=201)
def post_training(desk: DeskHere, asked: TrainingRequest) -> TrainingView:
    """Ask for a training of this server's app."""
    training = desk.rounds.plan(asked.rounds, dict(asked.settings))
    return training_view(desk, training)


@router.get("/trainings")
def get_trainings(
    desk: DeskHere, cursor: str = "", limit: int = Query(default=200, ge=1, le=MAX_PAGE)
) -> Page[TrainingView]:
    """Return trainings."""
    return page(desk.store.all(Training), cursor, limit, lambda one: training_view(desk, one))


@router.get("/trainings/{training}")
def get_training(desk: DeskHere, training: str) -> TrainingView:
    """Return one training, or the "latest"."""
    return training_view(desk, find(desk.store, Training, training))


@router.get("/rounds")
def get_rounds(
    desk: DeskHere,
    training: str = "",
    cursor: str = "",
    limit: int = Query(default=200, ge=1, le=MAX_PAGE),
) -> Page[RoundView]:
    """Return the rounds of a training, or of all."""
    if training:
        found = find(desk.store, Training, training)
        rounds = desk.store.all(Round, training_id=found.training_id)
    else:
        rounds = desk.store.all(Round)
    return page(rounds, cursor, limit, RoundView.of)


@router.get("/models")
def get_models(
    desk: DeskHere, cursor: str = "", limit: int = Query(default=200, ge=1, le=MAX_PAGE)
) -> Page[ModelView]:
    """Return global models."""
    return page(desk.store.all(Model), cursor, limit, ModelView.of)


@router.post("/models/{model}/build", status_code=202)
def post_build(desk: DeskHere, model: str, _: BuildRequest) -> LineView:
    """Send a model, or the "latest", into the release line."""
    return line_view(desk, desk.line.submit(find(desk.store, Model, model).digest))


@router.get("/models/{model}/line")
def get_line(desk: DeskHere, model: str) -> LineView:
    """Return how far a model has come in the release line."""
    digest = find(desk.store, Model, model).digest
    line = desk.store.get(Line, digest)
    if line is None:
        raise NotFoundError(
            f"model {digest} is not in the release line", hint=f"wildflower build {digest[:12]}"
        )
    return line_view(desk, line)


@router.get("/artifacts")
def get_artifacts(
    desk: DeskHere,
    model: str = "",
    cursor: str = "",
    limit: int = Query(default=200, ge=1, le=MAX_PAGE),
) -> Page[ArtifactView]:
    """Return the artifacts of a model, or all."""
    if model:
        artifacts = desk.store.all(Artifact, model=find(desk.store, Model, model).digest)
    else:
        artifacts = desk.store.all(Artifact)
    return page(artifacts, cursor, limit, ArtifactView.of)


@router.get("/gates/{digest}")
def get_gate(desk: DeskHere, digest: str) -> GateView:
    """Return a gate report, by its digest or its artifact's."""
    of_report = desk.store.all(Artifact, gate_report=digest)
    artifact = of_report[0] if of_report else find(desk.store, Artifact, digest)
    report = GateReport.from_bytes(desk.files.read(artifact.gate_report))
    return GateView(
        gate_report=artifact.gate_report,
        artifact=report.artifact,
        model=report.model,
        device_class=report.device_class,
        recipe=report.recipe,
        passed=report.passed,
        results=[
            GateLine(one.gate, one.value, one.bound, one.budget, one.verdict, one.kind, one.n)
            for one in report.results
        ],
        toolchain=dict(report.toolchain),
    )


def training_view(desk: Desk, training: Training) -> TrainingView:
    """Return what is told of a training."""
    rounds = desk.store.all(Round, training_id=training.training_id, phase=RECORDED)
    latest = max(rounds, key=lambda one: one.number, default=None)
    return TrainingView(
        training_id=training.training_id,
        app=training.app,
        phase=training.phase,
        rounds=training.rounds,
        recorded=len(rounds),
        secure=training.secure,
        model=latest.model if latest else "",
        metrics=dict(latest.metrics) if latest else {},
        reason=training.reason,
        created_at=training.created_at,
        finished_at=training.finished_at,
    )


def line_view(desk: Desk, line: Line) -> LineView:
    """Return what is told of a model's line."""
    return LineView(
        model=line.model,
        phase=line.phase,
        reason=line.reason,
        artifacts=[ArtifactView.of(one) for one in desk.store.all(Artifact, model=line.model)],
        releases=[ReleaseView.of(one) for one in desk.store.all(ReleaseRecord, model=line.model)],
    )
