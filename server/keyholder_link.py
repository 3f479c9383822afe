"""The server's way to a key holder: `strategies.he_round.KeyHolder` over HTTPS.

    link = KeyHolderLink("https://keys.example:8446", digest, token)
    he_round(..., key_holder=link)

The key holder's key is the one whose digest was configured, or there is no link (`server.pinned`).
A question that is not answered is asked again for a while: both may be repeated.
"""

import json
import threading
import time
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt

from wildflower.server.errors import PinError
from wildflower.server.keyholder_http import KEYS, SUMS
from wildflower.server.pinned import pinned_context
from wildflower.strategies.errors import KeyHolderError, ProtocolError
from wildflower.strategies.he.messages import MAX_CONTEXT, MAX_HEADER, RunKey, SumRequest

CONNECT_S: Final = 5.0
TIMEOUT_S: Final = 90.0  # of one question; the largest sum takes some seconds
PATIENCE_S: Final = 20.0  # in which a key holder that does not answer may come back
PAUSE_S: Final = 0.5
MAX_KEY: Final = 2 * MAX_CONTEXT + MAX_HEADER  # bytes; hex digits
MAX_TOLD: Final = 8192  # bytes of a refusal


class KeyHolderLink:
    """A key holder as the server reaches it; see `strategies.he_round.KeyHolder`.

    Args:
        url: Where it listens, `https://host:port`.
        digest: SHA-256 of its key, hex: what `wildflower keyholder init` printed.
        token: What it knows the server by.
        patience_s: In which a key holder that does not answer may come back, in seconds.
    """

    def __init__(
        self, url: str, digest: str, token: str, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._url, self._digest, self._patience_s = url, digest, patience_s
        self._authorization = {"authorization": f"Bearer {token}"}
        self._http: httpx.Client | None = None

    def key(self, run: str) -> RunKey:
        """Return a run's public key.

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
        """
        try:
            return RunKey.from_bytes(self._ask(KEYS, json.dumps({"run": run}).encode(), MAX_KEY))
        except ProtocolError as error:
            raise KeyHolderError(f"{self._name} sends no key: {error}") from error

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.uint16]:
        """Return the residues of a sum modulo 2**16, shape (request.length,).

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
            ProtocolError: The ciphertexts hold no such sum.
        """
        found = self._ask(SUMS, request.to_bytes(), 2 * request.length)
        if len(found) != 2 * request.length:
            raise KeyHolderError(
                f"{self._name} sends {len(found)} bytes, expected {2 * request.length}"
            )
        residues: npt.NDArray[np.uint16] = np.frombuffer(found, "<u2").astype(np.uint16, copy=False)
        return residues

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _ask(self, path: str, body: bytes, longest: int) -> bytes:
        """Ask until there is an answer, or patience is over."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                self._http = self._http or self._connect()
                status, found = _call(self._http, path, body, longest)
                return self._read(status, found)
            except PinError as error:
                raise KeyHolderError(f"{self._name}: {error}", hint=error.hint) from error
            except (httpx.TransportError, OSError) as error:
                self.close()
                if time.monotonic() > end:
                    raise KeyHolderError(
                        f"{self._name} does not answer: {error}",
                        hint="Start it: wildflower keyholder run --dir DIR",
                    ) from error
                threading.Event().wait(PAUSE_S)

    def _connect(self) -> httpx.Client:
        context = pinned_context(self._url, self._digest, timeout_s=CONNECT_S)
        return httpx.Client(
            base_url=self._url,
            verify=context,
            headers=self._authorization,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=False,
        )

    @property
    def _name(self) -> str:
        return f"key holder {self._digest[:12]} at {self._url}"

    def _read(self, status: int, found: bytes) -> bytes:
        """Return an answer.

        Raises:
            KeyHolderError: It is a refusal, or none of a key holder.
            ProtocolError: The key holder says that the ciphertexts hold no sum.
        """
        if status == httpx.codes.OK:
            return found
        try:
            told = json.loads(found)["error"]
            kind, message, hint = (str(told[name]) for name in ("type", "message", "hint"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KeyHolderError(f"{self._name} answers with status {status}") from error
        refusal = ProtocolError if kind == ProtocolError.__name__ else KeyHolderError
        raise refusal(f"{self._name} refuses: {message}", hint=hint)


def _call(http: httpx.Client, path: str, body: bytes, longest: int) -> tuple[int, bytes]:
    """Return an answer's status and body, of which no more is read than is allowed.

    Raises:
        KeyHolderError: The answer is longer.
    """
    most, found = max(longest, MAX_TOLD), bytearray()
    with http.stream("POST", path, content=body) as response:
        for piece in response.iter_raw():
            found += piece
            if len(found) > most:
                raise KeyHolderError(f"an answer of more than {most} bytes")
    return response.status_code, bytes(found)
