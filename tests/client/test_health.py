"""Looking after a release on probation: real checks, real slots, a real spool."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.device_fakes import NOON, bundle
from tests.slots_fakes import WIDTH, reference

from wildflower.client.config import AgentConfig
from wildflower.client.health import HEALTHY, Watcher, recorded_ailment
from wildflower.client.spool import Spool
from wildflower.ota.device.effects import Watch
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Abandoned, Done, Event, Failed
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import PostponedError
from wildflower.ota.observe.recorder import Recorder

ONE = bundle(1, trial=replace(bundle(1).release.trial, probation_s=60))
EFFECT = Watch(ONE.release, 7, NOON)
ARTIFACT = ONE.release.artifact.digest


@dataclass
class Bench:
    """One device that runs a release on probation."""

    watcher: Watcher
    now_s: float = 0.0
    late: timedelta = timedelta()

    @property
    def directory(self) -> Path:
        return self.watcher.config.directory

    def check(self, script: str, **changes: Any) -> None:
        """Let the owner have a check."""
        (self.directory / "check").write_text(f"#!/bin/sh\n{script}\n")
        (self.directory / "check").chmod(0o755)
        self.watcher.config = replace(self.watcher.config, health_check="check", **changes)

    def look(self, effect: Watch = EFFECT) -> Event | None:
        """Look once; None if it goes on."""
        try:
            return self.watcher.look(effect)
        except PostponedError:
            return None

    def restart(self) -> None:
        self.watcher.last = None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    slots = Slots(tmp_path / "slots")
    slots.stage(ONE.release, ONE.lay_out(tmp_path / "files"))
    slots.switch(ONE.digest)
    journal = Journal.open(tmp_path / "journal.db", now=NOON)
    config = AgentConfig(device_id="ab" * 32, directory=tmp_path)
    found = Bench(Watcher(config, journal, slots, lambda: NOON, lambda: 0.0, lambda: False))
    found.watcher.now = lambda: NOON + found.late
    found.watcher.steady = lambda: found.now_s
    yield found
    journal.close()


def looks(bench: Bench, count: int, every_s: float = 20.0) -> list[Event | None]:
    found = []
    for _ in range(count):
        found.append(bench.look())
        bench.now_s += every_s
    return found


def test_a_release_without_a_probation_is_not_even_checked(bench: Bench) -> None:
    bench.check("touch asked; exit 1")
    calm = replace(ONE.release, trial=replace(ONE.release.trial, probation_s=0))
    assert bench.look(Watch(calm, 7, NOON)) == Done()
    assert not (bench.directory / "asked").exists()


def test_it_is_committed_when_it_was_healthy_for_its_time(bench: Bench) -> None:
    bench.check("exit 0")
    assert looks(bench, 4) == [None, None, None, Done()]


def test_without_a_check_it_is_enough_that_the_agent_lives(bench: Bench) -> None:
    assert looks(bench, 4) == [None, None, None, Done()]


def test_time_that_nobody_watched_does_not_count(bench: Bench) -> None:
    assert looks(bench, 3) == [None, None, None]  # 40 seconds are known
    bench.restart()
    bench.now_s += 10_000
    assert looks(bench, 2) == [None, Done()]


def test_the_time_of_another_attempt_does_not_count(bench: Bench) -> None:
    looks(bench, 3)
    assert bench.look(Watch(ONE.release, 8, NOON)) is None
    assert bench.watcher.journal.fact(HEALTHY) == "8 0.000"


@pytest.mark.parametrize("noise", ["7 many", "7 ", "nan", "7 -5"])
def test_a_count_that_the_disk_changed_begins_anew(bench: Bench, noise: str) -> None:
    bench.watcher.journal.set_fact(HEALTHY, noise)
    assert bench.look() is None
    assert bench.watcher.journal.fact(HEALTHY) == "7 0.000"


def test_a_device_that_could_not_look_in_time_is_overdue(bench: Bench) -> None:
    assert bench.look() is None
    bench.late = timedelta(days=3)
    bench.restart()
    told = "no decision on probation in time: found 0 healthy seconds, expected 60"
    assert bench.look() == Abandoned(told)


ILL: dict[str, tuple[str, str]] = {
    "says so": ("echo it smokes; exit 3", "the health check ended with 3: it smokes"),
    "dies": ("kill -SEGV $$", "the health check was ended by signal 11: it said nothing"),
    "hangs": ("sleep 60", "did not end within 0.5 s"),
}


@pytest.mark.parametrize(("script", "told"), ILL.values(), ids=ILL)
def test_a_check_that_is_not_content_ends_it(bench: Bench, script: str, told: str) -> None:
    bench.check(script, health_timeout_s=0.5 if "sleep" in script else 20.0)
    found = bench.look()
    assert isinstance(found, Failed)
    assert found.outcome is Outcome.ROLLED_BACK
    assert found.reason.startswith("on probation: the health check ")
    assert told in found.reason


def test_a_check_that_is_not_there_is_not_content(bench: Bench) -> None:
    bench.watcher.config = replace(bench.watcher.config, health_check="/nowhere/check")
    found = bench.look()
    assert isinstance(found, Failed)
    assert "/nowhere/check cannot be started: No such file" in found.reason


def test_a_check_learns_what_it_is_about(bench: Bench) -> None:
    bench.check('test -f "$WILDFLOWER_SLOT/model.onnx" && echo "$WILDFLOWER_RELEASE" > seen')
    assert bench.look() is None
    assert (bench.directory / "seen").read_text().strip() == ONE.digest


def test_a_check_is_begun_again_after_the_agent_was_told_to_stop(bench: Bench) -> None:
    bench.check("sleep 60")
    bench.watcher.should_stop = lambda: True
    with pytest.raises(PostponedError, match="told to stop"):
        bench.watcher.look(EFFECT)


def test_a_slot_that_the_disk_changed_is_not_committed_and_not_blamed(bench: Bench) -> None:
    model = bench.watcher.slots.path(ONE.digest) / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(b"x")
    told = Abandoned("on probation: what runs is not what was signed any more")
    assert looks(bench, 4) == [None, None, None, told]


def record(
    directory: Path,
    times: int = 1,
    *,
    good: int,
    bad: int,
    latency_ms: float = 1.0,
    after: timedelta = timedelta(minutes=1),
    artifact: str = ARTIFACT,
) -> None:
    """Let the application have recorded inferences."""
    recorder = Recorder(artifact, reference())
    for _ in range(good):
        recorder.record(np.zeros(len(reference().features), np.float32), latency_ms, 0, 0.9)
    recorder.fail(bad)
    summary = recorder.cut(start=NOON + after, end=NOON + after + timedelta(minutes=1))
    for _ in range(times):
        Spool(directory / "spool").append(summary.to_bytes())


def strict(config: AgentConfig) -> AgentConfig:
    return replace(config, health_max_error_rate=0.1, health_max_latency_ms=50.0)


RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda _: None, ""),
    "good": (lambda d: record(d, good=50, bad=5), ""),
    "errors": (
        lambda d: record(d, good=30, bad=30),
        "0.5 of inferences fail, allowed 0.1",
    ),
    "errors alone": (lambda d: record(d, good=0, bad=30), "1 of inferences fail, allowed 0.1"),
    "too few": (lambda d: record(d, good=0, bad=19), ""),
    "two summaries": (
        lambda d: record(d, 10, good=5, bad=5),
        "0.5 of inferences fail, allowed 0.1",
    ),
    "before its time": (lambda d: record(d, good=0, bad=30, after=-timedelta(minutes=1)), ""),
    "another model": (lambda d: record(d, good=0, bad=30, artifact="ab" * 32), ""),
    "slow": (
        lambda d: record(d, good=50, bad=0, latency_ms=400.0),
        "one inference in 100 takes",
    ),
    "noise": (lambda d: Spool(d / "spool").append(b"noise"), ""),
}


@pytest.mark.parametrize(("act", "told"), RECORDS.values(), ids=RECORDS)
def test_what_the_application_recorded_counts(
    bench: Bench, act: Callable[[Path], object], told: str
) -> None:
    act(bench.directory)
    found = recorded_ailment(strict(bench.watcher.config), ARTIFACT, NOON)
    assert found.startswith(told)
    assert bool(found) == bool(told)
    assert recorded_ailment(bench.watcher.config, ARTIFACT, NOON) == ""


def test_what_the_server_has_already_counts_all_the_same(bench: Bench) -> None:
    record(bench.directory, good=0, bad=15)
    spool = Spool(bench.directory / "spool")
    spool.ack(spool.pending(1)[0][0])  # uploaded before the agent looked
    record(bench.directory, good=0, bad=15)
    told = recorded_ailment(strict(bench.watcher.config), ARTIFACT, NOON)
    assert told == "1 of inferences fail, allowed 0.1"


def test_bad_records_end_a_probation(bench: Bench) -> None:
    record(bench.directory, good=0, bad=WIDTH * 10)
    bench.watcher.config = strict(bench.watcher.config)
    found = bench.look()
    reason = "on probation: 1 of inferences fail, allowed 0.1"
    assert found == Failed(Outcome.ROLLED_BACK, reason)
