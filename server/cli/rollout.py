"""`wildflower rollout`: bring a release to devices, in stages."""

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from wildflower.server.api.views import EventView, RolloutView
from wildflower.server.cli.remote import Remote, ServerDirectory, ServerUrl, Token, find_remote
from wildflower.server.cli.waiting import show_progress, tell
from wildflower.server.errors import RemoteError

app = typer.Typer(no_args_is_help=True, help="Bring a release to devices, in stages.")

WAITS_FOR_NOBODY: Final = ("done", "aborted", "paused")

RolloutId = Annotated[str, typer.Argument(help='Its id, the beginning of it, or "latest".')]


@dataclass(frozen=True, slots=True)
class CreatedRollout:
    """A new rollout; the exit code is 1 if it was followed and did not reach everybody."""

    rollout: RolloutView

    @property
    def succeeded(self) -> bool:
        """Whether it is on its way or done."""
        return self.rollout.phase not in ("aborted", "paused", "rolling-back")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """All rollouts."""

    rollouts: list[RolloutView]


@app.command(
    "create", epilog="Example: wildflower rollout create --release latest --stages 250,1000 --wait"
)
def create(  # noqa: PLR0913  each is an option
    *,
    release: Annotated[
        list[str] | None,
        typer.Option(help='Digest of a release, "latest", or "latest:approved"; may be repeated.'),
    ] = None,
    stages: Annotated[
        str, typer.Option(help="Permille of every target group that each stage reaches.")
    ] = "250,1000",
    min_reports: Annotated[
        int, typer.Option(min=0, help="Devices that must report before a stage is left.")
    ] = 1,
    max_failures: Annotated[int, typer.Option(min=0, help="Failures that are tolerated.")] = 0,
    soak_s: Annotated[int, typer.Option(min=0, help="Seconds that a stage is watched.")] = 0,
    window_s: Annotated[int, typer.Option(min=0, help="Downloads spread over seconds.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> CreatedRollout:
    """Begin a rollout: a few devices of every target group first, then more.

    A stage is left when enough devices have signed that they run the release; the first failure
    too many stops the rollout and sends its devices back.
    """
    remote = find_remote(server, token, directory)
    before = remote.status().last_event
    made = remote.create_rollout(
        release or ["latest"],
        stages=parse_stages(stages),
        min_reports=min_reports,
        max_failures=max_failures,
        soak_s=soak_s,
        window_s=window_s,
    )
    if wait:
        show_progress()
        await_rollout(remote, made.rollout_id, after=before)
    return CreatedRollout(remote.rollout(made.rollout_id))


@app.command("ls", epilog="Example: wildflower rollout ls")
def ls(*, server: ServerUrl = "", token: Token = "", directory: ServerDirectory = None) -> Rollouts:
    """List the rollouts."""
    return Rollouts(find_remote(server, token, directory).rollouts())


@app.command("show", epilog="Example: wildflower rollout show latest")
def show(
    rollout: RolloutId,
    *,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> RolloutView:
    """Show a rollout and how far each target group is."""
    return find_remote(server, token, directory).rollout(rollout)


@app.command("abort", epilog='Example: wildflower rollout abort latest --reason "wrong labels"')
def abort(
    rollout: RolloutId,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "an operator ended it",
    keep: Annotated[
        bool, typer.Option("--keep", help="Devices keep what they have, instead of going back.")
    ] = False,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> RolloutView:
    """End a rollout; devices that hold the release go back to what they had."""
    remote = find_remote(server, token, directory)
    return remote.abort_rollout(rollout, reason, roll_back=not keep)


def await_rollout(
    remote: Remote, rollout_id: str, *, after: int, timeout_s: float | None = None
) -> EventView:
    """Follow a rollout until it is done, aborted or paused; return the event that says so.

    Args:
        remote: The server.
        rollout_id: Which rollout.
        after: Number of an event from before it was created.
        timeout_s: Give up after this long.

    Raises:
        RemoteError: The time is over, or the server is lost.
    """

    def until(event: EventView) -> EventView | None:
        is_report = event.kind == "device.report" and event.fields.get("rollout") == rollout_id
        if event.subject != rollout_id and not is_report:
            return None
        tell(event)
        ended = event.subject == rollout_id and event.fields.get("phase") in WAITS_FOR_NOBODY
        return event if ended else None

    return remote.wait_for(until, after=after, timeout_s=timeout_s)


def parse_stages(text: str) -> list[int]:
    """Return the stages that an option names.

    Raises:
        RemoteError: Not numbers with commas between them.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RemoteError(
            f"--stages {text!r}: expected numbers in [1, 1000] with commas between them",
            hint="Such as --stages 250,1000.",
        ) from error
