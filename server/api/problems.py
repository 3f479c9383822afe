"""Errors as problem details (RFC 9457): one form, whatever went wrong.

{"type": "urn:wildflower:NotFoundError", "title": ..., "status": 404, "detail": ..., "hint": ...}
"""

import logging
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wildflower.ota.errors import OtaError, RolloutError
from wildflower.server.errors import (
    ConflictError,
    NotFoundError,
    ServerError,
    SettingsError,
    StoreError,
)
from wildflower.strategies.errors import StrategyError

log = logging.getLogger(__name__)

STATUS: Final[tuple[tuple[type[Exception], HTTPStatus], ...]] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (RolloutError, HTTPStatus.CONFLICT),
    (SettingsError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ServerError, HTTPStatus.BAD_REQUEST),
    (OtaError, HTTPStatus.BAD_REQUEST),
    (StrategyError, HTTPStatus.BAD_REQUEST),
)
"""What an error of ours becomes; the first class that fits."""


def problem(
    status: int, detail: str, *, kind: str = "about:blank", hint: str = "", **headers: str
) -> JSONResponse:
    """Return a response of type application/problem+json."""
    body = {
        "type": kind,
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "hint": hint,
    }
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body, status, headers=told, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Have an application answer every error as a problem."""

    @app.exception_handler(HTTPException)
    def of_http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), **dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def of_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        told = [
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
        ]
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(told[:5]))

    @app.exception_handler(ServerError)
    @app.exception_handler(OtaError)
    @app.exception_handler(StrategyError)
    def of_ours(_: Request, error: ServerError | OtaError | StrategyError) -> JSONResponse:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        kind = f"urn:wildflower:{type(error).__name__}"
        return problem(status, str(error), kind=kind, hint=error.hint)

    @app.exception_handler(Exception)
    def of_any(_: Request, error: Exception) -> JSONResponse:
        log.error("request failed: %s", type(error).__name__)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server met an unexpected error")
