"""One session of our secure aggregation, timed: what the devices do and what the server does.

A device's time holds everything between a finished update and its last message: keys, signatures,
shares, encoding, masks, the messages' flat forms, and the stored form of its state at every step.
The server's holds the checks of all signatures, the routing, the sum and the unmasking. From its
second session on a cohort's certificates are known: they are verified once a process.
"""

import hashlib
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import numpy as np

from wildflower.simulation.identities import SimulatedCa, SimulatedDevice
from wildflower.strategies.arrays import Update
from wildflower.strategies.fixed_point import Encoding, Residues
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)
from wildflower.strategies.secagg.server import Session

UPDATES: Final = 4
"""Different updates; clients take turns, so that a thousand of them fit into memory."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a session.

    Attributes:
        clients: Size of the cohort.
        size: Elements of an update.
        degree: Neighbours of a client.
        threshold: Share holders that must answer, the client itself among them.
        dropped: Clients that are lost before they upload.
    """

    clients: int
    size: int
    degree: int
    threshold: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a session took.

    Attributes:
        client_ms: CPU time of one client, in milliseconds: the mean over all that began.
        server_s: CPU time of the server, in seconds.
        upload: Bytes of payload that a client that stayed sent, the mean.
    """

    client_ms: float
    server_s: float
    upload: float


class Clock:
    """Adds up the CPU time that is spent inside of it."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.seconds = 0.0

    def __enter__(self) -> None:
        """Start counting."""
        self._began = time.process_time()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting."""
        self.seconds += time.process_time() - self._began


def entropy_of(*parts: object) -> bytes:
    """Return 32 bytes that are the same in every run."""
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass
class Cohort:
    """Devices with identities, made once for several sessions."""

    count: int
    ca: SimulatedCa = field(default_factory=SimulatedCa)

    def __post_init__(self) -> None:
        """Enrol the devices."""
        enrolled = [self.ca.enrol() for _ in range(self.count)]
        self.devices: dict[str, SimulatedDevice] = {each.device_id: each for each in enrolled}


def updates_of(size: int) -> list[Update]:
    """Return the updates that clients take turns with."""
    drawn = [np.random.default_rng(number) for number in range(UPDATES)]
    return [
        Update(rng.normal(0, 0.05, size).astype(np.float32), 100.0, {"loss": 1.0}) for rng in drawn
    ]


class TimedSession:
    """A session whose two sides are timed; its sum is compared with the open one."""

    def __init__(self, cohort: Cohort, load: Load, *, bits: int = 32) -> None:
        """Prepare; nothing of it is timed."""
        encoding = Encoding.for_cohort(
            size=load.size,
            clip=1.0,
            max_weight=100.0,
            clients=load.clients,
            statistics=("loss",),
            bits=bits,
        )
        session = entropy_of(load, bits)
        self.params = SessionParams(session, "benchmark", 1, load.threshold, load.degree, encoding)
        self._load, self._ca, self._now = load, cohort.ca.certificate, datetime.now(UTC)
        self._devices = dict(list(cohort.devices.items())[: load.clients])
        self._session = Session(self.params, self._devices.keys(), ca=self._ca)
        self._states: dict[str, State] = {}
        self._sent = dict.fromkeys(self._devices, 0)
        self._client, self._server = Clock(), Clock()

    def run(self) -> Cost:
        """Go through the session.

        Raises:
            RuntimeError: The sum is not the plain one.
        """
        deliveries = self._share(self._advertise())
        staying = list(deliveries)[self._load.dropped :]
        plain = self._mask({device: deliveries[device] for device in staying})
        total = self._unmask()
        if not np.array_equal(total, plain):
            raise RuntimeError("the unmasked sum is not the plain sum")
        return Cost(
            1000 * self._client.seconds / self._load.clients,
            self._server.seconds,
            float(np.mean([self._sent[device] for device in staying])),
        )

    def _advertise(self) -> dict[str, Roster]:
        for device, identity in self._devices.items():
            with self._client:
                state, message = client.advertise(
                    self.params, identity, entropy=entropy_of("keys", device)
                )
            self._answer(device, state, message)
        with self._server:
            return self._session.rosters(entropy=entropy_of("ring"))

    def _share(self, rosters: dict[str, Roster]) -> dict[str, Delivery]:
        for device, roster in rosters.items():
            with self._client:
                state, message = client.share(
                    self._states[device],
                    roster,
                    ca=self._ca,
                    now=self._now,
                    entropy=entropy_of("shares", device),
                )
            self._answer(device, state, message)
        with self._server:
            return self._session.deliveries()

    def _mask(self, deliveries: dict[str, Delivery]) -> Residues:
        plain = np.zeros(self.params.encoding.length, self.params.encoding.dtype)
        updates = updates_of(self._load.size)
        for number, (device, delivery) in enumerate(deliveries.items()):
            with self._client:
                opened = client.open_shares(self._states[device], delivery)
                residues = self.params.encoding.encode(updates[number % UPDATES], bytes(32))
            plain += residues
            with self._client:
                state, message = client.mask(opened, residues)
            self._answer(device, state, message)
        return plain

    def _unmask(self) -> Residues:
        with self._server:
            requests: dict[str, UnmaskRequest] = self._session.requests()
        for device, request in requests.items():
            with self._client:
                state, message = client.reveal(self._states[device], request)
            self._answer(device, state, message)
        with self._server:
            return self._session.total()

    def _answer(
        self, device: str, state: State, message: Advertisement | Shares | Masked | Reveal
    ) -> None:
        """Store the client's state, then bring its message to the server."""
        with self._client:
            stored = state.to_bytes()
            fields = message.to_fields()
        self._sent[device] += payload(fields)
        # What was masked is not needed again; a hundred of them would not be one device's memory.
        self._states[device] = replace(state, masked=None) if stored else state
        with self._server:
            self._session.receive(device, type(message).from_fields(fields), now=self._now)


def payload(fields: dict[str, Any]) -> int:
    """Return how many bytes a message's fields hold; a number counts as eight."""
    sizes = [len(value) if isinstance(value, bytes | str) else 8 for value in fields.values()]
    return sum(sizes)
