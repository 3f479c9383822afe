"""Who takes part in a round: drawn from the store, invited, and waited for.

The cohort is drawn from the devices that may take part and are connected to the device channel; it
is recorded before anyone is invited. An invitation is a hint: a device starts its training child,
which connects to Flower, and only devices that are there when the round begins are asked anything.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from wildflower.server.events import EventBus
from wildflower.server.presence import HintKind
from wildflower.server.records import Device
from wildflower.server.store import Store

log = logging.getLogger(__name__)

SETTLE_S: Final = 3.0
"""Devices that are enrolled but away are waited for this long once there is a quorum: after a
restart of the server they come back within seconds, and not all at once."""
AGAIN_S: Final = 5.0
"""An invitation is repeated this often: one that was missed would cost a device its place."""
LOOK_S: Final = 0.2
"""Seconds between two looks at who is connected to Flower, which tells nobody."""


class Connected(Protocol):
    """Who is connected to the device channel; `server.presence.Presence`."""

    def connected(self, device_id: str) -> bool:
        """Whether the device has an open stream."""
        ...

    def epoch(self, device_id: str) -> int:
        """Return how often the device has connected."""
        ...

    def hint(self, device_ids: Iterable[str], kind: HintKind | str, training: str = "") -> int:
        """Leave a hint for devices."""
        ...


class Nodes(Protocol):
    """The part of a Flower grid that tells who is there."""

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        ...


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a cohort is drawn.

    Attributes:
        size: Devices in it; 0 for all. By coins it is the expected number.
        rng: Draws.
        by_coins: Whether each device has a coin of its own, connected or not: what accounting
            calls Poisson sampling, whose outcome tells nothing of who is there.
        without: Devices that are not drawn.
    """

    size: int
    rng: random.Random
    by_coins: bool = False
    without: frozenset[str] = frozenset()

    def of(self, eligible: Sequence[str], here: Sequence[str]) -> list[str]:
        """Return the cohort out of the devices that are eligible, or here."""
        if self.by_coins:
            rate = self.size / max(len(eligible), 1)
            return [device for device in eligible if self.rng.random() < rate]
        return self.rng.sample(here, self.size) if 0 < self.size < len(here) else list(here)


@dataclass(frozen=True, slots=True)
class Gathering:
    """Draws cohorts and brings them to Flower.

    Attributes:
        store: Knows the devices.
        presence: Knows who is connected, and passes hints on.
        bus: Wakes us when something changes.
        stopping: Set when the server stops; ends every wait.
        settle_s: Seconds that enrolled devices are waited for beyond the quorum.
        again_s: Seconds after which an invitation is repeated.
    """

    store: Store
    presence: Connected
    bus: EventBus
    stopping: threading.Event
    settle_s: float = SETTLE_S
    again_s: float = AGAIN_S

    def draw(self, quorum: int, deadline_s: float, drawing: Drawing) -> list[str]:
        """Draw a cohort.

        Args:
            quorum: Wait until at least this many are eligible and connected.
            deadline_s: Do not wait longer, in seconds.
            drawing: How to draw.

        Returns:
            Device ids; fewer than the quorum if the time was over.
        """
        started = time.monotonic()
        enough_since: float | None = None
        while not self.stopping.is_set():
            seen = self.bus.changes
            eligible = [one for one in self.eligible() if one not in drawing.without]
            here = [device_id for device_id in eligible if self.presence.connected(device_id)]
            now = time.monotonic()
            if len(here) < quorum:
                enough_since = None
            elif enough_since is None:
                enough_since = now
            settled = enough_since is not None and now - enough_since >= self.settle_s
            if (len(here) >= quorum and (len(here) == len(eligible) or settled)) or (
                now - started >= deadline_s
            ):
                return drawing.of(eligible, here)
            self.bus.wait(seen, min(LOOK_S * 5, max(0.01, deadline_s - (now - started))))
        return []

    def eligible(self) -> list[str]:
        """Return the ids of the devices that may take part."""
        return [d.device_id for d in self.store.all(Device) if not d.revoked and d.node_id]

    def nodes(self, cohort: Sequence[str]) -> dict[int, str]:
        """Return the devices of a cohort by their Flower node ids."""
        wanted = set(cohort)
        devices = [d for d in self.store.all(Device) if d.device_id in wanted]
        return {device.node_id: device.device_id for device in devices if device.node_id}

    def gather(
        self, grid: Nodes, cohort: Sequence[str], training: str, deadline_s: float
    ) -> list[str]:
        """Invite a cohort and wait until all who still can be are connected to Flower.

        Args:
            grid: Tells who is connected to Flower.
            cohort: Device ids.
            training: What they are invited to.
            deadline_s: Do not wait longer, in seconds.

        Returns:
            The ids of the devices that are there.
        """
        nodes = self.nodes(cohort)
        started = invited = time.monotonic()
        self.presence.hint(cohort, HintKind.TRAINING, training)
        while not self.stopping.is_set():
            online = {nodes[node] for node in grid.get_node_ids() if node in nodes}
            present = {device for device in cohort if self.presence.connected(device)}
            missing = sorted(present - online)
            now = time.monotonic()
            if (present and not missing) or now - started >= deadline_s:
                return sorted(online & present)
            if now - invited >= self.again_s:
                self.presence.hint(missing, HintKind.TRAINING, training)
                invited = now
            self.stopping.wait(LOOK_S)
        return []

    def watch(self, nodes: Mapping[int, str]) -> Callable[[int], bool]:
        """Return what tells whether a node has lost its connection since now."""
        epochs = {node: self.presence.epoch(device) for node, device in nodes.items()}

        def is_gone(node: int) -> bool:
            device = nodes[node]
            is_here = self.presence.connected(device)
            return (
                not is_here or self.presence.epoch(device) != epochs[node] or self.stopping.is_set()
            )

        return is_gone
