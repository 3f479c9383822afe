"""Faults while an owner's handler is at work; each takes a bench whose device is offered labels."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.faults.bench import told
from tests.faults.software import NEW, OLD, Labels

ONCE: Final = """
if step == "Install" and not (home / "fallen").exists():
    (home / "fallen").touch()
    FALLS
"""
"""What a handler does at its first Install alone."""
OUTLIVES: Final = """os.kill(os.getppid(), 9)
    put(home / "steps", (home / "steps").read_bytes() + b"alone\\n")
    import time
    time.sleep(0.5)
    put(home / "steps", (home / "steps").read_bytes() + b"done\\n")
    sys.exit()"""
"""Half a second of work, which whoever comes next has to wait for."""


def rigged(bench: Labels, falls: str) -> Path:
    """Return a device whose handler falls once."""
    device = bench.copy()
    handler = device / "handlers" / bench.line
    before, step, after = handler.read_text().partition('if step == "Install":')
    handler.write_text(before + ONCE.replace("FALLS", falls) + step + after)
    return device


def steady(bench: Labels, device: Path) -> None:
    """The device has the old version or the new one, and runs what it ran."""
    assert not (wrong := bench.complaints(device)), wrong


def handler_killed(bench: Labels) -> None:
    """The handler is killed at its work: the step has failed, and what was there is put back."""
    device = rigged(bench, "os.kill(os.getpid(), 9)")
    bench.run(device)
    steady(bench, device)
    assert (device / "labels.txt").read_bytes() == OLD
    assert told(device) == [(1, "committed"), (2, "failed")]
    assert bench.steps(device) == ["Download", "Install", "Rollback"]


def agent_killed(bench: Labels) -> None:
    """The agent is killed, its handler works on: the next agent waits, then does the step again."""
    device = rigged(bench, OUTLIVES)
    assert bench.run(device).is_killed
    bench.run(device)
    steady(bench, device)
    assert (device / "labels.txt").read_bytes() == NEW
    assert told(device) == [(1, "committed"), (2, "committed")]
    steps = ["Download", "Install", "alone", "done", "Install", "NeedsRestart", "Commit"]
    assert bench.steps(device) == steps


SCENARIOS: Final[Mapping[str, Callable[[Labels], None]]] = {
    "handler killed at its work": handler_killed,
    "agent killed while its handler works": agent_killed,
}
