"""`wildflower agent doctor` and `history`: how a device is, and how it came to be so."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.config import load_config
from wildflower.client.examination import examine
from wildflower.client.history import timeline
from wildflower.doctor import Diagnosis
from wildflower.ota import canonical
from wildflower.ota.device.journal import glance
from wildflower.ota.device.slots import Slots

app = typer.Typer(no_args_is_help=True, help="Run and inspect a device's agent.")

Directory = Annotated[Path, typer.Option("--dir", help="The device's directory.")]
DEFAULT = Path("/var/lib/wildflower")


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One thing that happened."""

    at: str
    what: str
    why: str
    then: str
    release: str
    rollout: str
    told: bool


@dataclass(frozen=True, slots=True)
class History:
    """What happened on a device, the oldest first; what is under way comes last, without a time."""

    device_id: str
    happened: list[HistoryLine]


@app.command("doctor", epilog="Example: wildflower agent doctor --dir /var/lib/wildflower --online")
def doctor(
    *,
    directory: Directory = DEFAULT,
    online: Annotated[
        bool, typer.Option("--online", help="Ask its sources and the channel, too.")
    ] = False,
) -> Diagnosis:
    """Explain how the device is, and say what to do where something is wrong.

    Changes nothing; works offline, beside a running agent and without one.
    """
    return examine(directory, datetime.now(UTC), online=online)


@app.command("history", epilog="Example: wildflower agent history --last 5")
def history(
    *,
    directory: Directory = DEFAULT,
    last: Annotated[int, typer.Option(min=1, help="How many lines to show.")] = 50,
) -> History:
    """Show what was installed, refused and rolled back on this device, and why."""
    config, path = load_config(directory), directory / "journal.db"
    if not path.exists():
        return History(config.device_id, [])
    known = {one.digest: one for one in Slots(directory / "slots").releases()}
    with glance(path) as journal:
        happened = timeline(journal.reports(), journal.load(), known)
    lines = [
        HistoryLine(
            canonical.to_time(one.at) if one.at else "",
            one.what,
            one.why,
            one.then,
            one.release,
            one.rollout,
            one.is_told,
        )
        for one in happened[-last:]
    ]
    return History(config.device_id, lines)
