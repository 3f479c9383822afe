"""Who takes part in a round: drawn among those who can, waited for, and watched."""

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from tests.record_fakes import SetClock, device, digest_of
from tests.server_base_fakes import until

from wildflower.server.cohort import AGAIN_S, SETTLE_S, Drawing, Gathering
from wildflower.server.events import ObservedStore
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import HintKind, Presence, Watcher
from wildflower.server.records import Device

LONG_S = 60.0  # a wait that a test never sits out


@dataclass
class World:
    """Devices, of which some are connected.

    Attributes:
        online: Node ids that Flower knows to be online.
        looks: How often Flower was asked who is.
    """

    store: ObservedStore = field(default_factory=lambda: ObservedStore(MemoryStore(), SetClock()))
    presence: Presence = field(default_factory=Presence)
    stopping: threading.Event = field(default_factory=threading.Event)
    online: set[int] = field(default_factory=set)
    looks: int = 0
    settle_s: float = SETTLE_S
    again_s: float = AGAIN_S

    def add(self, name: str, *, connected: bool = True, node_id: int = 7) -> str:
        made = device(name, node_id=node_id)
        self.store.put(made)
        if connected:
            self.connect(name)
        return made.device_id

    def connect(self, name: str) -> Watcher:
        watcher = self.presence.attach(digest_of(name), lambda: None)
        self.store.bus.ring()
        return watcher

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(self.online)

    @property
    def gathering(self) -> Gathering:
        return Gathering(
            self.store,
            self.presence,
            self.store.bus,
            self.stopping,
            settle_s=self.settle_s,
            again_s=self.again_s,
        )


@pytest.fixture
def world() -> World:
    return World()


def drawn(world: World, quorum: int, size: int = 0, deadline_s: float = LONG_S) -> list[str]:
    return world.gathering.draw(quorum, deadline_s, Drawing(size, random.Random(1)))


def test_all_who_are_eligible_and_connected_are_drawn(world: World) -> None:
    here = {world.add(f"device-{number}") for number in range(3)}
    assert set(drawn(world, 2)) == here


def test_a_smaller_cohort_is_a_draw_of_those_who_are_there(world: World) -> None:
    here = {world.add(f"device-{number}") for number in range(6)}
    found = drawn(world, 2, size=3)
    assert len(set(found)) == 3
    assert set(found) < here
    assert drawn(world, 2, size=3) == found, "the source of randomness decides, nothing else"
    assert len(drawn(world, 2, size=9)) == 6


@pytest.mark.parametrize("fields", [{"revoked": True}, {"node_id": 0}])
def test_who_may_not_take_part_is_not_drawn(world: World, fields: dict[str, object]) -> None:
    fit = world.add("fit")
    world.store.put(device("unfit", **fields))
    world.connect("unfit")
    assert drawn(world, 1) == [fit]


def test_too_few_until_the_deadline_are_returned_as_they_are(world: World) -> None:
    here = world.add("one")
    world.add("away", connected=False)
    assert drawn(world, 2, deadline_s=0.05) == [here]


def test_a_quorum_does_not_wait_for_ever_for_who_is_away(
    world: World,
) -> None:
    world.settle_s = 0.05
    here = {world.add("one"), world.add("two")}
    world.add("away", connected=False)
    assert set(drawn(world, 2)) == here


def in_thread(act: Callable[[], list[str]]) -> tuple[threading.Thread, list[str]]:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(act()))
    thread.start()
    return thread, found


def test_who_comes_while_we_wait_is_drawn(world: World) -> None:
    expected = {world.add("one"), world.add("two", connected=False)}
    thread, found = in_thread(lambda: drawn(world, 2))
    world.connect("two")
    thread.join(20)
    assert set(found) == expected


def test_a_stop_ends_every_wait(world: World) -> None:
    one = world.add("one", node_id=11)
    waits = [
        in_thread(lambda: drawn(world, 2)),
        in_thread(lambda: world.gathering.gather(world, [one], "t", LONG_S)),
    ]
    world.stopping.set()
    world.store.bus.ring()
    for thread, found in waits:
        thread.join(20)
        assert not thread.is_alive()
        assert found == []


def test_the_cohort_is_invited_and_is_there_once_flower_sees_it(world: World) -> None:
    one = world.add("one", node_id=11)
    watcher = world.connect("one")
    thread, found = in_thread(lambda: world.gathering.gather(world, [one], "t", LONG_S))
    until(lambda: world.looks > 0)
    assert [(hint.kind, hint.training) for hint in world.presence.take(watcher)] == [
        (HintKind.TRAINING, "t")
    ]
    world.online = {11, 99}
    thread.join(20)
    assert found == [one]


def test_who_does_not_hear_the_invitation_is_invited_again(
    world: World,
) -> None:
    world.again_s = 0.0
    one = world.add("one", node_id=11)
    watcher = world.connect("one")
    thread, _ = in_thread(lambda: world.gathering.gather(world, [one], "t", LONG_S))
    until(lambda: bool(world.presence.take(watcher)))
    until(lambda: bool(world.presence.take(watcher)))
    world.online = {11}
    thread.join(20)


def test_who_has_left_is_not_waited_for(world: World) -> None:
    here, left = world.add("here", node_id=11), world.add("left", connected=False, node_id=12)
    world.online = {11, 12}  # Flower notices a lost node late
    assert world.gathering.gather(world, [here, left], "t", LONG_S) == [here]


def test_who_is_late_is_left_out_at_the_deadline(world: World) -> None:
    here, late = world.add("here", node_id=11), world.add("late", node_id=12)
    world.online = {11}
    assert world.gathering.gather(world, [here, late], "t", 0.05) == [here]


def test_nodes_are_those_of_the_cohort_that_flower_knows(world: World) -> None:
    one = world.add("one", node_id=11)
    other = world.add("other", node_id=0)
    world.add("outside", node_id=13)
    assert world.gathering.nodes([one, other]) == {11: one}


def test_a_node_is_gone_when_its_device_left_or_came_back(world: World) -> None:
    one, two = world.add("one", node_id=11), world.add("two", node_id=12)
    is_gone = world.gathering.watch({11: one, 12: two})
    assert not is_gone(11)
    world.connect("one")  # what was sent to its connection before is lost
    assert is_gone(11)
    assert not is_gone(12)
    world.presence.disconnect(two)
    assert is_gone(12)


def test_when_the_server_stops_every_node_is_gone(world: World) -> None:
    one = world.add("one", node_id=11)
    is_gone = world.gathering.watch({11: one})
    world.stopping.set()
    assert is_gone(11)
    assert world.store.get(Device, one) is not None
