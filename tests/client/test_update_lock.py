"""What owners and applications keep out, on a real device with a real repository."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client_fakes import LONG_AGO, FakeServer
from tests.device_fakes import Bundle, bundle, document
from tests.update_fakes import Kit, blobs_asked

from wildflower.client.hold import Holds
from wildflower.client.owner import Owner, save_owner
from wildflower.client.policy import Policy
from wildflower.ota.device.machine import Phase
from wildflower.ota.errors import PostponedError
from wildflower.ota.rollout.document import Order

ROLES = ("auto", "approved")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


def offer(server: FakeServer, order: int) -> Bundle:
    one = bundle(order, scale=float(order), not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    return one


def order_back(server: FakeServer, one: Bundle) -> None:
    back = document(
        one.release, order=Order.ROLL_BACK, not_before=LONG_AGO, rollout=f"b{one.release.order}"
    )
    server.releases.put(back)


def test_a_hold_keeps_the_switch_waiting_and_nothing_else(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    with kit.on() as updates:
        with Holds(kit.directory).hold("measuring", max_s=60):
            updates.look()
            assert updates.journal.load().phase is Phase.PASSED  # fetched, staged and tried
            assert (kit.running, len(updates.lock.waiting)) == ("", 1)
            assert "measuring" in updates.lock.waiting[0]
            asked = len(server.asked)
            updates.go_on()
            assert kit.running == ""
        updates.go_on()
        assert (kit.running, updates.lock.waiting) == (one.digest, ())
        assert len(server.asked) == asked  # going on asks nobody


def test_a_device_that_is_restarted_meanwhile_still_waits(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    with Holds(kit.directory).hold("measuring", max_s=60):
        with kit.on(cleanly=False) as updates:
            updates.look()
        with kit.on() as updates:
            assert updates.lock.waiting
            assert kit.running == ""
    kit.look()
    assert kit.running == one.digest


def test_an_order_to_go_back_waits_for_nobody(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    kit.look()
    two = offer(server, 2)
    kit.look()
    assert kit.running == two.digest
    order_back(server, two)
    save_owner(Owner(paused="fair"), kit.directory)
    with Holds(kit.directory).hold("measuring", max_s=60):
        kit.look()
    assert kit.running == one.digest


def test_a_paused_device_asks_for_nothing_new(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    save_owner(Owner(paused="fair"), kit.directory)
    kit.look()
    assert (kit.running, blobs_asked(server)) == ("", 0)
    save_owner(Owner(), kit.directory)
    kit.look()
    assert kit.running == one.digest


def test_what_is_on_its_way_waits_for_the_owner_and_restarts_are_not_counted(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    model = server.releases.blobs.pop(one.release.artifact.digest)
    kit.look()
    server.releases.blobs[one.release.artifact.digest] = model
    save_owner(Owner(paused="fair"), kit.directory)
    for _ in range(8):
        with kit.on(cleanly=False) as updates:
            updates.look()
            assert updates.journal.load().phase is Phase.FETCHING
            assert updates.lock.waiting == ("paused on this device: fair",)
    save_owner(Owner(), kit.directory)
    kit.look()
    assert (kit.running, [outcome for outcome, _ in kit.told()]) == (one.digest, ["committed"])


def test_a_rollout_may_still_withdraw_what_the_owner_made_wait(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    server.releases.blobs.pop(one.release.artifact.digest)
    kit.look()
    save_owner(Owner(paused="fair"), kit.directory)
    order_back(server, one)
    with kit.on() as updates:
        updates.look()
        assert updates.journal.load().phase is Phase.IDLE


def test_a_pinned_device_installs_the_pinned_release_alone(kit: Kit, server: FakeServer) -> None:
    one = offer(server, 1)
    kit.look()
    save_owner(Owner(pinned=one.digest), kit.directory)
    two = offer(server, 2)
    kit.look()
    assert kit.running == one.digest
    save_owner(Owner(pinned=two.digest), kit.directory)
    kit.look()
    assert kit.running == two.digest


def test_a_damaged_release_is_repaired_though_paused_or_pinned(
    kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    kit.look()
    save_owner(Owner("fair", "ab" * 32), kit.directory)
    model = kit.directory / "slots" / one.digest / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(b"damaged")
    kit.look()
    assert model.read_bytes() == one.blobs[one.release.artifact.digest]


@pytest.mark.parametrize("pinned_recall", ["obey", "keep"])
def test_policy_decides_whether_a_pinned_release_can_be_ordered_back(
    kit: Kit, server: FakeServer, pinned_recall: str
) -> None:
    kit.policy = Policy(release=ROLES, pinned_recall=pinned_recall)
    one = offer(server, 1)
    kit.look()
    two = offer(server, 2)
    kit.look()
    save_owner(Owner(pinned=two.digest), kit.directory)
    order_back(server, two)
    kit.look()
    kit.look()
    expected, told = {
        "obey": (one.digest, ("rolled-back", "ordered back by rollout b2")),
        "keep": (two.digest, ("failed", "ordered back, but pinned by the device's owner")),
    }[pinned_recall]
    assert kit.running == expected
    assert kit.told()[2:] == [told]


def test_the_agent_is_not_restarted_while_somebody_holds(kit: Kit) -> None:
    restarts: list[str] = []
    with kit.wired() as updates:
        updates.restart = lambda: restarts.append("again")
        with (
            Holds(kit.directory).hold("measuring", max_s=60),
            pytest.raises(PostponedError, match="measuring"),
        ):
            updates._restart()
        assert (restarts, updates.lock.is_held) == ([], True)
        updates._restart()
        assert restarts == ["again"]


def test_a_paused_device_asks_for_no_software(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.policy, asked = Policy(release=ROLES, software=("labels",)), list[str]()
    with kit.on() as updates:
        monkeypatch.setattr(updates.releases, "software", asked.append)
        save_owner(Owner(paused="fair"), kit.directory)
        updates.look()
        assert asked == []
        save_owner(Owner(), kit.directory)
        updates.look()
        assert asked == ["labels"]


def test_a_decision_that_cannot_be_read_installs_nothing(kit: Kit, server: FakeServer) -> None:
    offer(server, 1)
    (kit.directory / "owner.json").write_text("{}")
    kit.look()
    assert kit.running == ""
