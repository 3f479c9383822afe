from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from tests.record_fakes import (
    AVX2,
    GENERIC,
    FakePublisher,
    SetClock,
    device,
    digest_of,
    release,
    report,
)
from tests.server_base_fakes import until

from wildflower.ota.errors import RolloutError
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order
from wildflower.ota.rollout.policy import Plan, Tally, staged
from wildflower.server.errors import ConflictError, NotFoundError, SignerError
from wildflower.server.events import ObservedStore
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Hint, HintKind, Presence
from wildflower.server.records import Device, ReleaseRecord, Rollout
from wildflower.server.rollouts import WAKE_S, RolloutRunner

GROUP = f"digits.{AVX2}"
OTHER = f"digits.{GENERIC}"
PLAN = staged([250, 1000], min_reports=1, max_failures=0, soak_s=0)


@dataclass
class World:
    """A fleet of eight devices of one class, and a release for it."""

    store: ObservedStore
    publisher: FakePublisher
    presence: Presence
    clock: SetClock
    fleet: list[Device]
    release: ReleaseRecord
    drawn: int = field(default=0)

    def entropy(self, count: int) -> bytes:
        """Return bytes that are never the same twice, and the same in every run."""
        self.drawn += 1
        return bytes([self.drawn]) * count

    def runner(self) -> RolloutRunner:
        """Return a runner, as a server's start makes it."""
        return RolloutRunner(
            store=self.store,
            bus=self.store.bus,
            publisher=self.publisher,
            presence=self.presence,
            now=self.clock,
            entropy=self.entropy,
        )

    def rollout(self) -> Rollout:
        return self.store.all(Rollout)[-1]

    def admitted(self, fleet: Sequence[Device], group: str = GROUP) -> list[Device]:
        """Return the devices that the latest document of a group lets in."""
        latest = [one for one in self.publisher.documents if one.target_group == group][-1]
        salt = bytes.fromhex(latest.salt)
        return [one for one in fleet if is_admitted(salt, one.device_id, latest.permille)]

    def reports(self, one: Device, outcome: str, sequence: int = 1, **fields: object) -> None:
        told: dict[str, object] = {
            "rollout": self.rollout().rollout_id,
            "release": self.release.digest,
            "running": self.release.artifact if outcome == "committed" else "",
        }
        self.store.put(report(one, outcome, sequence, **(told | fields)))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


@pytest.fixture
def world() -> World:
    clock = SetClock()
    store = ObservedStore(MemoryStore(), clock)
    fleet = [device(f"device-{number}") for number in range(8)]
    one = release("release")
    store.put(*fleet, one)
    return World(store, FakePublisher(), Presence(), clock, fleet, one)


def test_a_rollout_goes_from_canaries_to_all_on_what_devices_signed(world: World) -> None:
    runner = world.runner()
    made = runner.create(["latest"], PLAN)
    runner.run_pending()
    assert world.publisher.orders() == [(GROUP, Order.INSTALL, 250)]
    canaries = world.admitted(world.fleet)
    assert 1 <= len(canaries) <= 2
    world.reports(canaries[0], "committed")
    runner.run_pending()
    assert world.publisher.orders()[1:] == [(GROUP, Order.INSTALL, 1000)]
    assert world.admitted(world.fleet) == world.fleet
    runner.run_pending()
    done = world.rollout()
    assert (done.rollout_id, done.phase, done.finished_at) == (
        made.rollout_id,
        "done",
        world.clock.moment,
    )
    assert world.kinds()[0] == "rollout.created"
    assert world.kinds()[-1] == "rollout.done"
    assert {one.salt for one in world.publisher.documents} == {world.publisher.documents[0].salt}
    assert {one.release for one in world.publisher.documents} == {world.release.digest}


def test_every_target_group_gets_a_document_and_must_be_heard(world: World) -> None:
    small = device("small", device_class=GENERIC)
    fits = release("release for small", device_class=GENERIC, artifact=digest_of("small"))
    world.store.put(small, fits)
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    assert world.publisher.orders() == [(GROUP, Order.INSTALL, 250), (OTHER, Order.INSTALL, 250)]
    world.reports(world.admitted(world.fleet)[0], "committed")
    runner.run_pending()
    assert len(world.publisher.documents) == 2, "the other group has said nothing"
    world.reports(small, "committed", release=fits.digest, running=fits.artifact)
    runner.run_pending()
    assert [permille for _, _, permille in world.publisher.orders()[2:]] == [1000, 1000]


def test_devices_of_the_groups_are_told_to_look(world: World) -> None:
    other = device("other", device_class=GENERIC)
    world.store.put(other)
    watchers = [world.presence.attach(one.device_id, lambda: None) for one in world.fleet]
    elsewhere = world.presence.attach(other.device_id, lambda: None)
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    assert [world.presence.take(one) for one in watchers] == [[Hint(HintKind.RELEASE)]] * 8
    assert world.presence.take(elsewhere) == []


@pytest.mark.parametrize("outcome", ["rolled-back", "failed"])
def test_one_failure_too_many_sends_every_device_back(world: World, outcome: str) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    world.reports(world.admitted(world.fleet)[0], outcome)
    runner.run_pending()
    assert world.publisher.orders()[1:] == [(GROUP, Order.ROLL_BACK, 250)]
    ended = world.rollout()
    assert (ended.phase, ended.reason) == (
        "aborted",
        f"1 failures, 0 tolerated: 1 in {GROUP}",
    )
    assert world.store.events()[-1].fields["reason"] == ended.reason


def test_a_failure_that_is_tolerated_ends_nothing(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], staged([1000], min_reports=2, max_failures=1, soak_s=0))
    runner.run_pending()
    world.reports(world.fleet[0], "rolled-back")
    runner.run_pending()
    assert world.rollout().phase == "running"
    world.reports(world.fleet[1], "committed")
    runner.run_pending()
    assert world.rollout().phase == "done"


def test_reports_of_another_rollout_count_nothing(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    for number, one in enumerate(world.fleet):
        world.reports(one, "rolled-back", rollout=f"another-{number}")
    runner.run_pending()
    assert world.rollout().phase == "running"
    assert runner.progress(world.rollout())[0].tally == Tally()


def test_what_one_mirror_served_counts_nothing(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    for one in world.fleet:
        world.reports(one, "refused", 1, rollout="")
    runner.run_pending()
    assert world.rollout().phase == "running"
    assert runner.progress(world.rollout())[0].tally == Tally()


def test_a_release_that_no_source_has_as_signed_stops_its_rollout(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    for one in world.admitted(world.fleet):
        world.reports(one, "refused", 1)
    runner.run_pending()
    assert world.rollout().phase == "aborted"


def test_the_latest_report_of_a_device_counts_and_it_counts_once(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], staged([1000], min_reports=8, max_failures=8, soak_s=0))
    runner.run_pending()
    world.reports(world.fleet[0], "rolled-back", 10)
    world.reports(world.fleet[0], "committed", 9)
    assert runner.progress(world.rollout())[0].tally == Tally(failed=1)


def test_devices_outside_the_stage_count_nothing(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    canaries = world.admitted(world.fleet)
    for one in world.fleet:
        if one not in canaries:
            world.reports(one, "rolled-back")
    runner.run_pending()
    assert world.rollout().phase == "running"
    [progress] = runner.progress(world.rollout())
    assert (progress.target_group, progress.reach) == (GROUP, len(canaries))
    assert progress.tally == Tally()


def test_revoked_devices_are_not_waited_for_and_count_nothing(world: World) -> None:
    world.store.put(*(replace(one, revoked=True) for one in world.fleet[1:]))
    runner = world.runner()
    runner.create(["latest"], staged([1000], min_reports=8, max_failures=0, soak_s=0))
    runner.run_pending()
    world.reports(world.fleet[1], "failed")
    world.reports(world.fleet[0], "committed")
    runner.run_pending()
    assert world.rollout().phase == "done"


def test_devices_that_committed_the_release_before_have_nothing_to_say(world: World) -> None:
    for one in world.fleet:
        world.store.change(Device, one.device_id, running=world.release.artifact)
        told = {"rollout": "earlier", "release": world.release.digest}
        world.store.put(report(one, "committed", 1, running=world.release.artifact, **told))
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    assert world.rollout().phase == "done"


def test_the_same_file_under_another_release_is_tried_again(world: World) -> None:
    for one in world.fleet:
        world.store.change(Device, one.device_id, running=world.release.artifact)
        told = {"rollout": "earlier", "release": world.release.digest}
        world.store.put(report(one, "committed", 1, running=world.release.artifact, **told))
    world.store.put(replace(world.release, digest=digest_of("newer"), order=2))
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    assert world.rollout().releases == (digest_of("newer"),)
    assert world.rollout().phase == "running"
    assert runner.progress(world.rollout())[0].tally == Tally()


def test_what_a_device_says_now_outweighs_what_it_ran_before(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    runner.run_pending()
    canary = world.admitted(world.fleet)[0]
    world.store.change(Device, canary.device_id, running=world.release.artifact)
    world.reports(canary, "committed", 1, rollout="earlier")
    world.reports(canary, "rolled-back", 2)
    assert runner.progress(world.rollout())[0].tally == Tally(failed=1)


def test_a_stage_is_watched_for_its_time_and_not_longer(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], staged([500, 1000], min_reports=1, max_failures=0, soak_s=10))
    assert runner.run_pending() == WAKE_S
    world.reports(world.admitted(world.fleet)[0], "committed")
    assert runner.run_pending() == 10
    world.clock.pass_by(9)
    assert runner.run_pending() == 1
    assert len(world.publisher.documents) == 1
    world.clock.pass_by(1)
    runner.run_pending()
    assert [permille for _, _, permille in world.publisher.orders()] == [500, 1000]


def test_a_failure_while_a_stage_is_watched_ends_it(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], staged([1000], min_reports=1, max_failures=0, soak_s=10))
    runner.run_pending()
    world.reports(world.fleet[0], "committed")
    runner.run_pending()
    assert world.rollout().phase == "soaking"
    world.reports(world.fleet[1], "failed")
    runner.run_pending()
    assert world.publisher.orders()[-1] == (GROUP, Order.ROLL_BACK, 1000)


@pytest.mark.parametrize("restarts_after", range(4))
def test_a_restart_anywhere_goes_on_from_what_is_stored(world: World, restarts_after: int) -> None:
    runner = world.runner()
    for step in range(4):
        if step == 0:
            runner.create(["latest"], PLAN)
        else:
            runner.run_pending()
        if step == 1:
            world.reports(world.admitted(world.fleet)[0], "committed")
        if step == restarts_after:
            runner = world.runner()
    runner.run_pending()
    assert world.rollout().phase == "done"
    assert [permille for _, _, permille in world.publisher.orders()] == [250, 1000]
    assert len({one.salt for one in world.publisher.documents}) == 1


def test_a_stage_whose_publication_failed_is_published_after_a_restart(world: World) -> None:
    runner = world.runner()
    runner.create(["latest"], PLAN)
    world.publisher.refusal = "the disk is full"
    with pytest.raises(SignerError):
        runner.run_pending()
    assert world.rollout().phase == "widening"
    world.publisher.refusal = ""
    world.runner().run_pending()
    assert world.publisher.orders() == [(GROUP, Order.INSTALL, 250)]


def test_two_rollouts_never_reach_one_group(world: World) -> None:
    world.store.put(release("small", device_class=GENERIC, artifact=digest_of("small")))
    runner = world.runner()
    first = runner.create([world.release.digest], PLAN)
    with pytest.raises(ConflictError, match=GROUP) as caught:
        runner.create(["latest"], PLAN)
    assert first.rollout_id in caught.value.hint
    assert len(world.store.all(Rollout)) == 1
    runner.abort(first.rollout_id, "enough", roll_back=False)
    runner.run_pending()
    runner.create(["latest"], PLAN)
    assert [record.phase for record in world.store.all(Rollout)] == ["aborted", "drawing"]


def test_rollouts_of_two_groups_run_side_by_side(world: World) -> None:
    small = release("small", device_class=GENERIC, artifact=digest_of("small"))
    world.store.put(small, device("small", device_class=GENERIC))
    runner = world.runner()
    runner.create([world.release.digest], PLAN)
    runner.create([small.digest[:6]], PLAN)
    runner.run_pending()
    assert sorted(world.publisher.orders()) == [
        (OTHER, Order.INSTALL, 250),
        (GROUP, Order.INSTALL, 250),
    ]


@pytest.mark.parametrize(
    ("roll_back", "order"), [(True, Order.ROLL_BACK), (False, Order.PAUSE)], ids=["back", "pause"]
)
def test_an_operator_ends_a_rollout_as_asked(world: World, roll_back: bool, order: Order) -> None:
    runner = world.runner()
    made = runner.create(["latest"], PLAN)
    runner.run_pending()
    runner.abort(made.rollout_id, "a bad day", roll_back=roll_back)
    runner.run_pending()
    assert world.publisher.orders()[-1] == (GROUP, order, 250)
    assert (world.rollout().phase, world.rollout().reason) == ("aborted", "a bad day")
    with pytest.raises(RolloutError, match="aborted"):
        runner.abort(made.rollout_id, "again")


def test_a_rollout_that_is_done_can_still_be_taken_back(world: World) -> None:
    runner = world.runner()
    made = runner.create(["latest"], staged([1000], min_reports=0, max_failures=0, soak_s=0))
    runner.run_pending()
    assert world.rollout().phase == "done"
    runner.abort(made.rollout_id, "a bug")
    runner.run_pending()
    assert world.publisher.orders()[-1] == (GROUP, Order.ROLL_BACK, 1000)
    assert world.rollout().phase == "aborted"


def test_what_is_not_known_cannot_be_ended(world: World) -> None:
    with pytest.raises(NotFoundError, match="abc"):
        world.runner().abort("abc", "why")


def test_latest_is_the_newest_of_each_group_and_role(world: World) -> None:
    newer = release("newer", order=5)
    approved = release("approved", order=3, role="approved")
    world.store.put(newer, approved)
    plan = Plan(PLAN.stages)
    assert world.runner().create(["latest:approved"], plan).releases == (approved.digest,)
    world.runner().abort(world.rollout().rollout_id, "enough", roll_back=False)
    world.runner().run_pending()
    assert world.runner().create(["latest"], plan).releases == (newer.digest,)


@pytest.mark.parametrize("name", ["latest:none", "nothing", "", "ab"])
def test_a_release_that_is_none_is_not_found(world: World, name: str) -> None:
    with pytest.raises(NotFoundError, match="no release"):
        world.runner().create([name], PLAN)
    assert world.store.all(Rollout) == []


def test_a_group_is_not_named_twice(world: World) -> None:
    with pytest.raises(RolloutError, match="once"):
        world.runner().create(["latest", world.release.digest], PLAN)
    assert world.store.all(Rollout) == []


def test_the_thread_follows_reports_as_they_come(world: World) -> None:
    with world.runner() as runner:
        runner.create(["latest"], PLAN)
        until(lambda: world.store.all(Rollout)[-1].phase == "running")
        world.reports(world.admitted(world.fleet)[0], "committed")
        until(lambda: world.rollout().phase == "done")
    assert [permille for _, _, permille in world.publisher.orders()] == [250, 1000]


def test_a_start_counts_only_publications_that_are_owed(world: World) -> None:
    first = world.runner()
    first.create(["latest"], PLAN)
    first.run_pending()
    waiting = world.rollout().state
    with world.runner():
        until(lambda: world.store.bus.changes > 0)
    assert world.rollout().state == waiting
