"""What a server and a helper say to each other over HTTPS, and its limits.

    GET  /v1/card     -> the helper's card, JSON
    POST /v1/check    a SumRequest of some devices    -> 204
    POST /v1/sum      a SumRequest of all devices     -> residues, little-endian

Requests are the stored form of `one_shot_messages`; a refusal is
`{"error": {"type", "message", "hint"}}` with a status from 400 on.
"""

import json
from typing import Any, Final

from wildflower.server.errors import ServerError
from wildflower.strategies.errors import ProtocolError, StrategyError
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.one_shot_messages import SumRequest

CARD: Final = "/v1/card"
CHECK: Final = "/v1/check"
SUM: Final = "/v1/sum"
MAX_REQUEST: Final = 32 << 20  # bytes; ten thousand devices with two helpers have 17 MB
MAX_TOLD: Final = 8192  # bytes of a card or of an error


def read_request(body: bytes) -> SumRequest:
    """Parse the body of a request.

    Raises:
        SecAggError: Not a request for a sum.
    """
    return SumRequest.from_fields(flat.from_bytes(body))


def write_request(request: SumRequest) -> bytes:
    """Return the body of a request."""
    return flat.to_bytes(request.to_fields())


def write_error(error: StrategyError | ServerError) -> dict[str, Any]:
    """Return what a refusal's body holds."""
    return {"error": {"type": type(error).__name__, "message": str(error), "hint": error.hint}}


def read_error(body: bytes) -> ProtocolError:
    """Return the error that a refusal's body tells of, whatever it holds."""
    try:
        told = json.loads(body)["error"]
        return ProtocolError(str(told["message"]), hint=str(told["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ProtocolError(f"it answered {body[:200]!r}")
