"""The operator API as requests and answers: errors become sentences, streams become values.

What each path means is in `server.cli.remote`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from wildflower.server.api.views import EventView, Page
from wildflower.server.errors import RemoteError

T = TypeVar("T")

TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)  # seconds; a publication waits for its signer
SILENCE_S: Final = 45.0  # three of the server's heartbeats: then the connection is dead


@dataclass(frozen=True, slots=True)
class Rest:
    """Sends requests to one server.

    Attributes:
        url: Its operator API, such as "http://127.0.0.1:8440".
        token: The operator's.
        transport: What carries requests; None for the network.
    """

    url: str
    token: str = field(repr=False)
    transport: httpx.BaseTransport | None = field(default=None, repr=False)

    def get(self, path: str, kind: type[T], **query: Any) -> T:
        """Return what is at a path.

        Raises:
            RemoteError: The server refuses, or cannot be reached.
        """
        return parse(self.request("GET", path, params=query).content, kind)

    def post(self, path: str, kind: type[T], body: Mapping[str, Any]) -> T:
        """Ask for something.

        Raises:
            RemoteError: The server refuses, or cannot be reached.
        """
        return parse(self.request("POST", path, json=dict(body)).content, kind)

    def pages(self, path: str, kind: type[T], **query: str) -> Iterator[T]:
        """Yield every item of a list, page after page.

        Raises:
            RemoteError: The server refuses, or cannot be reached.
        """
        cursor = ""
        while True:
            asked = {**query, "cursor": cursor} if cursor else query
            data = self.request("GET", path, params=asked).content
            page = parse(data, Page[kind])  # type: ignore[valid-type]  # made at run time
            yield from page.items
            cursor = page.next
            if not cursor:
                return

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request below /api/v1.

        Raises:
            RemoteError: The server refuses, or cannot be reached.
        """
        try:
            with self.client() as client:
                response = client.request(method, f"/api/v1/{path}", **options)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from error
        if not response.is_success:
            raise refusal(response)
        return response

    def stream(self, after: int) -> Iterator[EventView | None]:
        """Yield the events of one connection; None for a heartbeat.

        Raises:
            RemoteError: The server refuses.
            httpx.HTTPError: The connection is lost.
        """
        timeout = httpx.Timeout(SILENCE_S, connect=TIMEOUT.connect)
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        path = "/api/v1/events"
        with (
            self.client() as client,
            client.stream("GET", path, headers=headers, timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
                raise refusal(response)
            yield from events_of(response.iter_lines())

    def client(self) -> httpx.Client:
        """Return a client that shows the token."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=TIMEOUT,
            transport=self.transport,
            trust_env=False,  # a proxy has no business between an operator and the token
        )

    def unreachable(self, error: Exception) -> RemoteError:
        """Return the error of a server that does not answer."""
        why = str(error) or type(error).__name__
        return RemoteError(
            f"the server at {self.url} cannot be reached: {why}",
            hint="Is it up? Start it: wildflower server up --dir DIR",
        )


def events_of(lines: Iterator[str]) -> Iterator[EventView | None]:
    """Yield the events of a stream of server-sent events; None for a comment, a heartbeat.

    Raises:
        RemoteError: An event's data are not what they should be.
    """
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line and data:
            yield parse("\n".join(data).encode(), EventView)
            data = []
        elif line.startswith(":"):
            yield None


def parse(data: bytes, kind: type[T]) -> T:
    """Return the value of an answer.

    Raises:
        RemoteError: It is not of this kind.
    """
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise RemoteError(
            f"the server's answer cannot be read: {error.error_count()} fields differ",
            hint="Are the command and the server of the same version?",
        ) from error


def refusal(response: httpx.Response) -> RemoteError:
    """Return the server's problem (RFC 9457) as an error."""
    try:
        problem = response.json()
        detail, hint = str(problem["detail"]), str(problem.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, hint = f"the server answered {response.status_code}", ""
    return RemoteError(detail, hint=hint)
