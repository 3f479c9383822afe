"""Releases that the owner's demands keep out, over real TLS, TUF metadata, files and trials."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance_fakes import METHOD, stating
from tests.client_fakes import FakeServer, today
from tests.device_fakes import Bundle
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.client.acceptance import rejection_of
from wildflower.client.examination import examine
from wildflower.client.policy import Policy, save_policy
from wildflower.ota.device.journal import Entry, Journal
from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import RefusedError
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.statement import statement_path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"), policy=demanding())


def demanding(**changes: Any) -> Policy:
    wanted: dict[str, Any] = {
        "max_epsilon": 3.0,
        "min_clients": 5,
        "strategies": ("secagg+fedavg", "he"),
    }
    return Policy(release=("auto", "approved"), **(wanted | changes))


def statements_asked(server: FakeServer) -> int:
    return sum(path.endswith(".provenance.json") for path in server.asked)


@pytest.mark.parametrize("role", ["auto", "approved"])
def test_a_release_that_was_made_as_demanded_is_installed(
    kit: Kit, server: FakeServer, role: str
) -> None:
    one = offer(server, 1, role=role, statement=stating(server, role))
    (report,) = kit.look()
    assert (report.outcome, kit.running) == (Outcome.COMMITTED, one.digest)
    asked = statements_asked(server)
    assert asked == 1
    kit.look()
    assert statements_asked(server) == asked  # an idle look costs no more than without demands


def test_without_demands_no_statement_is_fetched(kit: Kit, server: FakeServer) -> None:
    kit.policy = demanding(max_epsilon=0.0, min_clients=0, strategies=())
    one = offer(server, 1, statement=stating(server, survivors=1))
    kit.look()
    assert (kit.running, statements_asked(server)) == (one.digest, 0)


def refused(kit: Kit, server: FakeServer, good: Bundle, told: str) -> Entry:
    """Look twice; expect one refusal, no byte of the model, and the good release to run on."""
    before, asked = blobs_asked(server), statements_asked(server)
    report = kit.look()[-1]
    assert (report.outcome, report.rollout) == (Outcome.INCOMPATIBLE, "r2")
    assert told in report.reason
    assert "policy.toml" in report.reason
    assert report.running == good.release.artifact.digest
    cost = statements_asked(server) - asked
    assert kit.look()[-1] == report  # told once, not at every look
    assert statements_asked(server) - asked == cost
    assert (kit.running, blobs_asked(server)) == (good.digest, before)
    return report


@pytest.fixture
def good(kit: Kit, server: FakeServer) -> Bundle:
    """A release that runs on the device."""
    one = offer(server, 1, statement=stating(server))
    kit.look()
    return one


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"privacy": {"epsilon": 9.0, "delta": 1e-5}}, "epsilon: found 9, expected <= 3"),
        ({"privacy": {}}, "epsilon: found none told, expected <= 3"),
        ({"survivors": 4}, "devices in the model: found 4, expected >= 5"),
        (
            {"method": replace(METHOD, protection="plain")},
            "strategy: found plain+central+fedavg, expected one of secagg+fedavg, he",
        ),
        ({"method": None}, "strategy: found none told"),
    ],
)
def test_what_was_not_made_as_demanded_is_refused_and_told_once(
    kit: Kit, server: FakeServer, good: Bundle, changes: dict[str, Any], told: str
) -> None:
    evil = offer(server, 2, statement=stating(server, **changes))
    assert refused(kit, server, good, told).release == evil.digest


def test_a_release_without_a_statement_is_refused_and_told_once(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    offer(server, 2)
    refused(kit, server, good, "found no statement")


def test_another_rollout_of_it_is_told_again(kit: Kit, server: FakeServer, good: Bundle) -> None:
    """A rollout counts its own reports: one that hears nothing of a device would wait for it."""
    two = offer(server, 2, statement=stating(server, survivors=4))
    refused(kit, server, good, "found 4, expected >= 5")
    server.releases.roll_out(two, rollout="r3")
    told = [(one.rollout, one.outcome) for one in kit.look()[-2:]]
    assert told == [("r2", Outcome.INCOMPATIBLE), ("r3", Outcome.INCOMPATIBLE)]
    assert [one.rollout for one in kit.look()[-2:]] == ["r2", "r3"]


def test_the_doctor_says_what_is_refused_and_what_to_do(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    two = offer(server, 2, statement=stating(server, survivors=4))
    kit.look()
    save_policy(kit.policy, kit.directory)
    [check] = [one for one in examine(kit.directory, today()).checks if one.name == "provenance"]
    assert check.found.startswith(f"{two.digest[:12]} is not installed: provenance: devices in")
    assert "min_clients" in check.advice


def test_a_relaxed_policy_lets_it_in_at_once(kit: Kit, server: FakeServer, good: Bundle) -> None:
    two = offer(server, 2, statement=stating(server, survivors=4))
    refused(kit, server, good, "found 4, expected >= 5")
    kit.policy = demanding(min_clients=4)
    kit.look()
    assert kit.running == two.digest
    assert remembered(kit) is None


def test_a_refused_release_is_looked_at_again_a_day_later_and_not_told_again(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    offer(server, 2, statement=stating(server, survivors=4))
    refused(kit, server, good, "found 4, expected >= 5")
    asked, told = statements_asked(server), len(kit.told())
    kit.late = timedelta(hours=23)
    kit.look()
    assert statements_asked(server) == asked
    with kit.on() as updates:
        journal, rejection = updates.journal, rejection_of(updates.journal)
        assert rejection is not None
        past = replace(rejection, at=rejection.at - timedelta(hours=24))
        journal.set_fact("rejected", past.to_text())
        updates.look()
    assert statements_asked(server) == asked + 1
    assert len(kit.told()) == told


def test_the_next_release_that_is_as_demanded_is_installed(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    offer(server, 2, statement=stating(server, survivors=4))
    refused(kit, server, good, "found 4, expected >= 5")
    three = offer(server, 3, statement=stating(server))
    kit.look()
    assert kit.running == three.digest


def test_a_signed_statement_of_another_release_is_refused(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    other = good.release
    offer(server, 2, statement=lambda _: stating(server)(other))
    for _ in range(2):
        with pytest.raises(RefusedError, match="provenance of another manifest"):
            kit.look()
    assert kit.running == good.digest
    told = [reason for outcome, reason in kit.told() if outcome == "refused"]
    assert len(told) == 1
    assert "provenance of another manifest" in told[0]


def test_a_statement_that_was_tampered_with_is_refused(
    kit: Kit, server: FakeServer, good: Bundle
) -> None:
    two = offer(server, 2, statement=stating(server, survivors=4))
    path = statement_path(target_path("auto", two.release.target_group, 2))
    folder = server.releases.directory / "tuf" / "targets" / Path(path).parent
    [file] = folder.glob("*.2.provenance.json")
    genuine = file.read_bytes()
    lie = stating(server)(two.release)
    assert len(lie) == len(genuine)
    file.write_bytes(lie)
    with pytest.raises(RefusedError, match="wrong digest"):
        kit.look()
    assert kit.running == good.digest
    assert any("wrong digest" in reason for _, reason in kit.told())
    file.write_bytes(genuine)
    assert kit.look()[-1].outcome is Outcome.INCOMPATIBLE
    assert "found 4" in kit.told()[-1][1]


def test_a_statement_that_no_source_has_is_waited_for(
    kit: Kit, server: FakeServer, good: Bundle, tmp_path: Path
) -> None:
    two = offer(server, 2, statement=stating(server))
    folder = server.releases.directory / "tuf" / "targets" / "models" / "auto"
    [file] = folder.glob("*/*.2.provenance.json")
    shutil.move(file, tmp_path / "away")
    with pytest.raises(Exception, match="provenance"):
        kit.look()
    assert kit.running == good.digest
    shutil.move(tmp_path / "away", file)
    kit.look()
    assert kit.running == two.digest


def remembered(kit: Kit) -> Any:
    journal = Journal.peek(kit.directory / "journal.db")
    try:
        return rejection_of(journal)
    finally:
        journal.close()
