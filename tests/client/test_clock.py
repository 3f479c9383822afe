"""A device whose clock is wrong runs what it runs, and comes back when the clock does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.client_fakes import FakeServer, today
from tests.device_fakes import Bundle
from tests.update_fakes import Kit, offer

from wildflower.ota import canonical
from wildflower.ota.errors import RefusedError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


@pytest.fixture
def first(kit: Kit, server: FakeServer) -> Bundle:
    one = offer(server, 1)
    kit.look()
    return one


def set_clock(kit: Kit, moment: datetime) -> None:
    kit.late = moment - today()


def seen(kit: Kit) -> datetime:
    with kit.wired() as updates:
        return canonical.from_time(updates.journal.fact("seen-time"))


def test_in_1970_it_is_as_late_as_when_it_was_last_sure(
    kit: Kit, server: FakeServer, first: Bundle
) -> None:
    sure = seen(kit)
    set_clock(kit, datetime(1970, 1, 1, tzinfo=UTC))
    second = offer(server, 2)
    report = kit.look()[-1]
    assert kit.running == second.digest
    assert (report.at, seen(kit)) == (sure, sure)


def test_in_1970_what_has_expired_before_is_still_refused(
    kit: Kit, server: FakeServer, first: Bundle
) -> None:
    with kit.wired() as updates:  # it was online in a year, and what is served now is old
        year = canonical.to_time(today() + timedelta(days=365))
        updates.journal.set_fact("seen-time", year)
    set_clock(kit, datetime(1970, 1, 1, tzinfo=UTC))
    with pytest.raises(RefusedError, match="expired"):
        kit.look()


def test_a_new_device_in_1970_waits_for_the_time_at_which_it_may(
    kit: Kit, server: FakeServer
) -> None:
    set_clock(kit, datetime(1970, 1, 1, tzinfo=UTC))
    one = offer(server, 1)
    assert kit.look() == []
    kit.late = timedelta()
    kit.look()
    assert kit.running == one.digest


def test_in_2040_it_takes_nothing_runs_on_and_says_once_that_its_clock_is_suspect(
    kit: Kit, server: FakeServer, first: Bundle
) -> None:
    sure = seen(kit)
    second = offer(server, 2)
    for day in (1, 2, 3):
        set_clock(kit, datetime(2040, 1, day, tzinfo=UTC))
        with pytest.raises(RefusedError, match="expired"):
            kit.look()
    assert (kit.running, seen(kit)) == (first.digest, sure)
    (refused,) = kit.told()[1:]
    assert refused[0] == "refused"
    assert "(as of 2040-01-01" in refused[1]
    assert refused[1].endswith("; if others take it, the clock of this device is suspect")
    kit.late = timedelta()
    kit.look()
    assert kit.running == second.digest


def test_a_clock_that_is_set_back_by_hours_changes_nothing(
    kit: Kit, server: FakeServer, first: Bundle
) -> None:
    kit.late = timedelta(hours=12)
    kit.look()
    ahead = seen(kit)
    kit.late = timedelta(hours=-12)
    second = offer(server, 2)
    kit.look()
    assert (kit.running, seen(kit)) == (second.digest, ahead)


def test_after_months_offline_it_goes_on(kit: Kit, server: FakeServer) -> None:
    kit.late = timedelta(days=-200)
    first = offer(server, 1)
    kit.look()
    assert kit.running == first.digest
    second = offer(server, 2)
    kit.late = timedelta()
    kit.look()
    assert kit.running == second.digest


def test_after_months_without_news_what_runs_runs(
    kit: Kit, server: FakeServer, first: Bundle
) -> None:
    kit.late = timedelta(days=200)
    with pytest.raises(RefusedError, match="expired"):
        kit.look()
    assert kit.running == first.digest
