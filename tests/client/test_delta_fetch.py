"""Updates by delta: over real TLS, metadata and files, on a device that has the older model."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from tests.client_fakes import FakeServer
from tests.delta_fakes import bomb, delta_of, digest_of, model_of, offer_deltas, with_deltas
from tests.device_fakes import NOON, Bundle
from tests.update_fakes import Kit

from wildflower.client.delta_fetch import TRIES, DeltaFetch
from wildflower.client.policy import Policy
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import MARGIN, Slots
from wildflower.ota.errors import BudgetError, StoppedError
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.manifest import FileEntry

ROOT = Path(__file__).parents[2]
OLD, NEW = model_of(1), model_of(2)
DELTA = delta_of(1, 2)
OFFERED = ((OLD, DELTA),)
AMPLE = 10_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    """Return a device that runs the first release."""
    found = Kit(server.enrol(tmp_path / "device"))
    install_first(found.directory)
    return found


def install_first(directory: Path) -> Slots:
    """Put the first release into a device's slot; it runs."""
    first, slots = with_deltas(1), Slots(directory / "slots")
    slots.stage(first.release, first.lay_out(directory / "laid-out"))
    slots.switch(first.digest)
    return slots


def installed(kit: Kit, one: Bundle) -> bool:
    slots = Slots(kit.directory / "slots")
    is_clean = not (kit.directory / "downloads").exists()
    return kit.running == one.digest and slots.is_complete(one.release) and is_clean


def came_whole(server: FakeServer) -> bool:
    return server.served[digest_of(NEW)] == len(NEW)


def test_a_release_comes_as_its_difference_from_what_runs(kit: Kit, server: FakeServer) -> None:
    one = offer_deltas(server, 2, OFFERED)
    assert kit.look()[-1].outcome is Outcome.COMMITTED
    assert installed(kit, one)
    assert digest_of(NEW) not in server.served
    assert server.served[digest_of(DELTA)] == len(DELTA) < 0.5 * len(NEW)


def test_a_device_that_is_too_far_behind_takes_the_whole_file(kit: Kit, server: FakeServer) -> None:
    one = offer_deltas(server, 3, ((NEW, delta_of(2, 3)),))
    kit.look()
    assert installed(kit, one)
    assert server.served[digest_of(model_of(3))] == len(model_of(3))


def test_an_owner_who_wants_no_deltas_gets_none(kit: Kit, server: FakeServer) -> None:
    kit.policy = Policy(release=("auto",), delta_fetch="never")
    one = offer_deltas(server, 2, OFFERED)
    kit.look()
    assert installed(kit, one)
    assert digest_of(DELTA) not in server.served


def test_a_delta_that_no_source_has_costs_nothing(kit: Kit, server: FakeServer) -> None:
    one = offer_deltas(server, 2, OFFERED)
    del server.releases.blobs[digest_of(DELTA)]
    assert [outcome for outcome, _ in outcomes(kit)] == [Outcome.COMMITTED]
    assert installed(kit, one)
    assert came_whole(server)


@pytest.mark.slow
def test_a_delta_that_is_cut_again_and_again_is_resumed(kit: Kit, server: FakeServer) -> None:
    one = offer_deltas(server, 2, OFFERED)
    server.faults.cut[digest_of(DELTA)] = 40_000
    kit.look()
    assert installed(kit, one)
    assert server.served[digest_of(DELTA)] == len(DELTA)
    assert digest_of(NEW) not in server.served


def outcomes(kit: Kit) -> list[tuple[Outcome, str]]:
    """Return what the device tells after one look."""
    return [(entry.outcome, entry.reason) for entry in kit.look()]


def of_another_file(at: int) -> bytes:
    return DELTA[:at] + bytes([DELTA[at] ^ 1]) + DELTA[at + 1 :]


WRONG = {
    "noise": b"not a delta",
    "cut short": DELTA[:-1],
    "a byte in its header": of_another_file(20),
    "a byte in its middle": of_another_file(len(DELTA) // 2),
    "for another release": delta_of(1, 3),
    "from another release": delta_of(3, 2),
    "a bomb": bomb(OLD, NEW),
}


def test_a_signed_delta_that_is_a_bomb_is_told_once_and_the_file_comes_whole(
    kit: Kit, server: FakeServer
) -> None:
    wrong = WRONG["a bomb"]
    one = offer_deltas(server, 2, ((OLD, wrong),))
    told = outcomes(kit)
    assert [outcome for outcome, _ in told] == [Outcome.REFUSED, Outcome.COMMITTED]
    assert told[0][1].startswith(f"delta {digest_of(wrong)[:12]} of model.onnx: ")
    assert installed(kit, one)
    assert came_whole(server)
    assert server.served[digest_of(wrong)] == len(wrong)


def test_a_wrong_delta_is_not_tried_again_for_that_release(kit: Kit, server: FakeServer) -> None:
    wrong = WRONG["a byte in its middle"]
    offer_deltas(server, 2, ((OLD, wrong),))
    del server.releases.blobs[digest_of(NEW)]
    told = [outcomes(kit) for _ in range(3)]
    assert [outcome for outcome, _ in told[-1]] == [Outcome.REFUSED]
    assert server.served[digest_of(wrong)] == len(wrong)


def test_a_source_that_serves_another_delta_is_told_and_the_file_comes_whole(
    kit: Kit, server: FakeServer
) -> None:
    one = offer_deltas(server, 2, OFFERED)
    server.faults.flipped.add(digest_of(DELTA))
    told = outcomes(kit)
    assert [outcome for outcome, _ in told].count(Outcome.REFUSED) == 1
    assert any("model.onnx.delta: wrong digest" in reason for _, reason in told)
    assert installed(kit, one)
    assert came_whole(server)


def test_a_damaged_file_is_not_started_from(kit: Kit, server: FakeServer) -> None:
    """The damage comes after the agent has looked at what runs and before it fetches."""
    one = offer_deltas(server, 2, OFFERED)
    with kit.on() as updates:
        updates._scrub_at_s = 1.0  # it has looked just now
        spoil(kit)
        updates.look()
        told = [(entry.outcome, entry.reason) for entry in updates.journal.reports()]
    assert [outcome for outcome, _ in told][-1] is Outcome.COMMITTED
    assert installed(kit, one)
    assert digest_of(DELTA) not in server.served


def spoil(kit: Kit) -> None:
    victim = kit.directory / "slots" / kit.running / "model.onnx"
    victim.chmod(0o644)
    victim.write_bytes(OLD[:-1] + bytes([OLD[-1] ^ 1]))


LIMITS = [
    pytest.param(int(0.7 * len(DELTA)), id="fetching the delta", marks=pytest.mark.slow),
    pytest.param(len(NEW) // 2, id="making the file"),
    pytest.param(len(NEW) - 1, id="at the file's last bytes", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_device_that_dies_on_the_way_loses_nothing(
    kit: Kit, server: FakeServer, limit: int
) -> None:
    one = offer_deltas(server, 2, OFFERED)
    command = [sys.executable, "-m", "tests.delta_child", str(kit.directory), str(limit)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ, check=False)
    assert died.returncode == -signal.SIGXFSZ, died.stderr.decode()
    assert kit.running == with_deltas(1).digest
    kit.look()
    assert installed(kit, one)
    assert digest_of(NEW) not in server.served
    assert server.served[digest_of(DELTA)] <= 1.6 * len(DELTA)


@dataclass
class Shelf:
    """Files from memory; a fetch may be stopped."""

    blobs: dict[str, bytes]
    fetched: list[str] = field(default_factory=list)

    def fetch(
        self,
        entry: FileEntry,
        destination: Path,
        *,
        should_stop: Callable[[], bool],
        budget: ByteBudget | None,
    ) -> None:
        if should_stop():
            raise StoppedError("told to stop")
        self.fetched.append(entry.digest)
        destination.write_bytes(self.blobs[entry.digest])
        assert budget is not None
        budget.spend(entry.length)


@dataclass
class Bench:
    """A device with the first release in its slot, and what it needs for the second."""

    directory: Path
    journal: Journal
    is_stopped: bool = False

    def __post_init__(self) -> None:
        self.slots = install_first(self.directory)
        self.downloads.mkdir()
        self.offer(OFFERED)

    def offer(self, deltas: Sequence[tuple[bytes, bytes]], order: int = 2) -> None:
        self.release = with_deltas(order, deltas)
        self.shelf = Shelf(dict(self.release.blobs))

    @property
    def downloads(self) -> Path:
        return self.directory / "downloads"

    def names(self) -> set[str]:
        return {path.name for path in self.downloads.iterdir()}

    def run(self, budget: ByteBudget | None = None) -> None:
        fetch = DeltaFetch(
            journal=self.journal,
            slots=self.slots,
            files=self.shelf,
            downloads=self.downloads,
            now=lambda: NOON,
            should_stop=lambda: self.is_stopped,
        )
        fetch.run(self.release.release, budget or ByteBudget(AMPLE))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    journal = Journal.open(tmp_path / "journal.db", now=NOON)
    yield Bench(tmp_path, journal)
    journal.close()


def test_what_is_made_lies_where_the_whole_file_would(bench: Bench) -> None:
    bench.run()
    assert bench.names() == {digest_of(NEW)}
    assert (bench.downloads / digest_of(NEW)).read_bytes() == NEW
    bench.run()
    assert bench.shelf.fetched == [digest_of(DELTA)]


def test_of_several_deltas_the_one_from_what_runs_is_taken(bench: Bench) -> None:
    bench.offer(((NEW, delta_of(2, 3)), (OLD, delta_of(1, 3))), order=3)
    bench.run()
    assert bench.shelf.fetched == [digest_of(delta_of(1, 3))]
    assert bench.names() == {digest_of(model_of(3))}


def test_a_device_that_runs_nothing_has_nothing_to_start_from(bench: Bench) -> None:
    (bench.directory / "slots" / "current").unlink()
    bench.run()
    assert bench.shelf.fetched == []


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_delta_is_told_once_given_up_and_leaves_nothing(bench: Bench, wrong: bytes) -> None:
    bench.offer(((OLD, wrong),))
    for _ in range(2):
        bench.run()
    assert bench.shelf.fetched == [digest_of(wrong)]
    assert bench.names() == set()
    (told,) = bench.journal.reports()
    assert told.outcome is Outcome.REFUSED
    assert told.reason.startswith(f"delta {digest_of(wrong)[:12]} of model.onnx: ")


def test_a_whole_file_that_is_almost_there_is_the_shorter_way(bench: Bench) -> None:
    (bench.downloads / f"{digest_of(NEW)}.part").write_bytes(NEW[: -len(DELTA) + 1])
    bench.run()
    assert bench.shelf.fetched == []


def test_a_delta_that_is_almost_there_is_the_shorter_way(bench: Bench) -> None:
    (bench.downloads / f"{digest_of(NEW)}.part").write_bytes(NEW[: -len(DELTA) + 1])
    (bench.downloads / f"{digest_of(DELTA)}.part").write_bytes(DELTA[:9])
    bench.run()
    assert digest_of(NEW) in bench.names()


def test_a_process_that_dies_of_a_delta_three_times_does_without(bench: Bench) -> None:
    bench.journal.set_fact("delta-tries", " ".join([bench.release.digest, *[digest_of(DELTA)] * 2]))
    bench.run()
    (bench.downloads / digest_of(NEW)).unlink()
    bench.run()
    assert bench.shelf.fetched == [digest_of(DELTA)]
    assert bench.names() == set()
    assert TRIES == 3


def test_what_another_release_failed_by_is_tried(bench: Bench) -> None:
    bench.journal.set_fact("delta-tries", " ".join(["ab" * 32, *[digest_of(DELTA)] * 9]))
    bench.run()
    assert bench.names() == {digest_of(NEW)}


def test_without_room_for_the_delta_too_it_is_not_fetched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2 * sum(entry.length for entry in bench.release.release.files) + MARGIN
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(free))
    bench.run()
    assert bench.shelf.fetched == []


@dataclass(frozen=True)
class Usage:
    free: int


def test_being_told_to_stop_is_no_fault_of_the_delta(bench: Bench) -> None:
    bench.is_stopped = True
    with pytest.raises(StoppedError):
        bench.run()
    bench.is_stopped = False
    bench.run()
    assert bench.names() == {digest_of(NEW)}


def test_a_whole_file_that_would_cost_too_much_fails_the_attempt_and_not_the_next(
    bench: Bench,
) -> None:
    wrong = WRONG["cut short"]
    bench.offer(((OLD, wrong),))
    with pytest.raises(BudgetError, match="the whole file needs"):
        bench.run(ByteBudget(len(wrong) + len(NEW) - 1))
    bench.run(ByteBudget(len(NEW)))
    assert bench.shelf.fetched == [digest_of(wrong)]
    assert len(bench.journal.reports()) == 1


def test_a_wrong_delta_just_within_what_an_update_may_cost_is_let_go(bench: Bench) -> None:
    wrong = WRONG["cut short"]
    bench.offer(((OLD, wrong),))
    bench.run(ByteBudget(len(wrong) + len(NEW)))
    assert bench.names() == set()


def test_what_the_journal_says_of_it_is_said_of_that_release(bench: Bench) -> None:
    bench.offer(((OLD, WRONG["noise"]),))
    bench.run()
    (told,) = bench.journal.reports()
    assert (told.release, told.rollout) == (bench.release.digest, "")
    assert told.running == digest_of(OLD)


@pytest.mark.slow
def test_the_delta_of_a_later_day_is_a_later_try(kit: Kit, server: FakeServer) -> None:
    """A source without network is asked again, delta first."""
    one = offer_deltas(server, 2, OFFERED)
    data = server.releases.blobs.pop(digest_of(DELTA))
    whole = server.releases.blobs.pop(digest_of(NEW))
    kit.look()
    assert kit.running != one.digest
    server.releases.blobs |= {digest_of(DELTA): data, digest_of(NEW): whole}
    kit.late = timedelta(minutes=1)
    kit.look()
    assert installed(kit, one)
    assert digest_of(NEW) not in server.served


def test_an_idle_agent_has_not_loaded_what_deltas_are_applied_with() -> None:
    code = "import sys, wildflower.client.daemon; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
