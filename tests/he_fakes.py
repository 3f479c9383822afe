"""A key holder without a network, and a fleet whose devices encrypt to it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wildflower.client.outgoing import Guard, Outgoing
from wildflower.server.keyholder import KeyHolder, Terms
from wildflower.server.pinned import PinnedIdentity
from wildflower.simulation.fleet import seeded_entropy
from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.he.messages import Invitation, RunKey, SumRequest
from wildflower.strategies.he.protection import Homomorphic
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.secagg.sessions import MemorySessions, SessionStore

NOW = datetime.now(UTC)
IDENTITY = PinnedIdentity.make("test key holder", NOW)
OTHER_IDENTITY = PinnedIdentity.make("another key holder", NOW)
TERMS = Terms()
SESSION = bytes(range(32))


def present() -> datetime:
    return datetime.now(UTC)


def make_holder(
    directory: Path, *, identity: PinnedIdentity = IDENTITY, terms: Terms = TERMS
) -> KeyHolder:
    """Return a key holder that lives in this process."""
    return KeyHolder(directory, identity, terms, now=present)


def encoding(size: int = 5, clients: int = 3, **changes: int) -> Encoding:
    values = {"clip": 1.0, "max_weight": 100.0, "bits": 16, **changes}
    return Encoding.for_cohort(
        size=size,
        clients=clients,
        statistics=("loss",),
        **values,  # type: ignore[arg-type]  # a test's own values
    )


def invitation(
    key: RunKey, *, size: int = 5, clients: int = 3, session: bytes = SESSION, number: int = 1
) -> Invitation:
    return Invitation(session, number, key, encoding(size, clients))


class Watched:
    """A key holder that remembers what it was asked, and may be gone."""

    def __init__(self, holder: KeyHolder) -> None:
        self.holder = holder
        self.asked: list[SumRequest] = []
        self.fails: dict[str, Exception] = {}

    def key(self, run: str) -> RunKey:
        self._fail("key")
        return self.holder.key(run)

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.uint16]:
        self._fail("decrypt")
        self.asked.append(request)
        return self.holder.decrypt(request)

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


class HeFleet:
    """Nodes 11, 12, ... with one app each, behind a device's policy and the mod."""

    def __init__(
        self,
        directory: Path,
        apps: Sequence[App],
        *,
        pinned: str = IDENTITY.digest,
        min_cohort: int = 3,
        dies: Mapping[tuple[int, str], Death] | None = None,
        terms: Terms = TERMS,
    ) -> None:
        self.ca = SimulatedCa()
        self.holder = Watched(make_holder(directory, terms=terms))
        self.sessions: list[SessionStore] = [MemorySessions() for _ in apps]
        self.protections = [
            Homomorphic(
                self.ca.enrol(),
                each,
                pinned,
                min_cohort=min_cohort,
                entropy=seeded_entropy(f"test/{index}"),
            )
            for index, each in enumerate(self.sessions)
        ]
        guards = [
            Guard(Outgoing("required", (each,)), UpdateMod((each,))) for each in self.protections
        ]
        self.nodes = [11 + index for index in range(len(apps))]
        guarded = [guard.around(app) for guard, app in zip(guards, apps, strict=True)]
        self.grid = InProcessGrid(dict(zip(self.nodes, guarded, strict=True)), dies=dies)
