"""Events are told once, in order, and everybody who waits is woken."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from tests.record_fakes import NOW, SetClock, device, report

from wildflower.server.events import Kind, ObservedStore
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Device, JoinToken


@pytest.fixture
def store() -> ObservedStore:
    return ObservedStore(MemoryStore(), SetClock())


def woken_by(store: ObservedStore, change: Callable[[], object]) -> bool:
    """Return whether a change wakes who waits."""
    before = store.bus.changes
    change()
    return store.bus.wait(before, 0.0) != before


def test_every_kind_of_event_names_what_it_happens_to() -> None:
    subjects = {kind.value.partition(".")[0] for kind in Kind}
    assert subjects == {"device", "round", "training", "line", "rollout"}


def test_an_emitted_event_is_stored_with_its_fields_and_moment(store: ObservedStore) -> None:
    store.bus.emit(Kind.ROUND_STAGE, "t/1", stage="train", number=1)
    [event] = store.events()
    assert (event.number, event.kind, event.subject) == (1, "round.stage", "t/1")
    assert (event.fields, event.at) == ({"stage": "train", "number": 1}, NOW)
    assert store.bus.now() == NOW


CHANGES: dict[str, Callable[[ObservedStore], object]] = {
    "put": lambda store: store.put(device("new")),
    "put of an event": lambda store: store.put(
        events=[store.bus.make(Kind.DEVICE_REPORT, "device")]
    ),
    "add": lambda store: store.add(report(device("known"), "committed")),
    "change": lambda store: store.change(Device, device("known").device_id, running="x"),
    "emit": lambda store: store.bus.emit(Kind.DEVICE_ENROLLED, "device"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whoever_changes_the_store_wakes_who_waits(
    store: ObservedStore, change: Callable[[ObservedStore], object]
) -> None:
    store.put(device("known"))
    assert woken_by(store, lambda: change(store))


def test_what_changes_nothing_wakes_nobody(store: ObservedStore) -> None:
    known = report(device("known"), "committed")
    store.add(known)
    assert not woken_by(store, lambda: store.add(known))
    assert not woken_by(store, lambda: store.change(Device, "nobody", running="x"))
    assert not woken_by(store, lambda: store.all(Device))


def test_a_change_before_the_wait_is_not_slept_through(store: ObservedStore) -> None:
    seen = store.bus.changes
    store.put(device("new"))
    assert store.bus.wait(seen, 3600.0) == seen + 1


def test_a_wait_ends_with_its_time(store: ObservedStore) -> None:
    seen = store.bus.changes
    assert store.bus.wait(seen, 0.01) == seen


def test_a_waiting_thread_is_woken(store: ObservedStore) -> None:
    seen, found = store.bus.changes, []
    thread = threading.Thread(target=lambda: found.append(store.bus.wait(seen, 60.0)))
    thread.start()
    store.put(device("new"))
    thread.join(20)
    assert found == [seen + 1]


def test_a_waiting_event_loop_is_woken_from_another_thread(store: ObservedStore) -> None:
    async def wait() -> None:
        with store.bus.bell() as bell:
            threading.Thread(target=store.put, args=(device("new"),)).start()
            await asyncio.wait_for(bell.wait(), 20)

    asyncio.run(wait())
    store.put(device("other"))  # nobody waits any more: nothing is rung that is gone


def test_a_loop_that_is_closed_is_not_rung(store: ObservedStore) -> None:
    async def ring_after_the_end() -> asyncio.AbstractEventLoop:
        context = store.bus.bell()
        context.__enter__()
        return asyncio.get_running_loop()

    loop = asyncio.run(ring_after_the_end())
    assert loop.is_closed()
    store.bus.ring()


def test_closing_the_bus_wakes_everybody(store: ObservedStore) -> None:
    assert woken_by(store, store.bus.close)
    assert store.bus.closed


def test_the_latest_event_is_counted_on_from_where_it_was(store: ObservedStore) -> None:
    assert store.latest_event() == 0
    for _ in range(3):
        store.bus.emit(Kind.DEVICE_ENROLLED, "device")
    assert store.latest_event() == 3
    store.bus.emit(Kind.DEVICE_ENROLLED, "device")
    assert store.latest_event() == 4


def test_an_observed_store_answers_as_the_one_below(store: ObservedStore) -> None:
    token = JoinToken("id", "digest", NOW.replace(year=2027), 1, "default")
    store.put(token, device("one"))
    assert store.get(Device, device("one").device_id) == device("one")
    assert store.all(Device, name="one") == [device("one")]
    assert store.spend("id", NOW) is not None
    assert store.spend("id", NOW) is None
