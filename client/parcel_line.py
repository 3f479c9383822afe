"""A bundle as a web server: what asks for URLs finds what a file holds. Nothing in it is trusted.

So a stick goes through the very code that a network goes through: metadata, ranges, limits,
refusals. It answers with 200, 206, 404 or 416 (RFC 9110, section 14).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote

import httpx

from wildflower.ota.errors import FormatError
from wildflower.ota.release.parcel import Parcel

SOURCE: Final = "bundle://carried"
"""Base URL under which a bundle's content is asked for; it names the source in refusals."""
RANGE: Final = re.compile(r"bytes=(\d{1,18})-")


@dataclass(frozen=True, slots=True)
class Found:
    """What a parcel answers.

    Attributes:
        url: What was asked for.
        status_code: HTTP status.
        headers: What it says of the body.
        pieces: The body.
    """

    url: str
    status_code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Iterable[bytes] = ()

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the body; a stick that was pulled out is a connection that was cut.

        Raises:
            httpx.ReadError: It cannot be read to its end.
        """
        try:
            yield from self.pieces
        except (OSError, FormatError) as error:
            raise httpx.ReadError(str(error)) from error


@dataclass(frozen=True, slots=True)
class ParcelLine:
    """Answers from a parcel.

    Attributes:
        parcel: What is carried.
    """

    parcel: Parcel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Found]:
        """Answer with the entry that the URL's path names, from the byte on that a Range names."""
        name = unquote(url.removeprefix(f"{SOURCE}/"))
        place = self.parcel.places.get(name)
        asked = RANGE.fullmatch(headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if place is None:
            yield Found(url, 404)
        elif asked is None:
            yield Found(url, 200, pieces=self.parcel.pieces(name))
        elif start >= place.length:
            yield Found(url, 416, {"Content-Range": f"bytes */{place.length}"})
        else:
            told = {"Content-Range": f"bytes {start}-{place.length - 1}/{place.length}"}
            yield Found(url, 206, told, self.parcel.pieces(name, start))
