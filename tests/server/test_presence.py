import threading

import pytest

from wildflower.server.presence import MAX_PENDING, Hint, HintKind, Presence

RELEASE = Hint(HintKind.RELEASE)


class Wake:
    """Counts how often a stream was woken."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_a_device_is_present_while_its_stream_is_open() -> None:
    presence = Presence()
    assert not presence.connected("d")
    assert presence.epoch("d") == 0
    watcher = presence.attach("d", Wake())
    assert presence.connected("d")
    assert presence.devices() == ["d"]
    assert presence.detach(watcher)
    assert not presence.connected("d")
    assert presence.epoch("d") == 1


def test_gone_and_back_is_another_epoch() -> None:
    presence = Presence()
    presence.detach(presence.attach("d", Wake()))
    before = presence.epoch("d")
    presence.attach("d", Wake())
    assert (before, presence.epoch("d")) == (1, 2)


def test_a_new_stream_ends_the_old_one_and_the_device_stays() -> None:
    presence, wake = Presence(), Wake()
    old = presence.attach("d", wake)
    new = presence.attach("d", Wake())
    assert old.ended
    assert wake.times == 1
    assert not presence.detach(old)
    assert presence.connected("d")
    assert presence.detach(new)


def test_a_hint_reaches_the_connected_and_wakes_them() -> None:
    presence, wake = Presence(), Wake()
    here = presence.attach("here", wake)
    assert presence.hint(["here", "away"], "release") == 1
    assert presence.hint(["here"], HintKind.TRAINING, "tr1") == 1
    assert wake.times == 2
    assert presence.take(here) == [RELEASE, Hint(HintKind.TRAINING, "tr1")]
    assert presence.take(here) == []


def test_the_same_hint_is_never_pending_twice() -> None:
    presence = Presence()
    watcher = presence.attach("d", Wake())
    for _ in range(5):
        presence.hint(["d"], "release")
    assert presence.take(watcher) == [RELEASE]


def test_the_oldest_hints_give_way() -> None:
    presence = Presence()
    watcher = presence.attach("d", Wake())
    for number in range(MAX_PENDING + 3):
        presence.hint(["d"], "training", str(number))
    taken = [hint.training for hint in presence.take(watcher)]
    assert taken == [str(number) for number in range(3, MAX_PENDING + 3)]


def test_an_unknown_kind_of_hint_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="dance"):
        Presence().hint(["d"], "dance")


def test_a_device_that_is_cut_off_is_gone_at_once() -> None:
    presence, wake = Presence(), Wake()
    watcher = presence.attach("d", wake)
    presence.disconnect("d")
    presence.disconnect("d")
    assert watcher.ended
    assert wake.times == 1
    assert not presence.connected("d")
    assert presence.detach(watcher)


def test_closing_ends_every_stream() -> None:
    presence = Presence()
    watchers = [presence.attach(name, Wake()) for name in "abc"]
    presence.close()
    assert all(watcher.ended for watcher in watchers)
    assert presence.devices() == []


def test_threads_that_come_and_go_are_all_counted() -> None:
    presence = Presence()

    def come_and_go() -> None:
        for _ in range(200):
            presence.hint(["d"], "release")
            presence.detach(presence.attach("d", Wake()))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert presence.epoch("d") == 800
    assert not presence.connected("d")
