"""What a device asks releases of: anything that answers GET as HTTP does.

A network (`ota.release.connection`) and a file that was carried here (`client.parcel_line`) answer
the same questions, and go through the same code. Neither is trusted.

Errors are httpx's, whose words everybody knows who reads from here.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, Self

import httpx


class LateError(httpx.ReadTimeout):
    """The headers of an answer did not come in time."""


class Answer(Protocol):
    """An answer, whose body is read as it is wanted."""

    @property
    def url(self) -> str:
        """What was asked for."""
        ...

    @property
    def status_code(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, in any case."""
        ...

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the body as it comes.

        Raises:
            httpx.HTTPError: It could not be had to its end.
        """
        ...


class Line(Protocol):
    """What asks, one request at a time."""

    def __enter__(self) -> Self:
        """Return it."""
        ...

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        ...

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Answer]:
        """Ask for a URL; the answer is there when its headers are.

        Raises:
            httpx.HTTPError: It could not be had; `LateError` if the headers did not come in time.
            httpx.InvalidURL: Not an address.
        """
        ...
