"""What the disk has changed is found, gives way, and is had again."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.client_fakes import FakeServer
from tests.device_fakes import Bundle
from tests.slots_fakes import WIDTH
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.client.doubt import raise_doubt, take_doubt
from wildflower.client.inference import ModelSlot
from wildflower.client.scrub import Scrub
from wildflower.client.spending import BUDGET_MORE, BUDGET_TIMES
from wildflower.client.updates import Updates
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import RefusedError
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.manifest import FileEntry


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
        slots=updates.slots,
        journal=updates.journal,
        releases=updates.releases,
        downloads=updates.config.directory / "downloads",
        now=updates.now,
        should_stop=lambda: False,
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


def test_what_an_application_will_not_load_is_looked_at_told_and_mended_in_the_next_turn(
    kit: Kit, server: FakeServer
) -> None:
    first, second = two(kit, server)
    inputs = np.zeros((1, WIDTH), np.float32)
    with kit.on() as updates, ModelSlot(kit.directory) as slot:
        updates.look()
        spoil(kit, second)
        assert slot.infer(inputs).release == first.digest  # it refused the one and took the other
        updates.look()  # long before the next scrub
        assert [outcome for outcome, _ in kit.told()[2:]] == ["failed", "committed"]
        assert slot.infer(inputs).release == second.digest
        updates.look()
        assert len(kit.told()) == 4
    assert not take_doubt(kit.directory)


def test_a_doubt_that_cannot_be_written_or_removed_is_none(tmp_path: Path) -> None:
    raise_doubt(tmp_path / "nowhere")
    (tmp_path / "doubted").mkdir()
    raise_doubt(tmp_path)
    assert not take_doubt(tmp_path)


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
        "the release to go back to is damaged and cannot be had again now: nobody has it; "
        "what runs goes on, and it is tried again"
    )
    assert (kit.running, slots(kit).before()) == (second.digest, first.digest)


def test_mending_waits_for_what_the_owner_allows_and_goes_on_when_it_does(
    kit: Kit, server: FakeServer
) -> None:
    first, _ = two(kit, server)
    spoil(kit, first)
    metered = "the network is metered"
    asked = blobs_asked(server)
    with kit.on() as updates:
        updates.why_wait = lambda is_model: metered if is_model else ""
        updates.look()
        assert (blobs_asked(server), slots(kit).is_complete(first.release)) == (asked, False)
        told = (
            f"the release to go back to is damaged and cannot be had again now: {metered}; "
            "what runs goes on, and it is tried again"
        )
        assert kit.told()[2:] == [("failed", told)]
        updates.look()
        assert kit.told()[3:] == []  # told once
        updates.why_wait = lambda _: ""
        updates.look()  # the next look, not the next scrub
    assert slots(kit).is_complete(first.release)
    told = "the release to go back to was damaged; fetched again: model.onnx"
    assert kit.told()[3:] == [("failed", told)]


def test_a_small_file_is_mended_over_a_network_on_which_no_whole_model_is_fetched(
    kit: Kit, server: FakeServer
) -> None:
    first, _ = two(kit, server)
    spoil(kit, first, "golden.npz")
    with kit.on() as updates:
        updates.why_wait = lambda is_model: "the network is metered" if is_model else ""
        updates.look()
    assert slots(kit).is_complete(first.release)


def test_mending_stops_in_mid_file_when_a_rule_begins_to_apply(
    kit: Kit, server: FakeServer
) -> None:
    first, _ = two(kit, server)
    spoil(kit, first)
    whys = iter(["", *["the battery is low"] * 99])
    with kit.on() as updates:
        updates.why_wait = lambda _: next(whys)
        updates.look()
        (_, told) = kit.told()[2]
        assert "stopped at byte" in told
        updates.why_wait = lambda _: ""
        updates.look()
    assert slots(kit).is_complete(first.release)


def test_a_source_that_lies_costs_a_bounded_number_of_bytes_a_day(
    kit: Kit, server: FakeServer
) -> None:
    first, _ = two(kit, server)
    lengths = sum(entry.length for entry in first.release.files)
    kit.policy = replace(kit.policy, scrub_s=1.0)
    with kit.on() as updates:
        updates.look()
        spoil(kit, first)
        came = BUDGET_MORE // 2

        def lie(entry: FileEntry, *_: object, budget: ByteBudget, **__: object) -> None:
            budget.spend(came)
            raise RefusedError(f"{entry.name}: wrong digest")

        updates.releases.fetch = lie  # type: ignore[method-assign, assignment]
        for _ in range(3):
            kit.steady_s += 2
            updates.look()
        allowed = BUDGET_TIMES * lengths + BUDGET_MORE
        assert [told for _, told in kit.told()[2:]] == [
            f"the release to go back to is damaged and cannot be had again now: {why}; "
            "what runs goes on, and it is tried again"
            for why in (
                "model.onnx: wrong digest",
                f"{3 * came} bytes have come for this update, allowed are {allowed}",
            )
        ]
        updates.journal.set_fact("mending", f"{first.digest[:16]}/2020-01-01 {10**9}")
        kit.steady_s += 2
        assert "wrong digest" in scrub_of(updates).mend_previous()  # another day's


def test_a_device_that_runs_nothing_has_nothing_to_scrub(kit: Kit) -> None:
    with kit.wired() as updates:
        scrub = scrub_of(updates)
        assert (scrub.running_damage(), scrub.mend_previous()) == ("", "")
        assert not scrub.step_back("")
