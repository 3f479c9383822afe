"""The agent's own update: real environments, real wheels, real processes."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.client.test_handlers import Shelf
from tests.device_fakes import NOON
from tests.wheel_fakes import write_wheel

from wildflower.client import self_update
from wildflower.client.handlers import Handlers
from wildflower.client.self_update import COMPLETE, Environments, Watchdog, handle
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import PostponedError
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.software import Software

SCRIPT = Path(self_update.__file__)
OLD, NEW = "a" * 64, "b" * 64
AGENT = """
import pathlib, signal, subprocess, sys, time
home = pathlib.Path(sys.argv[sys.argv.index("--dir") + 1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with (home / "started").open("a") as file:
    print(VERSION, file=file)
ACT
while True:
    time.sleep(0.05)
"""
PROVES = """
place = home / "software" / ("b" * 64)
if place.exists():
    step = [sys.executable, SCRIPT, "Commit", str(place)]
    subprocess.run(step, env={"WILDFLOWER_DIR": str(home)}, check=True)
"""


def wheel(directory: Path, version: str, act: str = "") -> None:
    """Write a wheel of an agent that says that it was started, then acts and waits."""
    code = AGENT.replace("VERSION", repr(version)).replace("ACT", act)
    write_wheel(directory, version, code.replace("SCRIPT", repr(str(SCRIPT))))


@dataclass
class Home:
    """One device with its agent in environments."""

    directory: Path
    watchdogs: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def environments(self) -> Environments:
        return Environments(self.directory)

    @property
    def current(self) -> str:
        return self.environments.target("current")

    @property
    def started(self) -> list[str]:
        path = self.directory / "started"
        return path.read_text().split() if path.exists() else []

    def offer(self, version: str, number: str, act: str = "") -> Path:
        """Lay a version's wheels where its handler finds them."""
        place = self.directory / "software" / version
        wheel(place / "files", number, act)
        return place

    def install(self, version: str, number: str, act: str = "") -> Path:
        place = self.offer(version, number, act)
        for step in ("Download", "Install"):
            assert handle(step, place, self.environments) == ""
        return place

    def watch(self, window_s: float = 60.0) -> "subprocess.Popen[str]":
        command = [sys.executable, str(SCRIPT), "--launch", str(self.directory)]
        watchdog = subprocess.Popen(
            [*command, "--window", str(window_s)], stderr=subprocess.PIPE, text=True
        )
        self.watchdogs.append(watchdog)
        return watchdog


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that runs version 1 for good, to be copied."""
    found = Home(tmp_path_factory.mktemp("old"))
    handle("Commit", found.install(OLD, "1.0"), found.environments)
    return found.directory


@pytest.fixture
def home(tmp_path: Path, old: Path) -> Iterator[Home]:
    """A device that runs version 1 for good."""
    shutil.copytree(old / "agent", tmp_path / "agent", symlinks=True)
    found = Home(tmp_path)
    yield found
    for watchdog in found.watchdogs:
        watchdog.send_signal(signal.SIGTERM)
        watchdog.communicate(timeout=30)


def come_about(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_a_version_that_works_stays_and_only_the_one_before_is_kept(home: Home) -> None:
    (home.directory / "agent" / "older").mkdir()
    place = home.install(NEW, "2.0", PROVES)
    assert handle("NeedsRestart", place, home.environments) == "yes"
    home.watch()
    come_about(lambda: home.environments.starts(NEW) is None and home.started == ["2.0"])
    come_about(lambda: not (home.directory / "agent" / "older").exists())
    assert (home.current, home.environments.target("previous")) == (NEW, OLD)


@pytest.mark.slow
def test_a_running_agent_gives_way_when_it_ends_in_good_order(home: Home) -> None:
    watchdog = home.watch()
    come_about(lambda: home.started == ["1.0"])
    home.install(NEW, "2.0", PROVES)
    agent = int(Path(f"/proc/{watchdog.pid}/task/{watchdog.pid}/children").read_text().split()[0])
    os.kill(agent, signal.SIGTERM)  # as the agent does to itself
    come_about(lambda: home.started == ["1.0", "2.0"] and home.environments.starts(NEW) is None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "window_s"), [("sys.exit(3)", 60.0), ("", 0.5)], ids=["crashes", "never proves itself"]
)
def test_a_version_that_does_not_work_is_taken_back(home: Home, act: str, window_s: float) -> None:
    place = home.install(NEW, "2.0", act)
    watchdog = home.watch(window_s)
    come_about(lambda: home.started == ["2.0", "1.0"])
    assert home.current == OLD
    with pytest.raises(RuntimeError, match="did not show within its window"):
        handle("Commit", place, home.environments)
    handle("Rollback", place, home.environments)
    assert home.current == OLD
    watchdog.send_signal(signal.SIGTERM)
    assert watchdog.stderr is not None
    said = watchdog.stderr.read()
    watchdog.wait(30)
    assert said == f"agent {NEW[:12]} does not work; taken back\n"
    assert watchdog.returncode == 0


def test_a_version_that_takes_the_device_down_every_time_is_taken_back(home: Home) -> None:
    home.environments.begin_trial(NEW)
    for _ in range(self_update.MAX_STARTS):
        home.environments.note_start(NEW)
    home.watch()
    come_about(lambda: home.started == ["1.0"])
    assert home.current == OLD


def test_an_interpreter_that_is_gone_is_taken_back_too(home: Home) -> None:
    home.environments.begin_trial(NEW)
    home.watch()
    come_about(lambda: home.started == ["1.0"])


def test_without_one_before_the_installation_of_the_watchdog_runs_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    place = home.install(NEW, "2.0")
    assert home.current == NEW
    handle("Rollback", place, home.environments)
    assert home.current == ""
    assert home.environments.python("") == Path(sys.executable)


def test_a_version_that_was_started_already_needs_no_restart(home: Home) -> None:
    place = home.directory / "software" / NEW
    home.environments.begin_trial(NEW)
    home.environments.note_start(NEW)
    assert handle("NeedsRestart", place, home.environments) == "no"


def test_what_is_no_set_of_wheels_is_refused_before_anything_is_touched(home: Home) -> None:
    place = home.offer(NEW, "2.0")
    (place / "files" / "setup.py").write_text("evil")
    with pytest.raises(RuntimeError, match="expected wheels, wildflower's among them"):
        handle("Download", place, home.environments)
    with pytest.raises(RuntimeError, match="unknown step 'Explode'"):
        handle("Explode", place, home.environments)


def test_wheels_that_cannot_be_installed_leave_the_old_version(home: Home) -> None:
    place = home.offer(NEW, "2.0")
    broken = place / "files" / "wildflower-2.0-py3-none-any.whl"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(subprocess.CalledProcessError):
        handle("Install", place, home.environments)
    assert home.current == OLD


def test_what_a_cut_left_of_an_environment_is_made_anew(home: Home) -> None:
    place = home.offer(NEW, "2.0")
    half = home.directory / "agent" / NEW
    shutil.copytree(home.directory / "agent" / OLD, half, symlinks=True)
    (half / COMPLETE).unlink()
    handle("Install", place, home.environments)
    assert [path.name for path in half.glob("lib/*/site-packages/*.dist-info")] == [
        "wildflower-2.0.dist-info"
    ]
    assert not (half / "tmp").exists()


def test_a_version_that_is_half_removed_does_not_say_that_it_is_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = home.directory / "agent" / "older"
    older.mkdir()
    (older / COMPLETE).write_text("older")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the disk refuses
    home.environments.commit(OLD)
    assert older.exists()
    assert not (older / COMPLETE).exists()


def test_a_watchdog_outlives_a_disk_that_cannot_count_starts(home: Home) -> None:
    home.environments.begin_trial(NEW)
    (home.directory / "agent" / ".trial.new").mkdir()  # the count cannot be written
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        watchdog.end()

    watchdog = Watchdog(home.directory, wait=wait)
    assert watchdog.run() == 0
    assert waited == [self_update.PAUSE_S]
    assert home.current == NEW


class PowerCutError(BaseException):
    """Not an Exception: nothing may catch it and go on."""


@pytest.mark.parametrize("number", range(1, 4))
def test_a_power_cut_while_pointers_move_leaves_a_version_that_runs(
    home: Home, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shutil.copytree(home.directory / "agent" / OLD, home.directory / "agent" / NEW)
    real, seen = Path.replace, 0

    def cut(path: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen == number:
            raise PowerCutError
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(PowerCutError):
            home.environments.begin_trial(NEW)
    assert (home.current, home.environments.starts(OLD)) == (OLD, None)
    home.environments.begin_trial(NEW)
    assert (home.current, home.environments.starts(NEW)) == (NEW, 0)
    home.environments.take_back(NEW)
    assert home.current == OLD


def test_the_steps_are_a_command(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    place = home.offer(NEW, "2.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILDFLOWER_DIR", str(home.directory))
        assert self_update.main(["NeedsRestart", str(place)]) == 0
        assert self_update.main(["Commit", str(place)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "yes"
    with pytest.raises(SystemExit):
        self_update.main(["Commit"])


def test_a_watchdog_that_is_told_to_end_starts_nothing(home: Home) -> None:
    watchdog = Watchdog(home.directory)
    watchdog.end()
    assert watchdog.run() == 0
    assert home.started == []


@pytest.mark.parametrize("works", [True, False])
def test_it_comes_as_software_like_any_other(home: Home, works: bool) -> None:
    wheel(home.directory / "built", "2.0")
    (built,) = (home.directory / "built").iterdir()
    data = built.read_bytes()
    entry = FileEntry("payload", built.name, hashlib.sha256(data).hexdigest(), len(data))
    agent = Software("agent", 1, "agent", "", "0.0.1", (entry,))
    handler = home.directory / "handlers" / "agent"
    handler.parent.mkdir()
    handler.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n')
    handler.chmod(0o755)
    restarts: list[None] = []
    with closing(Journal.open(home.directory / "journal.db", now=NOON)) as journal:
        handlers = Handlers(
            directory=home.directory,
            device_class="linux-generic",
            accepted=("agent",),
            timeout_s=60.0,
            journal=journal,
            slots=Slots(home.directory / "slots"),
            releases=Shelf(data=data),
            now=lambda: NOON,
            should_stop=lambda: False,
            restart=lambda: restarts.append(None),
        )
        with pytest.raises(PostponedError, match="started anew"):
            handlers.offer(agent)
        assert (len(restarts), home.current) == (1, agent.digest)
        home.environments.note_start(agent.digest)
        if not works:
            home.environments.take_back(agent.digest)  # as the watchdog does
        handlers.begin(was_clean=True)  # the agent that the watchdog has started
        ((outcome, reason),) = [(one.outcome.value, one.reason) for one in journal.reports()]
    told = "Commit ended with 1: it did not show within its window that it works; it runs no more"
    assert (outcome, reason) == (("committed", "") if works else ("failed", told))
    assert home.current == (agent.digest if works else OLD)
    assert home.environments.starts(agent.digest) is None
