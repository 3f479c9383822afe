"""The server's way to a helper: `strategies.one_shot_round.HelperLink` over HTTPS.

    with HelperLink.connect("https://helper.example:8450", digest) as link:
        one_shot_round(..., helpers=[link])

The helper's key is the one whose digest was configured, or there is no link. Connect before a round
starts: then a helper that is gone is known before a device has trained.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

import httpx
import numpy as np

from wildflower.server import helper_wire
from wildflower.server.errors import PinError
from wildflower.server.pinned import pinned_context
from wildflower.strategies.errors import HelperError, ProtocolError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.messages import Masked
from wildflower.strategies.secagg.one_shot_keys import check_card
from wildflower.strategies.secagg.one_shot_messages import HelperCard, SumRequest

T = TypeVar("T")

TIMEOUT_S: Final = 120.0  # for one answer; ten thousand masks of a large model take a while
CONNECT_S: Final = 5.0
PAUSE_S: Final = 0.25  # between two attempts
PATIENCE_S: Final = 15.0
"""How long a helper that does not answer, or cannot store, is asked again, in seconds."""


@dataclass(frozen=True, slots=True)
class HelperLink:
    """A connection to one helper.

    Attributes:
        url: Where it listens.
        card: Its card, checked.
        patience_s: How long it is asked again while it does not answer, in seconds.
    """

    url: str
    card: HelperCard
    patience_s: float
    _client: httpx.Client = field(repr=False)

    @classmethod
    def connect(cls, url: str, digest: str, *, patience_s: float = PATIENCE_S) -> Self:
        """Connect to a helper and read its card.

        Args:
            url: Where it listens, `https://host:port`.
            digest: SHA-256 of its identity, hex: what `wildflower helper init` printed.
            patience_s: How long it is asked again while it does not answer, in seconds.

        Raises:
            HelperError: Nobody answers, or another key does.
        """
        name = f"helper {digest[:12]} at {url}"
        try:
            context = _repeated(
                lambda: pinned_context(url, digest, timeout_s=CONNECT_S), patience_s
            )
            client = httpx.Client(
                base_url=url,
                verify=context,
                timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
                trust_env=False,
            )
        except PinError as error:
            raise HelperError(f"{name}: {error}", hint=error.hint) from error
        except OSError as error:
            raise _gone(name, error) from error
        try:
            return cls(url, _read_card(client, name, digest, patience_s), patience_s, client)
        except HelperError:
            client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def check(self, request: SumRequest) -> None:
        """Have the helper look at a device's seeds; see the protocol."""
        self._post(helper_wire.CHECK, request, 0)

    def sum(self, request: SumRequest) -> Residues:
        """Return the sum of the masks of a request's devices; see the protocol."""
        encoding = request.params.encoding
        expected = encoding.length * encoding.dtype.itemsize
        found = self._post(helper_wire.SUM, request, expected)
        if len(found) != expected:
            raise HelperError(f"{self._name} answers {len(found)} bytes, expected {expected}")
        return np.array(Masked(request.params.session, found).vector(encoding.dtype))

    @property
    def _name(self) -> str:
        return f"helper {self.card.digest[:12]} at {self.url}"

    def _post(self, path: str, request: SumRequest, longest: int) -> bytes:
        body = helper_wire.write_request(request)
        try:
            status, found = _repeated(
                lambda: _call(self._client, "POST", path, body, longest), self.patience_s
            )
        except (httpx.HTTPError, OSError) as error:
            raise _gone(self._name, error) from error
        if status < 300:
            return found
        told = helper_wire.read_error(found)
        raise ProtocolError(f"{self._name} refuses: {told}", hint=told.hint)


class _BusyError(OSError):
    """The helper answered that it cannot answer now."""


def _call(
    client: httpx.Client, method: str, path: str, body: bytes, longest: int
) -> tuple[int, bytes]:
    """Return an answer's status and body, of which no more is read than is expected."""
    with client.stream(method, path, content=body) as answer:
        most = longest if answer.is_success else helper_wire.MAX_TOLD
        found = bytearray()
        for piece in answer.iter_bytes():
            found += piece
            if len(found) > most:
                raise _BusyError(f"more than the {most} bytes that were expected")
        if answer.status_code >= 500:
            raise _BusyError(str(helper_wire.read_error(bytes(found))))
        return answer.status_code, bytes(found)


def _read_card(client: httpx.Client, name: str, digest: str, patience_s: float) -> HelperCard:
    try:
        _, found = _repeated(
            lambda: _call(client, "GET", helper_wire.CARD, b"", helper_wire.MAX_TOLD), patience_s
        )
        card = HelperCard.from_fields(flat.from_bytes(found))
        check_card(card)
    except (httpx.HTTPError, OSError) as error:
        raise _gone(name, error) from error
    except ProtocolError as error:
        raise HelperError(f"{name} shows no card: {error}") from error
    if card.digest != digest:
        raise HelperError(f"{name} shows the card of {card.digest[:12]}")
    return card


def _repeated(act: Callable[[], T], patience_s: float) -> T:
    """Act, and act again while it fails for want of an answer."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except (httpx.TransportError, OSError):
            if time.monotonic() > end:
                raise
            threading.Event().wait(PAUSE_S)


def _gone(name: str, error: Exception) -> HelperError:
    return HelperError(
        f"{name} does not answer: {error or type(error).__name__}",
        hint="Is it running? wildflower helper run --dir DIR --listen HOST:PORT",
    )
