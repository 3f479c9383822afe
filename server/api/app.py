"""The application of the operator API.

Everything below /api/v1 wants `Authorization: Bearer <token>`; /healthz tells anybody whether the
server is up, and nothing else. The schema is at /openapi.json.
"""

import hmac

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from wildflower import __version__
from wildflower.server.api import events, fleet, learning, privacy, problems, releases
from wildflower.server.api.desk import Desk, DeskHere

PREFIX = "/api/v1"


def create_app(desk: Desk) -> FastAPI:
    """Return the application that serves a desk."""
    app = FastAPI(
        title="Wildflower",
        version=__version__,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.desk = desk
    problems.install(app)
    for part in (fleet, learning, releases, privacy, events):
        app.include_router(part.router, prefix=PREFIX, dependencies=[Depends(require_token)])
    app.add_api_route("/healthz", healthz, include_in_schema=False)
    return app


def require_token(request: Request, desk: DeskHere) -> None:
    """Let in who shows the operator's token.

    Raises:
        HTTPException: 401, without it.
    """
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(shown.strip().encode(), desk.token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise HTTPException(
            401, "the operator token is missing or wrong", {"WWW-Authenticate": "Bearer"}
        )


def healthz(desk: DeskHere) -> JSONResponse:
    """Tell whether all parts of the server are up."""
    ready = desk.status().ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)
