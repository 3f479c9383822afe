"""Effects one by one: each may be repeated, and what cannot be done is told as what it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.device_fakes import NOON, Bundle, bundle, document, golden_of
from tests.slots_fakes import scaling_model

from wildflower.client.config import AgentConfig
from wildflower.client.fetcher import Fetcher, running_artifact
from wildflower.client.spending import BUDGET_MORE, BUDGET_TIMES
from wildflower.ota.device import shell
from wildflower.ota.device.decision import Standing
from wildflower.ota.device.effects import (
    Commit,
    Confirm,
    Discard,
    Effect,
    Fetch,
    Qualify,
    Quarantine,
    Report,
    RollBack,
    Stage,
    Switch,
    Try,
    Verify,
)
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import (
    Done,
    Event,
    Failed,
    Offered,
    Paused,
    Phase,
    State,
    Switched,
    Withdrawn,
)
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, PostponedError, RefusedError, StorageError
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.rollout.document import Order, RolloutDocument

ONE, TWO = bundle(1), bundle(2, scale=2.0)


@dataclass
class Shelf:
    """Releases from memory; it may lose files, lie, be closed, and cost bytes for nothing."""

    blobs: dict[str, bytes] = field(default_factory=lambda: {**ONE.blobs, **TWO.blobs})
    found: RolloutDocument | None = None
    error: Exception | None = None
    fetched: list[str] = field(default_factory=list)
    costs: int = 0

    def refresh(self) -> None:
        if self.error:
            raise self.error

    def rollout(self, target_group: str) -> RolloutDocument | None:
        return self.found if self.found and self.found.target_group == target_group else None

    def fetch(
        self,
        entry: FileEntry,
        destination: Path,
        *,
        should_stop: Callable[[], bool],
        budget: ByteBudget | None,
    ) -> None:
        if budget is not None and self.costs:
            budget.spend(self.costs)
            raise FetchError("cut")
        self.refresh()
        self.fetched.append(entry.name)
        destination.write_bytes(self.blobs[entry.digest])


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def fetcher(tmp_path: Path, shelf: Shelf) -> Iterator[Fetcher]:
    journal = Journal.open(tmp_path / "journal.db", now=NOON)
    yield Fetcher(
        config=AgentConfig(device_id="ab" * 32, device_class="linux-generic", directory=tmp_path),
        journal=journal,
        slots=Slots(tmp_path / "slots"),
        releases=shelf,
        standing=lambda: Standing("ab" * 32, "linux-generic", highest_order=1),
        watch=lambda _: Done(),
        now=lambda: NOON,
        should_stop=lambda: False,
    )
    journal.close()


def prepare(fetcher: Fetcher, one: Bundle, *, until: type[Effect] = Try) -> None:
    """Carry out what comes before an effect."""
    for kind in (Qualify, Fetch, Verify, Stage):
        if kind is until:
            return
        assert fetcher.run(kind(one.release)) == Done()


def look(fetcher: Fetcher) -> Event | PostponedError:
    try:
        return fetcher.run(Fetch(ONE.release))
    except PostponedError as error:
        return error


def commit(fetcher: Fetcher, *ones: Bundle) -> None:
    for one in ones:
        prepare(fetcher, one)
        assert fetcher.run(Switch(one.release)) == Switched(NOON)
        assert fetcher.run(Commit(one.release)) == Done()


@pytest.mark.parametrize("kind", [Qualify, Fetch, Verify, Stage, Try, Commit, RollBack, Discard])
def test_an_effect_that_is_repeated_changes_nothing(fetcher: Fetcher, kind: type[Effect]) -> None:
    commit(fetcher, ONE)
    prepare(fetcher, TWO, until=kind)
    effect = kind(TWO.release)  # type: ignore[call-arg]  # those that need a release alone
    assert fetcher.run(effect) == Done()
    once = sorted(str(path) for path in fetcher.slots.root.rglob("*"))
    assert fetcher.run(effect) == Done()
    assert sorted(str(path) for path in fetcher.slots.root.rglob("*")) == once


def test_a_file_that_is_there_is_not_fetched_again(fetcher: Fetcher, shelf: Shelf) -> None:
    prepare(fetcher, ONE, until=Verify)
    fetcher.run(Fetch(ONE.release))
    assert sorted(shelf.fetched) == ["baseline.json", "golden.npz", "model.onnx"]


def test_what_is_not_for_this_device_is_told(fetcher: Fetcher) -> None:
    other = replace(ONE.release, requires=replace(ONE.release.requires, device_class="other"))
    found = fetcher.run(Qualify(other))
    assert found == Failed(
        Outcome.INCOMPATIBLE, "device class: found linux-generic, expected other"
    )


@pytest.mark.parametrize("effect", [Fetch(ONE.release), Confirm(ONE.release, "r1")])
def test_without_a_network_an_effect_is_postponed(
    fetcher: Fetcher, shelf: Shelf, effect: Effect
) -> None:
    shelf.error = FetchError("no route")
    with pytest.raises(PostponedError, match="no route"):
        fetcher.run(effect)


def test_sources_that_lie_fail_the_attempt(fetcher: Fetcher, shelf: Shelf) -> None:
    shelf.error = RefusedError("wrong digest")
    assert fetcher.run(Fetch(ONE.release)) == Failed(Outcome.REFUSED, "wrong digest")


def test_what_an_attempt_costs_is_counted_over_restarts_and_is_bounded(
    fetcher: Fetcher, shelf: Shelf
) -> None:
    """A source sends the same bytes again and again, and the device starts again and again."""
    length = sum(entry.length for entry in ONE.release.files)
    shelf.costs = BUDGET_MORE * 2 // 5
    events = [look(fetcher) for _ in range(3)]
    assert [type(event) for event in events] == [PostponedError, PostponedError, Failed]
    assert events[-1] == Failed(
        Outcome.FAILED,
        f"{3 * shelf.costs} bytes have come for this update, allowed are "
        f"{BUDGET_TIMES * length + BUDGET_MORE}. A source sends the same bytes again and again; "
        "what has arrived is kept.",
    )


def test_another_attempt_has_a_budget_of_its_own(fetcher: Fetcher, shelf: Shelf) -> None:
    fetcher.journal.save(State(Phase.FETCHING, ONE.release, attempt=1))
    fetcher.journal.set_fact("spent", f"1 {10**9}")
    shelf.costs = 1
    assert isinstance(look(fetcher), Failed)
    fetcher.journal.save(State(Phase.FETCHING, ONE.release, attempt=2))
    assert isinstance(look(fetcher), PostponedError)
    assert fetcher.journal.fact("spent") == "2 1"


def test_a_full_disk_fails_the_attempt_and_says_what_to_do(fetcher: Fetcher, shelf: Shelf) -> None:
    shelf.error = StorageError("disk full", hint="Free 5 bytes.")
    assert fetcher.run(Fetch(ONE.release)) == Failed(Outcome.FAILED, "disk full. Free 5 bytes.")


def test_a_directory_that_cannot_be_made_is_told(fetcher: Fetcher) -> None:
    fetcher.downloads.write_text("in the way")
    found = fetcher.run(Fetch(ONE.release))
    assert isinstance(found, Failed)
    assert "cannot write in" in found.reason


def test_a_byte_that_changed_before_staging_fails_and_is_fetched_again(
    fetcher: Fetcher, shelf: Shelf
) -> None:
    prepare(fetcher, ONE, until=Verify)
    victim = fetcher.downloads / ONE.release.artifact.digest
    victim.write_bytes(b"x")
    for effect in (Stage(ONE.release), Verify(ONE.release)):
        found = fetcher.run(effect)
        assert isinstance(found, Failed)
        assert (found.outcome, "changed on this device" in found.reason) == (Outcome.FAILED, True)
    assert not victim.exists()
    fetcher.run(Fetch(ONE.release))
    assert fetcher.run(Verify(ONE.release)) == Done()


NEWS: dict[str, tuple[RolloutDocument | None, Event]] = {
    "stands": (document(ONE.release), Done()),
    "paused": (document(ONE.release, order=Order.PAUSE), Paused()),
    "superseded": (document(TWO.release), Withdrawn()),
    "gone": (None, Withdrawn()),
}


@pytest.mark.parametrize(("found", "event"), NEWS.values(), ids=NEWS)
def test_a_rollout_is_looked_at_once_more_before_the_trial(
    fetcher: Fetcher, shelf: Shelf, found: RolloutDocument | None, event: Event
) -> None:
    fetcher.journal.save(State(Phase.STAGED, ONE.release, "r1", attempt=1))
    shelf.found = found
    assert fetcher.run(Confirm(ONE.release, "r1")) == event


def test_a_trial_that_fails_says_found_and_allowed(fetcher: Fetcher, shelf: Shelf) -> None:
    evil = bundle(3, golden=golden_of(scaling_model(1.0), sign=-1.0))
    shelf.blobs |= evil.blobs
    prepare(fetcher, evil)
    found = fetcher.run(Try(evil.release))
    assert isinstance(found, Failed)
    assert found.outcome is Outcome.ROLLED_BACK
    assert found.reason.startswith("golden outputs differ by ")


def test_a_commit_moves_the_pointer_raises_the_order_and_cleans_up(fetcher: Fetcher) -> None:
    fetcher.journal.set_back(TWO.digest, 1, NOON)
    commit(fetcher, ONE, TWO)
    assert (fetcher.slots.running(), fetcher.slots.before()) == (TWO.digest, ONE.digest)
    assert fetcher.journal.highest_order(TWO.release.target_group) == 2
    assert fetcher.journal.setbacks() == {}
    assert not fetcher.downloads.exists()
    assert running_artifact(fetcher.slots) == TWO.release.artifact.digest


def test_a_quarantined_release_is_left_and_remembered(fetcher: Fetcher) -> None:
    commit(fetcher, ONE)
    prepare(fetcher, TWO)
    fetcher.run(Quarantine(TWO.release, "it crashed"))
    fetcher.run(RollBack(TWO.release))
    assert fetcher.journal.quarantined() == {TWO.digest: "it crashed"}
    assert fetcher.slots.running() == ONE.digest
    assert not fetcher.slots.path(TWO.digest).exists()


def report(outcome: Outcome, attempt: int) -> Report:
    return Report(ONE.release, "r1", attempt, outcome, "why")


def test_a_report_is_queued_once_for_each_attempt(fetcher: Fetcher) -> None:
    for attempt in (1, 1, 2):
        fetcher.run(report(Outcome.FAILED, attempt))
    assert [entry.key for entry in fetcher.journal.reports()] == ["attempt/1", "attempt/2"]
    assert fetcher.journal.setbacks()[ONE.digest].count == 2


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.INCOMPATIBLE])
def test_what_is_not_for_this_device_is_told_once_however_often_it_is_looked_at(
    fetcher: Fetcher, outcome: Outcome
) -> None:
    for attempt in (1, 2, 3):
        fetcher.run(report(outcome, attempt))
    fetcher.run(replace(report(outcome, 4), rollout="r2"))
    assert [entry.rollout for entry in fetcher.journal.reports()] == ["r1", "r2"]
    assert fetcher.journal.setbacks()[ONE.digest].count == 4


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.ROLLED_BACK])
def test_what_ended_well_or_for_ever_is_no_setback(fetcher: Fetcher, outcome: Outcome) -> None:
    fetcher.run(report(outcome, 1))
    assert fetcher.journal.setbacks() == {}
    assert fetcher.journal.reports()[0].outcome is outcome


def test_what_must_not_fail_waits_for_the_disk(fetcher: Fetcher) -> None:
    fetcher.journal._connection.execute("PRAGMA query_only = ON")  # as a read-only disk does
    with pytest.raises(StorageError, match="cannot be written"):
        fetcher.run(Quarantine(ONE.release, "why"))


def test_what_lies_in_downloads_and_half_built_slots_is_progress(fetcher: Fetcher) -> None:
    assert fetcher.received() == 0
    prepare(fetcher, ONE, until=Verify)
    lengths = sum(entry.length for entry in ONE.release.files)
    assert fetcher.received() == lengths
    half = fetcher.slots.root / f".{ONE.digest}.partial"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"12345")
    assert fetcher.received() == lengths + 5


def test_an_offer_is_carried_out_by_the_machine_alone(fetcher: Fetcher, shelf: Shelf) -> None:
    shelf.found = document(ONE.release)
    shell.handle(fetcher.journal, fetcher.run, Offered(ONE.release, "r1"))
    assert fetcher.slots.running() == ONE.digest
    assert fetcher.journal.load() == State(attempt=1)
