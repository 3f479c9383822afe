"""Updates from look to report, over real TLS, TUF metadata, files and trials."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.client_fakes import FakeServer, today
from tests.device_fakes import Bundle, bundle, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.client.errors import ConfigError
from wildflower.client.fetcher import Fetcher
from wildflower.client.policy import Policy
from wildflower.ota.device.effects import Effect
from wildflower.ota.device.machine import Event, Phase
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, RefusedError
from wildflower.ota.rollout.document import Order
from wildflower.simulation.local.mirror import HostileMirror, Lie

LATER = timedelta(minutes=6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


def bad(server: FakeServer, order: int) -> Bundle:
    """Offer a release whose golden outputs are another model's."""
    golden = golden_of(scaling_model(float(order)), off=0.5)
    return offer(server, order, golden=golden)


def test_nothing_happens_before_the_first_rollout(kit: Kit) -> None:
    assert kit.look() == []
    assert kit.running == ""


def test_a_release_is_installed_and_reported(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    (report,) = kit.look()
    assert kit.running == one.digest
    assert (report.outcome, report.rollout, report.release) == (
        Outcome.COMMITTED,
        "r1",
        one.digest,
    )
    assert report.running == one.release.artifact.digest
    assert Slots(kit.directory / "slots").is_complete(one.release)
    assert not (kit.directory / "downloads").exists()


def test_what_runs_is_not_fetched_again(kit: Kit, server: FakeServer) -> None:
    offer(server, 1)
    kit.look()
    before = blobs_asked(server)
    assert len(kit.look()) == 1
    assert blobs_asked(server) == before


def test_a_second_release_keeps_the_first_to_go_back_to(kit: Kit, server: FakeServer) -> None:
    first = offer(server, 1)
    kit.look()
    second = offer(server, 2)
    kit.look()
    slots = Slots(kit.directory / "slots")
    assert (slots.running(), slots.before()) == (second.digest, first.digest)


def test_the_model_in_the_settings_chooses_the_group(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    kit.changes = {"model": "other"}
    assert kit.look() == []
    kit.changes = {"model": "light"}
    kit.look()
    assert kit.running == one.digest


def test_several_models_need_a_choice(kit: Kit, server: FakeServer) -> None:
    offer(server, 1)
    offer(server, 1, model_name="other", target_group="other.linux-generic")
    with pytest.raises(ConfigError, match="several models"):
        kit.look()


def test_what_a_device_lacks_costs_no_byte_of_the_model(kit: Kit, server: FakeServer) -> None:
    one = bundle(1)
    requires = replace(one.release.requires, agent_min="99.0", ram_bytes=2**50)
    offer(server, 1, requires=requires)
    (report,) = kit.look()
    assert report.outcome is Outcome.INCOMPATIBLE
    assert "agent: found" in report.reason
    assert "expected >= 99.0; memory: found" in report.reason
    assert blobs_asked(server) == 0
    assert len(kit.look()) == 1  # told once, not at every look


def test_golden_outputs_that_differ_quarantine_the_release_for_ever(
    kit: Kit, server: FakeServer
) -> None:
    good = offer(server, 1)
    kit.look()
    evil = bad(server, 2)
    report = kit.look()[-1]
    assert (report.outcome, report.release) == (Outcome.ROLLED_BACK, evil.digest)
    assert report.reason == "golden outputs differ by 0.5, allowed 0.001"
    assert report.running == good.release.artifact.digest
    assert kit.running == good.digest
    kit.late = timedelta(hours=20)
    before = blobs_asked(server)
    assert len(kit.look()) == 2
    assert blobs_asked(server) == before
    assert not (kit.directory / "slots" / evil.digest).exists()


def test_a_flipped_byte_is_refused_before_staging_and_tried_again_later(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    server.faults.flipped.add(one.release.artifact.digest)
    outcomes = [entry.outcome for entry in kit.look()]
    assert set(outcomes) == {Outcome.REFUSED}
    assert kit.running == ""
    server.faults.flipped.clear()
    kit.look()
    assert kit.running == ""  # not at once: a fleet must not hammer a broken server
    kit.late = LATER
    assert kit.look()[-1].outcome is Outcome.COMMITTED
    assert kit.running == one.digest


@pytest.mark.parametrize("lie", Lie)
def test_a_mirror_that_lies_is_told_and_the_server_asked_instead(
    kit: Kit, server: FakeServer, lie: Lie, tmp_path: Path
) -> None:
    one = offer(server, 1)
    ca = str(kit.directory / "identity" / "ca.pem")
    with HostileMirror(lie, server.url, ca) as mirror:
        kit.changes = {"sources": (mirror.url,)}
        reports = kit.look()
        kit.look()
    assert kit.running == one.digest
    refused = [entry for entry in reports if entry.outcome is Outcome.REFUSED]
    assert refused
    assert all(entry.reason.startswith(mirror.url) for entry in refused)
    assert [entry.outcome for entry in reports].count(Outcome.COMMITTED) == 1
    assert len({entry.key for entry in reports}) == len(reports)


def test_a_connection_that_is_cut_again_and_again_is_resumed(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1, padding=400_000)
    edges = one.release.file("baseline")
    server.faults.cut[edges.digest] = 150_000
    kit.look()
    assert kit.running == one.digest
    assert 3 <= sum(path.endswith(edges.digest) for path in server.asked) <= 6


def test_without_a_network_the_update_waits_and_goes_on(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    server.releases.blobs.pop(one.release.artifact.digest)
    assert kit.look() == []
    with kit.wired() as updates:
        assert updates.journal.load().phase is Phase.FETCHING
    server.faults.down = True
    kit.look()
    server.faults.down = False
    server.releases.blobs |= one.blobs
    kit.look()
    assert kit.running == one.digest


def test_without_a_server_there_is_nothing_to_look_at(kit: Kit, server: FakeServer) -> None:
    server.faults.down = True
    with pytest.raises(FetchError, match="503"):
        kit.look()


def test_expired_metadata_installs_nothing_and_stops_nothing(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    kit.look()
    offer(server, 2)
    kit.late = timedelta(days=40)
    with pytest.raises(RefusedError, match="expired"):
        kit.look()
    assert kit.running == one.digest
    assert "expired" in kit.told()[-1][1]


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)


def test_a_disk_that_is_full_while_fetching_is_told_and_what_runs_goes_on(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = offer(server, 1)
    kit.look()
    second = offer(server, 2)
    with monkeypatch.context() as patch:
        fill(patch)
        report = kit.look()[-1]
    assert report.outcome is Outcome.FAILED
    assert report.reason.startswith("disk full at ")
    assert kit.running == first.digest
    kit.late = LATER
    kit.look()
    assert kit.running == second.digest


def test_too_little_space_is_told_before_a_byte_is_fetched(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, 1)
    usage = shutil.disk_usage(kit.directory)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        report = kit.look()[-1]
    assert report.outcome is Outcome.FAILED
    assert "1000 bytes are free" in report.reason
    assert blobs_asked(server) == 0


def test_a_byte_that_the_disk_changes_is_found_and_fetched_again(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    kit.stopped = True
    assert kit.look() == []
    kit.stopped = False
    downloads = kit.directory / "downloads"
    for entry in one.release.files:
        (downloads / entry.digest).write_bytes(b"\0" * entry.length)
    report = kit.look()[-1]
    assert report.outcome is Outcome.FAILED
    assert "changed on this device" in report.reason
    kit.late = LATER
    for entry in one.release.files[1:]:
        (downloads / entry.digest).unlink()
    kit.look()
    assert kit.running == one.digest


def test_a_paused_rollout_stops_what_is_not_tried_yet_and_resumes(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    kit.stopped = True
    kit.look()
    server.releases.roll_out(one, order=Order.PAUSE)
    kit.stopped = False
    kit.look()
    with kit.wired() as updates:
        assert updates.journal.load().phase is Phase.PAUSED
    kit.look()
    assert kit.running == ""
    server.releases.roll_out(one)
    kit.look()
    assert kit.running == one.digest


def test_a_withdrawn_release_leaves_nothing_behind(kit: Kit, server: FakeServer) -> None:
    offer(server, 1)
    kit.stopped = True
    kit.look()
    kit.stopped = False
    second = offer(server, 2)
    kit.look()
    assert kit.running == second.digest
    assert kit.told() == [("committed", "")]
    assert not (kit.directory / "downloads").exists()


def test_a_release_that_is_withdrawn_while_it_was_fetched_is_not_tried(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, 1)
    real = Fetcher._stage

    def slowly(fetcher: Fetcher, release: Any) -> Event:
        offer(server, 2)
        return real(fetcher, release)

    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "_stage", slowly)
        assert kit.look() == []
    assert kit.running == ""


def test_an_order_back_returns_to_the_slot_before(kit: Kit, server: FakeServer) -> None:
    first = offer(server, 1)
    kit.look()
    second = offer(server, 2)
    kit.look()
    server.releases.roll_out(second, order=Order.ROLL_BACK)
    report = kit.look()[-1]
    assert kit.running == first.digest
    assert (report.outcome, report.release) == (Outcome.ROLLED_BACK, second.digest)
    assert report.reason == "ordered back by rollout r2"
    assert len(kit.look()) == 3


def test_what_was_ordered_back_may_come_again(kit: Kit, server: FakeServer) -> None:
    offer(server, 1)
    kit.look()
    second = offer(server, 2)
    kit.look()
    server.releases.roll_out(second, order=Order.ROLL_BACK)
    kit.look()
    server.releases.roll_out(second)
    kit.look()
    assert kit.running == second.digest
    assert [outcome for outcome, _ in kit.told()] == [
        "committed",
        "committed",
        "rolled-back",
        "committed",
    ]


def test_a_device_with_nothing_to_go_back_to_says_so_once(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    kit.look()
    server.releases.roll_out(one, order=Order.ROLL_BACK)
    kit.look()
    kit.look()
    assert kit.running == one.digest
    assert kit.told()[1:] == [
        ("failed", "ordered back, but there is no earlier release to go back to")
    ]


def test_a_downgrade_by_the_online_key_is_refused(kit: Kit, server: FakeServer) -> None:
    first = offer(server, 1)
    second = offer(server, 2)
    kit.look()
    server.releases.roll_out(first)
    report = kit.look()[-1]
    assert report.outcome is Outcome.REFUSED
    assert report.reason == (
        "order 1 is below 2, which this device had; it goes back by a signed order alone"
    )
    assert kit.running == second.digest


def test_a_role_that_the_owner_does_not_accept_installs_nothing(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1, role="approved")
    kit.policy = Policy(release=("auto",))
    assert kit.look() == []
    kit.policy = Policy(release=("approved",))
    kit.look()
    assert kit.running == one.digest


def test_a_ramp_that_has_not_begun_holds_the_release_back(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1, not_before=today() + timedelta(hours=2))
    assert kit.look() == []
    kit.late = timedelta(hours=3)
    kit.look()
    assert kit.running == one.digest


def test_a_lost_journal_is_begun_anew_and_forgets_no_order(kit: Kit, server: FakeServer) -> None:
    first = offer(server, 1)
    second = offer(server, 2)
    kit.look()
    (kit.directory / "journal.db").write_bytes(b"torn" * 1000)
    server.releases.roll_out(first)
    report = kit.look()[-1]
    assert report.outcome is Outcome.REFUSED
    assert report.sequence > 1_000_000
    assert kit.running == second.digest


def test_a_running_release_that_the_disk_has_changed_is_installed_again(
    kit: Kit, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = offer(server, 1)
    kit.look()
    victim = kit.directory / "slots" / one.digest / "model.onnx"
    victim.chmod(0o644)
    victim.write_bytes(b"\0" * one.release.artifact.length)
    kit.look()
    assert "running release is damaged" in caplog.text
    assert Slots(kit.directory / "slots").is_complete(one.release)
    damage = ("failed", "the running release is not what was signed any more")
    assert kit.told() == [("committed", ""), damage, ("committed", "")]
    kit.look()
    assert len(kit.told()) == 3


class PowerCutError(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def cut(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> list[str]:
    """Cut the power at the n-th effect, before or after it is done; return what was begun."""
    real: Callable[[Fetcher, Effect], Event] = Fetcher.run
    begun: list[str] = []

    def run(fetcher: Fetcher, effect: Effect) -> Event:
        begun.append(type(effect).__name__)
        if len(begun) == number and not after:
            raise PowerCutError
        event = real(fetcher, effect)
        if len(begun) == number:
            raise PowerCutError
        return event

    monkeypatch.setattr(Fetcher, "run", run)
    return begun


PREPARE = ["Qualify", "Fetch", "Verify", "Stage", "Confirm"]
ORDER = [*PREPARE, "Try", "Switch", "Watch", "Commit", "Report"]


SAMPLE = [(2, False), (4, True), (6, True), (7, True), (9, True), (10, True)]
REST = [(n, after) for n in range(1, 11) for after in (False, True) if (n, after) not in SAMPLE]
CUTS = [*SAMPLE, *(pytest.param(*point, marks=pytest.mark.slow) for point in REST)]


@pytest.mark.parametrize(("number", "after"), CUTS)
def test_a_power_cut_at_any_effect_repeats_it_and_reports_once(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    first = offer(server, 1)
    kit.look()
    second = offer(server, 2)
    begun = cut(monkeypatch, number, after=after)
    with pytest.raises(PowerCutError), kit.on(cleanly=False) as updates:
        updates.look()
    assert kit.running in (first.digest, second.digest)
    with kit.on() as updates:
        updates.look()
    assert kit.running == second.digest
    assert list(dict.fromkeys(begun)) == ORDER
    assert [outcome for outcome, _ in kit.told()] == ["committed", "committed"]


@pytest.mark.parametrize("after", [False, True])
def test_a_power_cut_while_a_bad_release_is_left_reports_once(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    first = offer(server, 1)
    kit.look()
    evil = bad(server, 2)
    for number in (7, 8, 9):  # Quarantine, RollBack, Report
        with monkeypatch.context() as patch:
            begun = cut(patch, number if number == 7 else 2, after=after)
            try:
                kit.look()
            except PowerCutError:
                continue
            assert begun == [] or begun[-1] == "Report"
    kit.look()
    assert kit.running == first.digest
    assert [outcome for outcome, _ in kit.told()] == ["committed", "rolled-back"]
    with kit.wired() as updates:
        assert list(updates.journal.quarantined()) == [evil.digest]


def test_a_trial_that_ends_the_agent_twice_is_not_begun_a_third_time(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = offer(server, 1)

    def crash(*_: object) -> Event:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "_try", crash)
        for _ in range(2):
            with pytest.raises(PowerCutError), kit.on(cleanly=False) as updates:
                updates.look()
        kit.look()
    assert kit.running == ""
    assert kit.told() == [
        ("rolled-back", "the trial took the agent down, 2 times without progress")
    ]
    with kit.wired() as updates:
        assert list(updates.journal.quarantined()) == [one.digest]


def test_ending_in_good_order_counts_against_no_update(
    kit: Kit, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = offer(server, 1)
    real = Fetcher._run

    def stop_before_the_trial(fetcher: Fetcher, effect: Effect) -> Event:
        if type(effect).__name__ == "Try":
            raise FetchError("told to stop")
        return real(fetcher, effect)

    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "_run", stop_before_the_trial)
        for _ in range(4):
            kit.look()
    kit.look()
    assert kit.running == one.digest
