"""`wildflower agent`: run this device's agent, and see how it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.agent import status_of
from wildflower.client.config import load_config
from wildflower.client.daemon import ENDED, run_daemon
from wildflower.client.errors import ConfigError
from wildflower.client.hold import Holds
from wildflower.client.owner import load_owner
from wildflower.ota import canonical
from wildflower.ota.device.journal import Entry, glance
from wildflower.ota.device.report import Outcome

app = typer.Typer(no_args_is_help=True, help="Run and inspect a device's agent.")

Directory = Annotated[Path, typer.Option("--dir", help="The device's directory.")]
DEFAULT = Path("/var/lib/wildflower")


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One outcome on this device."""

    sequence: int
    outcome: str
    release: str
    reason: str
    at: str
    sent: bool


@dataclass(frozen=True, slots=True)
class QuarantineLine:
    """A release that failed its trial here, and why."""

    release: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldLine:
    """An application that keeps the model as it is."""

    holder: str
    reason: str
    left_s: float


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """How a device is."""

    device_id: str
    name: str
    device_class: str
    target_group: str
    phase: str
    updating_to: str
    release: str
    order: int
    artifact: str
    damaged: bool
    training: bool
    holds: list[HoldLine]
    paused: str
    pinned: str
    as_of: str
    unsent_reports: int
    reports: list[ReportLine]
    refusals: list[ReportLine]
    quarantine: list[QuarantineLine]


@app.command("run", epilog="Example: wildflower agent run --dir /var/lib/wildflower")
def run(*, directory: Directory = DEFAULT) -> None:
    """Run the agent until it is told to end (SIGTERM, Ctrl-C)."""
    try:
        run_daemon(directory)
    except ConfigError as error:
        raise ConfigError(f"{error}; {ENDED}", hint=error.hint) from error


@app.command("status", epilog="Example: wildflower agent status --dir /var/lib/wildflower")
def status(
    *,
    directory: Directory = DEFAULT,
    last: Annotated[int, typer.Option(min=1, help="Reports and refusals to show.")] = 10,
) -> AgentStatus:
    """Show what the device runs, what it is doing, and what it last reported.

    Read from the device's own files: it works offline and beside a running agent.
    """
    config = load_config(directory)
    found = status_of(directory)
    entries, quarantined = _remembered(directory / "journal.db")
    owner = load_owner(directory)
    refused = [entry for entry in entries if entry.outcome is Outcome.REFUSED]
    return AgentStatus(
        device_id=config.device_id,
        name=config.name,
        device_class=config.device_class,
        target_group=str(found.get("target_group", "")),
        phase=str(found.get("phase", "not started")),
        updating_to=str(found.get("updating_to", "")),
        release=str(found.get("release", "")),
        order=int(found.get("order", 0)),
        artifact=str(found.get("artifact", "")),
        damaged=bool(found.get("damaged", False)),
        training=bool(found.get("training", False)),
        holds=[
            HoldLine(hold.holder, hold.reason, round(hold.left_s, 1))
            for hold in Holds(directory).standing()
        ],
        paused=owner.paused,
        pinned=owner.pinned,
        as_of=str(found.get("at", "")),
        unsent_reports=sum(not entry.sent for entry in entries),
        reports=_lines([entry for entry in entries if entry not in refused][-last:]),
        refusals=_lines(refused[-last:]),
        quarantine=[QuarantineLine(*pair) for pair in quarantined.items()],
    )


def _remembered(path: Path) -> tuple[list[Entry], dict[str, str]]:
    if not path.exists():
        return [], {}
    with glance(path) as journal:
        return journal.reports(), journal.quarantined()


def _lines(entries: Sequence[Entry]) -> list[ReportLine]:
    return [
        ReportLine(
            entry.sequence,
            entry.outcome.value,
            entry.release,
            entry.reason,
            canonical.to_time(entry.at),
            entry.sent,
        )
        for entry in entries
    ]
