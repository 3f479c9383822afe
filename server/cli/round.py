"""`wildflower round`: start and follow training rounds."""

import logging
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from wildflower.server.api.views import EventView, RoundView, TrainingView
from wildflower.server.cli.remote import Remote, ServerDirectory, ServerUrl, Token, find_remote
from wildflower.server.cli.waiting import show_progress, tell
from wildflower.server.errors import SettingsError
from wildflower.server.training_settings import CHOICES, NUMBERS, Protection

log = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True, help="Start and follow training rounds.")

KNOWN: Final = tuple(sorted({*NUMBERS, *CHOICES} - {"protection", "seed"}))

ENDS: Final = ("training.finished", "training.aborted")


@dataclass(frozen=True, slots=True)
class ShownTraining:
    """A training and its rounds."""

    training: TrainingView
    rounds: list[RoundView]


@dataclass(frozen=True, slots=True)
class StartedTraining:
    """A training and its rounds; the exit code is 1 if it was followed and aborted."""

    training: TrainingView
    rounds: list[RoundView]

    @property
    def succeeded(self) -> bool:
        """Whether it was not aborted."""
        return self.training.phase != "aborted"


@dataclass(frozen=True, slots=True)
class Trainings:
    """All trainings."""

    trainings: list[TrainingView]


@app.command("start", epilog="Example: wildflower round start --rounds 3 --set bits=16 --wait")
def start(  # noqa: PLR0913  each is an option
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 1,
    protection: Annotated[
        Protection, typer.Option(help="How updates are hidden from the server.")
    ] = Protection.SECAGG,
    plain: Annotated[bool, typer.Option("--plain", help="Short for --protection plain.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the training to its end.")] = False,
    quorum: Annotated[
        int | None, typer.Option(min=1, help="Fewest devices; the server's own if left out.")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(min=1, help="Seconds that a round may take.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Local epochs; the task's own if left out.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Any of {', '.join(KNOWN)}; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial model and local training.")] = 0,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> StartedTraining:
    """Start a training of the server's app with the devices that are connected.

    One training runs at a time; others wait. With --wait the exit code tells how it ended.
    """
    remote = find_remote(server, token, directory)
    asked = {"quorum": quorum, "deadline_s": deadline_s, "epochs": epochs, "seed": seed}
    settings: dict[str, float | str] = {k: v for k, v in asked.items() if v is not None}
    settings["protection"] = Protection.PLAIN if plain else protection
    settings |= dict(map(_parsed, setting or ()))
    before = remote.status().last_event
    training = remote.start_training(rounds=rounds, settings=settings)
    if wait:
        show_progress()
        await_training(remote, training.training_id, after=before)
    found = remote.training(training.training_id)
    return StartedTraining(found, remote.rounds(found.training_id))


def _parsed(text: str) -> tuple[str, float | str]:
    """Return the name and the value of one `--set`.

    Raises:
        SettingsError: Not of the form KEY=VALUE.
    """
    name, found, value = text.partition("=")
    if not found:
        raise SettingsError(f"--set {text!r}: expected KEY=VALUE", hint="Such as --set bits=16.")
    try:
        return name, float(value)
    except ValueError:
        return name, value


@app.command("ls", epilog="Example: wildflower round ls")
def ls(
    *, server: ServerUrl = "", token: Token = "", directory: ServerDirectory = None
) -> Trainings:
    """List the trainings."""
    return Trainings(find_remote(server, token, directory).trainings())


@app.command("show", epilog="Example: wildflower round show latest")
def show(
    training: Annotated[str, typer.Argument(help='Its id, the beginning of it, or "latest".')],
    *,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> ShownTraining:
    """Show a training and its rounds."""
    remote = find_remote(server, token, directory)
    found = remote.training(training)
    return ShownTraining(found, remote.rounds(found.training_id))


def await_training(
    remote: Remote, training_id: str, *, after: int, timeout_s: float | None = None
) -> EventView:
    """Follow a training to its end, each step on a line; return its last event.

    Args:
        remote: The server.
        training_id: Which training.
        after: Number of an event from before it was asked for.
        timeout_s: Give up after this long.

    Raises:
        RemoteError: The time is over, or the server is lost.
    """

    def until(event: EventView) -> EventView | None:
        if not event.subject.startswith(training_id):
            return None
        tell(event)
        return event if event.kind in ENDS else None

    return remote.wait_for(until, after=after, timeout_s=timeout_s)
