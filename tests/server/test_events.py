import asyncio
import threading
from collections.abc import Callable

import pytest
from tests.record_fakes import NOW, SetClock, device, digest_of

from wildflower.server.events import EventBus, Kind, ObservedStore
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Device, JoinToken

LONG_S = 30.0  # longer than the tests take: who waits this long was not woken


@pytest.fixture
def store() -> ObservedStore:
    return ObservedStore(MemoryStore(), SetClock())


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start work in a thread; return the thread and where its result will be."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_an_event_has_the_moment_of_its_making_and_a_number_once_it_is_stored(
    store: ObservedStore,
) -> None:
    made = store.bus.make(Kind.ROUND_RECORDED, "t/1", number=1, loss=0.5, secure=True)
    assert (made.number, made.kind, made.at) == (0, "round.recorded", NOW)
    assert made.fields == {"number": 1, "loss": 0.5, "secure": True}
    store.put(device("one"), events=[made])
    store.bus.emit(Kind.DEVICE_CONNECTED, "one")
    assert [(one.number, one.subject) for one in store.events()] == [(1, "t/1"), (2, "one")]


def test_every_kind_of_event_has_a_name_of_its_own_in_two_parts() -> None:
    assert all(len(kind.value.split(".")) == 2 for kind in Kind)


@pytest.mark.parametrize("change", ["put", "add", "change", "emit"])
def test_every_change_wakes_who_waits(store: ObservedStore, change: str) -> None:
    store.put(device("known"))
    seen = store.bus.changes
    thread, found = in_thread(lambda: store.bus.wait(seen, LONG_S))
    match change:
        case "put":
            store.put(device("new"))
        case "add":
            store.add(device("new"))
        case "change":
            store.change(Device, digest_of("known"), name="other")
        case _:
            store.bus.emit(Kind.DEVICE_ENROLLED, "new")
    thread.join()
    assert found == [store.bus.changes]
    assert store.bus.changes > seen


def test_what_changes_nothing_wakes_nobody(store: ObservedStore) -> None:
    store.put(device("known"))
    seen = store.bus.changes
    assert store.add(device("known")) == []
    assert store.change(Device, "unknown", name="x") is None
    assert store.get(Device, digest_of("known")) in store.all(Device)
    assert store.spend("unknown", NOW) is None
    assert store.bus.changes == seen


def test_a_change_between_looking_and_waiting_is_not_missed(store: ObservedStore) -> None:
    seen = store.bus.changes
    store.bus.ring()
    assert store.bus.wait(seen, LONG_S) == seen + 1


def test_a_wait_ends_with_its_time(store: ObservedStore) -> None:
    seen = store.bus.changes
    assert store.bus.wait(seen, 0) == seen
    assert store.bus.wait(seen, 0.01) == seen


def test_an_observed_store_spends_tokens_of_the_store_it_observes(store: ObservedStore) -> None:
    later = NOW.replace(year=NOW.year + 1)
    store.put(JoinToken("t", "d", later, 1, "default"))
    spent = store.spend("t", NOW)
    assert spent is not None
    assert spent.uses_left == 0
    assert store.spend("t", NOW) is None


def test_the_latest_event_is_known_after_more_than_one_reading(store: ObservedStore) -> None:
    assert store.latest_event() == 0
    made = store.bus.make(Kind.DEVICE_CONNECTED, "one")
    store.put(events=[made] * 2500)
    assert store.latest_event() == 2500
    store.put(events=[made])
    assert store.latest_event() == 2501


def test_a_change_in_a_thread_rings_the_bell_of_an_event_loop(store: ObservedStore) -> None:
    async def follow() -> bool:
        with store.bus.bell() as bell:
            assert not bell.is_set()
            thread, _ = in_thread(lambda: store.put(device("new")))
            async with asyncio.timeout(LONG_S):
                await bell.wait()
            thread.join()
            return bell.is_set()

    assert asyncio.run(follow())


def test_a_bell_that_was_given_back_is_not_rung(store: ObservedStore) -> None:
    async def borrow() -> asyncio.Event:
        with store.bus.bell() as bell:
            pass
        store.bus.ring()
        await asyncio.to_thread(lambda: None)
        return bell

    assert not asyncio.run(borrow()).is_set()


def test_a_bell_whose_loop_is_closed_breaks_nothing(store: ObservedStore) -> None:
    loop = asyncio.new_event_loop()

    async def take() -> object:
        borrowed = store.bus.bell()
        borrowed.__enter__()
        return borrowed

    kept = loop.run_until_complete(take())
    loop.close()
    seen = store.bus.changes
    store.put(device("new"))
    assert store.bus.changes == seen + 1
    assert kept is not None


def test_closing_the_bus_wakes_who_waits_and_is_seen() -> None:
    bus = EventBus(MemoryStore(), SetClock())
    assert bus.now() == NOW
    thread, found = in_thread(lambda: bus.wait(0, LONG_S))
    bus.close()
    thread.join()
    assert bus.closed
    assert found == [1]
