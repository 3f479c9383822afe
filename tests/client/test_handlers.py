"""Handlers on a device: real programs, a real journal, restarts and refusals."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.device_fakes import NOON

from wildflower.client.handlers import STATE, Handlers
from wildflower.client.spending import BUDGET_MORE, BUDGET_TIMES
from wildflower.ota.device.handlers import Phase
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, PostponedError, RefusedError, StorageError
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.software import Software
from wildflower.ota.rollout.document import RolloutDocument

TEXT = b"dark\nbright\n"
LABELS = Software(
    name="labels",
    order=2,
    handler="files",
    device_class="linux-generic",
    agent_min="0.0.1",
    files=(FileEntry("payload", "labels.txt", hashlib.sha256(TEXT).hexdigest(), len(TEXT)),),
)
HANDLER = """#!/bin/sh
echo "$1" >> "$WILDFLOWER_DIR/steps"
live="$WILDFLOWER_DIR/labels.txt"
case "$1" in
Install)
    test -e "$2/state/before" || cp "$live" "$2/state/before" 2>/dev/null
    cp "$2/files/labels.txt" "$live" ;;
Rollback)
    test ! -e "$2/state/before" || cp "$2/state/before" "$live" ;;
esac
EXTRA
"""


@dataclass
class Shelf:
    """Files from memory; it may be closed, or lie."""

    error: Exception | None = None
    costs: int = 0
    data: bytes = TEXT
    fetched: list[str] = field(default_factory=list)

    def refresh(self) -> None:
        """There is no news."""

    def rollout(self, target_group: str) -> RolloutDocument | None:
        return None

    def fetch(
        self, entry: FileEntry, destination: Path, *, should_stop: Callable[[], bool], budget: Any
    ) -> None:
        budget.spend(self.costs)
        if self.error:
            raise self.error
        self.fetched.append(entry.name)
        destination.write_bytes(self.data)


@dataclass
class Bench:
    """One device with a handler."""

    handlers: Handlers
    shelf: Shelf
    restarts: int = 0

    @property
    def directory(self) -> Path:
        return self.handlers.directory

    @property
    def live(self) -> bytes:
        return (self.directory / "labels.txt").read_bytes()

    @property
    def steps(self) -> list[str]:
        path = self.directory / "steps"
        return path.read_text().split() if path.exists() else []

    def handler(self, extra: str = "") -> None:
        path = self.directory / "handlers" / "files"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HANDLER.replace("EXTRA", extra))
        path.chmod(0o755)

    def told(self) -> list[tuple[str, str]]:
        return [(one.outcome.value, one.reason) for one in self.handlers.journal.reports()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    journal = Journal.open(tmp_path / "journal.db", now=NOON)
    shelf = Shelf()

    def restart() -> None:
        found.restarts += 1

    handlers = Handlers(
        directory=tmp_path,
        device_class="linux-generic",
        accepted=("labels",),
        timeout_s=20.0,
        journal=journal,
        slots=Slots(tmp_path / "slots"),
        releases=shelf,
        now=lambda: NOON,
        should_stop=lambda: False,
        restart=restart,
    )
    found = Bench(handlers, shelf)
    found.handler()
    (tmp_path / "labels.txt").write_bytes(b"old")
    yield found
    journal.close()


def test_software_is_installed_step_by_step_and_told_once(bench: Bench) -> None:
    assert bench.handlers.offer(LABELS)
    assert bench.live == TEXT
    assert bench.steps == ["Download", "Install", "NeedsRestart", "Commit"]
    assert bench.told() == [("committed", "")]
    assert list((bench.directory / "software").iterdir()) == []
    assert not bench.handlers.offer(LABELS)
    assert (len(bench.told()), bench.restarts) == (1, 0)


def test_a_lower_order_of_the_line_is_passed_over(bench: Bench) -> None:
    bench.handlers.offer(LABELS)
    assert not bench.handlers.offer(replace(LABELS, order=1))
    assert len(bench.told()) == 1


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "by policy": ({"accepted": ()}, {}, "found labels, the owner accepts none"),
    "another line": ({}, {"name": "agent"}, "found agent, the owner accepts labels"),
    "another class": ({}, {"device_class": "tiny"}, "found linux-generic, expected tiny"),
    "a newer agent": ({}, {"agent_min": "99.0"}, "expected >= 99.0"),
    "no such handler": ({}, {"handler": "rootfs"}, "this device has no handler 'rootfs'"),
}


@pytest.mark.parametrize(("device", "software", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told_once_and_costs_no_byte(
    bench: Bench, device: dict[str, Any], software: dict[str, Any], told: str
) -> None:
    handlers = replace(bench.handlers, **device)
    for _ in range(2):
        assert not handlers.offer(replace(LABELS, **software))
    ((outcome, reason),) = bench.told()
    assert outcome == "refused"
    assert told in reason
    assert (bench.shelf.fetched, bench.steps, bench.live) == ([], [], b"old")


FAILING: dict[str, tuple[str, list[str]]] = {
    "Download": ("Download ended with 4: no", ["Download"]),
    "Install": ("Install ended with 4: no", ["Download", "Install", "Rollback"]),
    "Commit": (
        "Commit ended with 4: no",
        ["Download", "Install", "NeedsRestart", "Commit", "Rollback"],
    ),
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_step_that_fails_leaves_what_was_there(bench: Bench, failing: str) -> None:
    told, steps = FAILING[failing]
    bench.handler(f'test "$1" != {failing} || {{ echo no; exit 4; }}')
    bench.handlers.offer(LABELS)
    assert (bench.live, bench.steps) == (b"old", steps)
    assert bench.told() == [("failed", told)]
    assert not bench.handlers.offer(LABELS)  # a new order is a new try


def test_a_step_that_hangs_has_failed(bench: Bench) -> None:
    bench.handler('test "$1" != Install || sleep 60')
    replace(bench.handlers, timeout_s=1.0).offer(LABELS)
    assert bench.live == b"old"
    ((_, reason),) = bench.told()
    assert reason.startswith("Install: ")
    assert reason.endswith("did not end within 1 s")


def test_the_agent_is_started_anew_where_a_handler_wants_it(bench: Bench) -> None:
    bench.handler('test "$1" != NeedsRestart || echo yes')
    with pytest.raises(PostponedError, match="started anew"):
        bench.handlers.offer(LABELS)
    assert (bench.restarts, bench.steps[-1]) == (1, "NeedsRestart")
    bench.handlers.begin(was_clean=True)
    assert (bench.restarts, bench.steps[-1], bench.told()) == (1, "Commit", [("committed", "")])


def test_without_a_network_it_waits_and_goes_on(bench: Bench) -> None:
    bench.shelf.error = FetchError("no route")
    with pytest.raises(PostponedError, match="no route"):
        bench.handlers.offer(LABELS)
    assert not bench.handlers.offer(replace(LABELS, order=3))  # one after the other
    bench.shelf.error = None
    bench.handlers.resume()
    assert bench.live == TEXT


def test_software_waits_for_what_the_owner_allows(bench: Bench) -> None:
    waiting = replace(bench.handlers, why_wait=lambda: "the network is metered")
    with pytest.raises(PostponedError, match="metered"):
        waiting.offer(LABELS)
    assert (bench.shelf.fetched, bench.steps) == ([], [])
    bench.handlers.resume()
    assert bench.live == TEXT


def test_what_software_costs_is_counted_over_restarts_and_bounded(bench: Bench) -> None:
    bench.shelf.costs, bench.shelf.error = BUDGET_MORE // 2, FetchError("cut")
    with pytest.raises(PostponedError, match="cut"):
        bench.handlers.offer(LABELS)
    with pytest.raises(PostponedError, match="cut"):
        bench.handlers.resume()
    bench.handlers.resume()
    ((outcome, reason),) = bench.told()
    assert (outcome, bench.steps, bench.live) == ("failed", [], b"old")
    allowed = BUDGET_TIMES * len(TEXT) + BUDGET_MORE
    assert reason.startswith(f"{3 * bench.shelf.costs} bytes have come for this update, allowed ")
    assert f"allowed are {allowed}" in reason


def test_a_source_that_lies_ends_it(bench: Bench) -> None:
    bench.shelf.error = RefusedError("wrong digest")
    bench.handlers.offer(LABELS)
    assert (bench.told(), bench.steps) == ([("failed", "wrong digest")], [])


def test_a_file_that_the_disk_changed_is_not_handed_on(bench: Bench) -> None:
    bench.shelf.data = b"dusk\nbright\n"
    bench.handlers.offer(LABELS)
    assert bench.steps == []
    assert "labels.txt: found 12 bytes" in bench.told()[0][1]


def test_a_file_that_changes_after_the_first_step_is_not_installed(bench: Bench) -> None:
    bench.handler('test "$1" != Download || echo x > "$2/files/labels.txt"')
    bench.handlers.offer(LABELS)
    assert bench.steps == ["Download", "Rollback"]
    ((outcome, reason),) = bench.told()
    assert (outcome, bench.live) == ("failed", b"old")
    assert reason.startswith("Install: labels.txt: found 2 bytes of ")


def test_a_directory_that_cannot_be_made_is_told(bench: Bench) -> None:
    (bench.directory / "software").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write in"):
        bench.handlers.offer(LABELS)


class PowerCutError(BaseException):
    """Not an Exception: nothing may catch it and go on."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 7))
def test_a_power_cut_at_any_act_repeats_it_and_reports_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    real, begun = Handlers._run, 0

    def run(handlers: Handlers, act: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == number and not after:
            raise PowerCutError
        event = real(handlers, act)
        if begun == number:
            raise PowerCutError
        return event

    monkeypatch.setattr(Handlers, "_run", run)
    with pytest.raises(PowerCutError):
        bench.handlers.offer(LABELS)
    bench.handlers.begin(was_clean=False)
    assert bench.live == TEXT
    assert list(dict.fromkeys(bench.steps)) == ["Download", "Install", "NeedsRestart", "Commit"]
    assert bench.told() == [("committed", "")]


def test_a_step_that_ends_the_agent_again_and_again_is_rolled_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(Handlers, "_call", crash)
        with pytest.raises(PowerCutError):
            bench.handlers.offer(LABELS)
        for _ in range(3):
            with pytest.raises(PowerCutError):
                bench.handlers.begin(was_clean=False)
    bench.handlers.begin(was_clean=False)
    assert bench.told() == [("failed", "the agent went down 4 times in Download")]
    assert bench.live == b"old"


@contextmanager
def outliving(bench: Bench) -> Iterator["subprocess.Popen[bytes]"]:
    """Leave a device whose agent was killed in Install, and its handler, which works on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handlers, "_ask", fallen)
        with pytest.raises(PowerCutError):
            bench.handlers.offer(LABELS)
    (place,) = (bench.directory / "software").iterdir()
    claim = os.open(place, os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_EX)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[claim]) as handler:
        os.close(claim)  # from now on it is the handler's alone, as after SIGKILL
        yield handler


def fallen(*_: object) -> None:
    raise PowerCutError


def test_the_next_agent_waits_for_a_handler_that_outlives_its_own(bench: Bench) -> None:
    with outliving(bench) as handler:
        asked = iter([False, False])

        def should_stop() -> bool:
            if next(asked, None) is None:
                assert handler.stdin is not None
                handler.stdin.close()  # it ends now
            assert bench.steps == []
            return False

        replace(bench.handlers, should_stop=should_stop)._outwait(place_of(bench))
        assert handler.wait(30) == 0
    bench.handlers.begin(was_clean=False)
    assert (bench.live, bench.told()) == (TEXT, [("committed", "")])


def place_of(bench: Bench) -> Path:
    return bench.directory / "software" / LABELS.digest


def test_told_to_end_it_waits_no_more(bench: Bench) -> None:
    with outliving(bench):
        stopping = replace(bench.handlers, should_stop=lambda: True)
        with pytest.raises(PostponedError, match="a handler of an agent before this runs"):
            stopping.begin(was_clean=False)
        assert bench.steps == []


def test_what_a_handler_started_for_good_is_outwaited(bench: Bench) -> None:
    with outliving(bench):
        impatient = replace(bench.handlers, timeout_s=0.2)
        impatient._outwait(place_of(bench))
        bench.handlers.resume()
        assert bench.told() == [("committed", "")]


def test_what_a_power_cut_brings_back_is_swept(bench: Bench) -> None:
    bench.handlers.offer(LABELS)
    shutil.copytree(bench.directory / "handlers", bench.directory / "software" / "old" / "files")
    bench.handlers.begin(was_clean=False)
    assert list((bench.directory / "software").iterdir()) == []


def test_a_state_that_cannot_be_read_means_idle(bench: Bench) -> None:
    bench.handlers.journal.set_fact(STATE, "noise")
    assert bench.handlers.load().phase is Phase.IDLE
    bench.handlers.begin(was_clean=False)
    assert bench.handlers.offer(LABELS)
