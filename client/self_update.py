"""The agent updates itself: a handler of software, and the watchdog that starts the agent.

    agent/<digest>/   a virtual environment for each version, made from wheels without an index
    agent/current     -> the one that runs; flipped by rename
    agent/previous    -> the one before
    agent/trial       a version that has not shown yet that it works, and how often it was started

As a handler (`handlers/agent`, a line of shell that runs this module with its arguments) it makes
the environment beside the old one, flips `current` and wants the agent to be started anew. The new
agent picks its own installation up and comes to the step Commit: that is what proves it. As a
watchdog (`--launch DIR`) it starts the agent of `current`, and if a version on trial ends, or does
not come to that step within its window, the version before it runs again. Before the first update
that is the installation which the watchdog itself was started from.

Only the standard library is imported: it must run whatever state the environments are in. The
watchdog is to be started from an installation that no update touches.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

PACKAGE: Final = "wildflower"
DAEMON: Final = "wildflower.client.daemon"
COMPLETE: Final = "complete"
"""The file that an environment gets last."""
WINDOW_S: Final = 300.0
MAX_STARTS: Final = 3
"""Starts of a version on trial: the device may have gone down by chance, but not every time."""
GLANCE_S: Final = 0.1
PAUSE_S: Final = 1.0
"""Seconds before an agent that ended by itself is started again."""


class Environments:
    """The versions of the agent on one device."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "agent"

    def target(self, pointer: str) -> str:
        """Return the version that "current" or "previous" names; "" for none."""
        try:
            return (self.root / pointer).readlink().name
        except OSError:
            return ""

    def starts(self, version: str) -> int | None:
        """Return how often a version on trial was started; None for one that is not on trial."""
        try:
            found, _, starts = (self.root / "trial").read_text().partition(" ")
        except OSError:
            return None
        is_on_trial = found == version == self.target("current")
        return int(starts) if is_on_trial and starts.isdecimal() else None

    def note_start(self, version: str) -> None:
        """Count a start of a version on trial, before it happens."""
        starts = self.starts(version)
        if starts is not None:
            _write(self.root / "trial", f"{version} {starts + 1}")

    def python(self, version: str) -> Path:
        """Return a version's interpreter; that of this process for ""."""
        return self.root / version / "bin" / "python" if version else Path(sys.executable)

    def make(self, version: str, wheels: Path) -> None:
        """Make a version's environment from wheels alone; a complete one is left as it is.

        Raises:
            subprocess.CalledProcessError: pip cannot install them; its output says why.
            OSError: The disk is full or read-only.
        """
        place = self.root / version
        if (place / COMPLETE).exists():
            return
        if place.exists():  # pip takes for installed what a cut left: nothing of it may stay
            shutil.rmtree(place)
        self.root.mkdir(exist_ok=True)
        run = [sys.executable, "-I", "-m"]
        subprocess.run([*run, "venv", "--without-pip", str(place)], check=True)
        self._install(run, version, wheels)
        os.sync()  # thousands of files: one call, before the name that vouches for them
        _write(place / COMPLETE, version)

    def _install(self, run: Sequence[str], version: str, wheels: Path) -> None:
        """Let pip install wheels into a version's environment, and leave nothing anywhere else.

        It unpacks beside what it installs: /tmp may be a few megabytes of memory, and would keep
        what a cut left. Nothing is found on PATH: pip would ask `lsb_release`, `uname` and `rustc`
        what to tell an index that it is not to ask.
        """
        unpacked = self.root / version / "tmp"
        unpacked.mkdir()
        pip = [*run, "pip", "--python", str(self.python(version)), "--disable-pip-version-check"]
        offline = ["--no-index", "--find-links", str(wheels), "--no-compile", "--quiet"]
        alone = os.environ | {"PATH": os.devnull, "TMPDIR": str(unpacked)}
        subprocess.run([*pip, "install", *offline, PACKAGE], check=True, env=alone)
        shutil.rmtree(unpacked)

    def begin_trial(self, version: str) -> None:
        """Let a version run from the next start on; repeating it changes nothing."""
        running = self.target("current")
        if running == version:
            return
        _write(self.root / "trial", f"{version} 0")
        if running:
            self._point("previous", running)
        self._point("current", version)

    def commit(self, version: str) -> None:
        """Keep a version that runs; every other but the one before it is removed.

        Raises:
            RuntimeError: It does not run: the watchdog has brought the one before back.
        """
        if self.target("current") != version:
            raise RuntimeError("it did not show within its window that it works; it runs no more")
        (self.root / "trial").unlink(missing_ok=True)
        _sync(self.root)
        kept = {version, self.target("previous")}
        for place in self.root.iterdir():
            if place.is_dir() and not place.is_symlink() and place.name not in kept:
                _remove(place)

    def take_back(self, version: str) -> None:
        """Let the version before one run again; repeating it changes nothing."""
        before = self.target("previous")
        if self.target("current") == version and before not in ("", version):
            self._point("current", before)
        elif self.target("current") == version:
            (self.root / "current").unlink()
            _sync(self.root)  # first: a version that is not on trial any more must not come back
        (self.root / "trial").unlink(missing_ok=True)

    def _point(self, pointer: str, version: str) -> None:
        fresh = self.root / f".{pointer}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(version)
        fresh.replace(self.root / pointer)
        _sync(self.root)


def handle(step: str, place: Path, environments: Environments) -> str:
    """Do one step of a handler; return what it says.

    Args:
        step: As `ota.device.handlers.Step` names it.
        place: Holds `files`; its name is the version's.
        environments: Where versions live.

    Raises:
        RuntimeError: The step cannot be done; says why.
        subprocess.CalledProcessError: pip cannot install the wheels.
        OSError: The disk is full or read-only.
    """
    files = sorted(path.name for path in (place / "files").glob("*"))
    match step:
        case "Download":
            others = [name for name in files if not name.endswith(".whl")]
            if others or not any(name.startswith(f"{PACKAGE}-") for name in files):
                raise RuntimeError(f"expected wheels, {PACKAGE}'s among them, found {files}")
        case "Install":
            environments.make(place.name, place / "files")
            environments.begin_trial(place.name)
        case "NeedsRestart":
            return "no" if environments.starts(place.name) else "yes"
        case "Commit":
            environments.commit(place.name)
        case "Rollback":
            environments.take_back(place.name)
        case _:
            raise RuntimeError(f"unknown step {step!r}")
    return ""


class Agent(Protocol):
    """A process that was started, as `subprocess.Popen` is one."""

    returncode: int

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended; raises TimeoutExpired."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


Start = Callable[[list[str]], Agent]
"""Starts a program; raises OSError if it cannot be."""


class Watchdog:
    """Starts the agent of `current` again and again, until it is told to end itself.

    Args:
        directory: The device's.
        window_s: Seconds within which a version on trial must show that it works.
        start: Starts the agent.
        wait: Lets seconds pass.
    """

    def __init__(
        self,
        directory: Path,
        *,
        window_s: float = WINDOW_S,
        start: Start = subprocess.Popen,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory = directory
        self._environments = Environments(directory)
        self._window_s = window_s
        self._start, self._wait = start, wait
        self._is_ending = False

    def end(self, *_: object) -> None:
        """End the agent, and do not start it again."""
        self._is_ending = True

    def run(self) -> int:
        """Start the agent until told to end; return its last exit code."""
        code = 0
        while not self._is_ending:
            try:
                code = self._once()
            except OSError as error:  # a start that cannot be counted: a disk may get better
                print(f"agent waits for its disk: {error}", file=sys.stderr)  # noqa: T201  there is no log but the supervisor's
                self._wait(PAUSE_S)
        return code

    def _once(self) -> int:
        """Run one version of the agent to its end, or to the end of its trial."""
        version = self._environments.target("current")
        if (self._environments.starts(version) or 0) >= MAX_STARTS:
            self._give_up(version)
            return 1
        self._environments.note_start(version)
        command = [str(self._environments.python(version)), "-m", DAEMON]
        try:
            child = self._start([*command, "--dir", str(self._directory)])
        except OSError as error:
            print(f"agent {version[:12]} cannot be started: {error}", file=sys.stderr)  # noqa: T201  as above
            self._give_up(version)
            self._wait(PAUSE_S)
            return 1
        deadline = time.monotonic() + self._window_s
        while child.poll() is None:
            if self._is_ending or (time.monotonic() > deadline and self._is_on_trial(version)):
                _end(child)
            self._wait(GLANCE_S)
        if not self._is_ending and not self._restarts_itself(version, child.returncode):
            self._give_up(version)
            self._wait(PAUSE_S)
        return child.returncode

    def _restarts_itself(self, version: str, code: int) -> bool:
        """Whether the agent ended in good order to let another version run."""
        return code == 0 and self._environments.target("current") != version

    def _is_on_trial(self, version: str) -> bool:
        return self._environments.starts(version) is not None

    def _give_up(self, version: str) -> None:
        """Take a version back that is on trial; another one is simply started again."""
        if self._is_on_trial(version):
            print(f"agent {version[:12]} does not work; taken back", file=sys.stderr)  # noqa: T201  as above
            self._environments.take_back(version)


def _end(child: Agent, grace_s: float = 5.0) -> None:
    """End a process in good order, or else at once."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace_s)
        return
    child.kill()
    child.wait()


def _remove(place: Path) -> None:
    """Remove a version, the file that vouches for it first: a half of it vouches for nothing."""
    (place / COMPLETE).unlink(missing_ok=True)
    _sync(place)
    shutil.rmtree(place, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Replace a small file durably."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a handler's step, or as the watchdog; return the exit code."""
    parser = argparse.ArgumentParser(description="Update a device's agent, or watch over it.")
    parser.add_argument("step", nargs="?", help="Download, Install, NeedsRestart, Commit …")
    parser.add_argument("place", nargs="?", type=Path, help="The directory that holds `files`.")
    parser.add_argument("--launch", type=Path, metavar="DIR", help="Watch over the agent in DIR.")
    parser.add_argument("--window", type=float, default=WINDOW_S, help="Seconds of a trial.")
    options = parser.parse_args(arguments)
    if options.launch:
        watchdog = Watchdog(options.launch, window_s=options.window)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, watchdog.end)
        return watchdog.run()
    if options.step is None or options.place is None:
        parser.error("a step and a directory, or --launch")
    try:
        directory = Path(os.environ["WILDFLOWER_DIR"])
        said = handle(options.step, options.place, Environments(directory))
    except (RuntimeError, OSError, KeyError, subprocess.CalledProcessError) as error:
        print(error)  # noqa: T201  what a handler says goes into the report
        return 1
    if said:
        print(said)  # noqa: T201  as above
    return 0


if __name__ == "__main__":
    sys.exit(main())
