"""A bundle as a web server: what asks for URLs finds what a file holds. Nothing in it is trusted.

So a stick goes through the very code that a network goes through: metadata, ranges, limits,
refusals. It answers `GET` alone, with 200, 206, 404 or 416 (RFC 9110, section 14).
"""

import re
from collections.abc import Iterator
from typing import Final

import httpx

from wildflower.ota.errors import FormatError
from wildflower.ota.release.parcel import Parcel

SOURCE: Final = "bundle://carried"
"""Base URL under which a bundle's content is asked for; it names the source in refusals."""
RANGE: Final = re.compile(r"bytes=(\d{1,18})-")


class ParcelTransport(httpx.BaseTransport):
    """Answers requests from a parcel."""

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the entry that the URL's path names, from the byte on that a Range names."""
        name = request.url.path.lstrip("/")
        place = self._parcel.places.get(name)
        if place is None:
            return httpx.Response(404)
        asked = RANGE.fullmatch(request.headers.get("Range", ""))
        if asked is None:
            return httpx.Response(200, stream=_Pieces(self._parcel, name, 0))
        start = int(asked[1])
        if start >= place.length:
            return httpx.Response(416, headers={"Content-Range": f"bytes */{place.length}"})
        told = {"Content-Range": f"bytes {start}-{place.length - 1}/{place.length}"}
        return httpx.Response(206, headers=told, stream=_Pieces(self._parcel, name, start))


class _Pieces(httpx.SyncByteStream):
    def __init__(self, parcel: Parcel, name: str, start: int) -> None:
        self._parcel, self._name, self._start = parcel, name, start

    def __iter__(self) -> Iterator[bytes]:
        """Yield the content; a stick that was pulled out is a connection that was cut."""
        try:
            yield from self._parcel.pieces(self._name, self._start)
        except (OSError, FormatError) as error:
            raise httpx.ReadError(str(error)) from error
