"""What the disk has changed is found, gives way, and is had again."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.client_fakes import FakeServer
from tests.device_fakes import Bundle
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.client.scrub import Scrub
from wildflower.client.updates import Updates
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import RefusedError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


def spoil(kit: Kit, one: Bundle, name: str = "model.onnx") -> None:
    """Change a byte of an installed file, as a disk does: its length stays."""
    victim = kit.directory / "slots" / one.digest / name
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


def two(kit: Kit, server: FakeServer) -> tuple[Bundle, Bundle]:
    """Install two releases, one after the other."""
    first = offer(server, 1)
    kit.look()
    second = offer(server, 2)
    kit.look()
    return first, second


def slots(kit: Kit) -> Slots:
    return Slots(kit.directory / "slots")


def scrub_of(updates: Updates) -> Scrub:
    return Scrub(
        updates.slots, updates.releases, updates.config.directory / "downloads", lambda: False
    )


def test_whole_slots_are_read_and_nothing_comes_of_it(kit: Kit, server: FakeServer) -> None:
    two(kit, server)
    asked = blobs_asked(server)
    with kit.on() as updates:
        updates.look()
    assert (len(kit.told()), blobs_asked(server)) == (2, asked)


def test_a_damaged_release_gives_way_and_is_installed_again(kit: Kit, server: FakeServer) -> None:
    first, second = two(kit, server)
    spoil(kit, second)
    with kit.on():
        assert kit.running == first.digest  # at once, without a network
    kit.look()
    assert (kit.running, slots(kit).before()) == (second.digest, first.digest)
    assert slots(kit).is_complete(second.release)
    reason = (
        "the running release is not what was signed any more; "
        "the one before it runs until it is installed again"
    )
    assert kit.told()[2:] == [("failed", reason), ("committed", "")]


def test_it_is_found_in_a_running_agent_when_it_is_due(kit: Kit, server: FakeServer) -> None:
    _, second = two(kit, server)
    with kit.on() as updates:
        updates.look()
        spoil(kit, second)
        kit.steady_s += updates.policy.scrub_s - 1
        updates.look()
        assert len(kit.told()) == 2
        kit.steady_s += 1
        updates.look()
    assert [outcome for outcome, _ in kit.told()[2:]] == ["failed", "committed"]
    assert slots(kit).is_complete(second.release)


def test_an_owner_may_want_it_at_the_start_alone(kit: Kit, server: FakeServer) -> None:
    _, second = two(kit, server)
    kit.policy = type(kit.policy)(release=("auto",), scrub_s=0.0)
    with kit.on() as updates:
        updates.look()
        spoil(kit, second)
        kit.steady_s += 1e9
        updates.look()
        assert len(kit.told()) == 2


def test_the_release_to_go_back_to_is_mended_in_its_place(kit: Kit, server: FakeServer) -> None:
    first, second = two(kit, server)
    for name in ("model.onnx", "golden.npz"):
        spoil(kit, first, name)
    kit.look()
    assert slots(kit).is_complete(first.release)
    assert (kit.running, slots(kit).before()) == (second.digest, first.digest)
    told = "the release to go back to was damaged; fetched again: model.onnx, golden.npz"
    assert kit.told()[2:] == [("failed", told)]
    assert not list((kit.directory / "downloads").glob("*"))


def test_a_damaged_release_to_go_back_to_does_not_take_the_place_of_a_damaged_one(
    kit: Kit, server: FakeServer
) -> None:
    first, second = two(kit, server)
    spoil(kit, first)
    spoil(kit, second)
    with kit.on() as updates:
        assert kit.running == second.digest
        assert updates.damaged == second.digest
        updates.look()
    assert slots(kit).is_complete(second.release)
    assert slots(kit).is_complete(first.release)


def test_a_manifest_that_is_lost_is_told_once_a_day(kit: Kit, server: FakeServer) -> None:
    first, _ = two(kit, server)
    spoil(kit, first, "manifest.json")
    told = "the release to go back to is damaged, and so is its manifest: it is lost"
    for _ in range(2):
        kit.look()
        assert kit.told()[2:] == [("failed", told)]
    kit.late += timedelta(days=2)
    with kit.on() as updates, pytest.raises(RefusedError, match="expired"):
        updates.look()
    assert kit.told()[3] == ("failed", told)


def test_what_cannot_be_had_now_is_told_and_waits(kit: Kit, server: FakeServer) -> None:
    first, second = two(kit, server)
    spoil(kit, first)
    with kit.wired() as updates:

        def refuse(*_: object, **__: object) -> None:
            raise RefusedError("nobody has it")

        updates.releases.fetch = refuse  # type: ignore[method-assign]
        told = scrub_of(updates).mend_previous()
    assert told == (
        "the release to go back to is damaged and cannot be had again now: nobody has it"
    )
    assert (kit.running, slots(kit).before()) == (second.digest, first.digest)


def test_a_device_that_runs_nothing_has_nothing_to_scrub(kit: Kit) -> None:
    with kit.wired() as updates:
        scrub = scrub_of(updates)
        assert (scrub.running_damage(), scrub.mend_previous()) == ("", "")
        assert not scrub.step_back("")
