"""An ASGI application as a transport of httpx: requests without a network, answers in one piece."""

import asyncio
from typing import Any

import httpx


class AsgiTransport(httpx.BaseTransport):
    """Carries each request to an application, in an event loop of its own.

    Args:
        app: The application.
        shows_errors: Whether what the application raises is raised here, too.
    """

    def __init__(self, app: Any, *, shows_errors: bool = True) -> None:
        self._app, self._shows_errors = app, shows_errors

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._carry(request))

    async def _carry(self, request: httpx.Request) -> httpx.Response:
        inner = httpx.ASGITransport(self._app, raise_app_exceptions=self._shows_errors)
        body = httpx.Request(
            request.method, request.url, headers=request.headers, content=request.read()
        )
        response = await inner.handle_async_request(body)
        data = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=data)
