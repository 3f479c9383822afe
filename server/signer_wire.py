"""What publisher and release signer say to each other over the unix socket, and its limits.

One request a connection: four texts, each behind its length; one answer: the signed metadata and
the signed statement of where the release came from, or why not. Both are length-prefixed JSON,
because metadata may be longer than a document of ours.
"""

import json
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from wildflower.ota.errors import FormatError
from wildflower.server.errors import SignerError

MAX_MESSAGE: Final = 8_000_000  # bytes; metadata of a targets role is at most 5 MB
HEADER: Final = struct.Struct(">I")
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class SignRequest:
    """What the signer is asked to sign, and what it re-checks.

    Attributes:
        manifest: Canonical bytes of the release's manifest, as text.
        gate_report: Canonical bytes of the gates' report on its artifact, as text.
        round_record: Canonical bytes of the record of its round, as text.
        metadata: Current metadata of the role `models/auto`, as text.
    """

    manifest: str
    gate_report: str
    round_record: str
    metadata: str

    @classmethod
    def from_json(cls, data: bytes) -> "SignRequest":
        """Parse a request from outside.

        Raises:
            FormatError: Not a request.
        """
        found = _object(data)
        names = ("manifest", "gate_report", "round_record", "metadata")
        texts = [found.get(name) for name in names]
        if set(found) != set(names) or not all(isinstance(text, str) for text in texts):
            raise FormatError(f"expected the texts {', '.join(names)}, found {sorted(found)}")
        for text in texts:
            _utf8(str(text))
        return cls(*map(str, texts))


@dataclass(frozen=True, slots=True)
class Signed:
    """What the signer has signed.

    Attributes:
        metadata: The role's metadata with the release in it.
        provenance: Where the release came from, a DSSE envelope.
    """

    metadata: bytes
    provenance: bytes


def ask(path: Path, request: SignRequest) -> Signed:
    """Ask the signer; return what it signed.

    Raises:
        SignerError: It refused, or cannot be reached.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            send(connection, json.dumps(asdict(request)).encode())
            answer = _object(receive(connection))
        signed = Signed(*(_utf8(str(answer.get(name, ""))) for name in ("metadata", "provenance")))
    except (OSError, FormatError) as error:
        raise SignerError(
            f"the release signer does not answer at {path}: {error}",
            hint="`wildflower server up` starts it; its log is logs/signer.log.",
        ) from error
    if "error" in answer:
        raise SignerError(
            f"the release signer refused: {answer['error']}", hint=str(answer.get("hint", ""))
        )
    return signed


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message."""
    connection.sendall(HEADER.pack(len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    """Receive one message; b"" if the other side has hung up without one.

    Raises:
        FormatError: It is longer than allowed, or was cut off.
    """
    header = _exactly(connection, HEADER.size)
    if not header:
        return b""
    if len(header) < HEADER.size:
        raise FormatError("the message was cut off in its length")
    (length,) = HEADER.unpack(header)
    if length > MAX_MESSAGE:
        raise FormatError(f"a message of {length} bytes, at most {MAX_MESSAGE} are read")
    message = _exactly(connection, length)
    if len(message) < length:
        raise FormatError(f"the message was cut off after {len(message)} of {length} bytes")
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = connection.recv(min(65_536, count - len(received)))
        if not part:
            break
        received += part
    return bytes(received)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise FormatError(f"not a text: {error}") from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"expected an object, found {type(found).__name__}")
    return found
