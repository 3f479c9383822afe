"""What a client of a secure-aggregation session remembers, and its stored form.

The state holds secrets until they are used: store it where only the device's own user can read it,
and erase it at the end of the session.

    State.from_bytes(state.to_bytes()) == state
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Final, Self, TypeVar

from wildflower.strategies.errors import SecAggError, StoredStateError
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.messages import (
    KEY,
    SHARE,
    Advertisement,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
)

MAX_PART: Final = 1 << 26  # bytes of one stored message: a roster of everyone has 10 MB
_STORED: Final = (
    *("phase", "params", "smallest", "advertisement", "secrets", "requests"),
    *("held_of", "held", "roster", "shares", "reveal"),
)


@unique
class Phase(StrEnum):
    """How far a client is in its session: what it has answered last."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    OPENED = "opened"
    MASKED = "masked"
    REVEALED = "revealed"


_COUNTS: Final = {
    Phase.ADVERTISED: (3, 0, 0, 0, 0),
    Phase.SHARED: (3, 1, 1, 0, 0),
    Phase.OPENED: (3, 2, 1, 0, 0),
    Phase.MASKED: (0, 2, 1, 1, 0),
    Phase.REVEALED: (0, 3, 1, 1, 1),
}
"""What a state of each phase holds: secrets, requests, shares, masked, reveal."""


@dataclass(frozen=True, slots=True)
class State:
    """What a client knows of its session; secrets do not show in its repr.

    Attributes:
        phase: How far it is.
        params: What all clients agree on.
        device: Its device id.
        smallest: Fewest clients whose sum its policy lets it join.
        advertisement: What it sent first.
        secrets: Sealing key, masking key and seed, 32 bytes each; empty once they are used up.
        requests: Digests of the requests it has answered: roster, delivery, unmask request.
        neighbours: Its neighbours; none before they are known and after they are used.
        shares: What it sent second.
        held: Device id to the shares it holds of that device: of the seed, then of the key; of
            itself only of the seed. Empty once they are revealed.
        masked: What it sent third.
        reveal: What it sent last.
    """

    phase: Phase
    params: SessionParams
    device: str
    smallest: int
    advertisement: Advertisement
    secrets: tuple[bytes, ...] = field(repr=False)
    requests: tuple[bytes, ...] = ()
    neighbours: tuple[Advertisement, ...] = field(default=(), repr=False)
    shares: Shares | None = field(default=None, repr=False)
    held: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    masked: Masked | None = field(default=None, repr=False)
    reveal: Reveal | None = field(default=None, repr=False)

    @property
    def needed(self) -> int:
        """Fewest share holders (neighbours and the client itself) with which it goes on.

        Where it sees the whole cohort, not fewer than its policy or the encoding's noise need.
        """
        own = max(self.smallest, self.params.encoding.min_cohort)
        own = own if self.params.is_complete else 0
        return max(self.params.threshold, own)

    def to_bytes(self) -> bytes:
        """Return the stored form: one line of JSON, then the masked residues as they are."""
        line = flat.to_bytes(
            {
                **flat.header("client-state", self.params.session),
                "phase": self.phase.value,
                "params": flat.to_bytes(self.params.to_fields()),
                "smallest": self.smallest,
                "advertisement": flat.to_bytes(self.advertisement.to_fields()),
                "secrets": b"".join(self.secrets),
                "requests": b"".join(self.requests),
                "held_of": flat.join_ids(sorted(self.held)),
                "held": [self.held[device] for device in sorted(self.held)],
                "roster": _stored(Roster(self.params.session, self.neighbours)),
                "shares": _stored(self.shares),
                "reveal": _stored(self.reveal),
            }
        )
        return line + b"\n" + (b"" if self.masked is None else self.masked.residues)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the state that `to_bytes` stored.

        Raises:
            StoredStateError: Not the stored state of a client.
        """
        line, _, residues = data.partition(b"\n")
        try:
            state = cls._parse(flat.from_bytes(line), residues)
        except (SecAggError, ValueError) as error:
            raise StoredStateError(f"not the stored state of a session: {error}") from error
        parts = (state.shares, state.masked, state.reveal)
        counts = len(state.secrets), len(state.requests), *(int(p is not None) for p in parts)
        if counts != _COUNTS[state.phase]:
            raise StoredStateError(
                f"a state in phase {state.phase} holds {_COUNTS[state.phase]}, found {counts}"
            )
        return state

    @classmethod
    def _parse(cls, found: flat.Fields, residues: bytes) -> Self:
        reader = flat.Reader("client-state", found, _STORED)
        advertisement = Advertisement.from_fields(_part(reader, "advertisement"))
        devices = reader.ids("held_of")
        held = reader.octet_lists("held", len(devices), 2 * SHARE)
        roster = _optional(reader, "roster", Roster)
        return cls(
            Phase(reader.text("phase", 20)),
            SessionParams.from_fields(_part(reader, "params")),
            advertisement.device,
            reader.integer("smallest"),
            advertisement,
            reader.parts("secrets", KEY),
            reader.parts("requests", KEY),
            () if roster is None else roster.neighbours,
            _optional(reader, "shares", Shares),
            dict(zip(devices, held, strict=True)),
            Masked(reader.session, residues) if residues else None,
            _optional(reader, "reveal", Reveal),
        )


_M = TypeVar("_M", Roster, Shares, Reveal)


def _stored(message: Roster | Shares | Reveal | None) -> bytes:
    return b"" if message is None else flat.to_bytes(message.to_fields())


def _part(reader: flat.Reader, name: str) -> flat.Fields:
    return flat.from_bytes(reader.octets(name, MAX_PART))


def _optional(reader: flat.Reader, name: str, kind: type[_M]) -> _M | None:
    return None if reader.fields[name] == b"" else kind.from_fields(_part(reader, name))
