"""`wildflower build`: a model's artifacts for the device classes."""

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from wildflower.server.api.views import ArtifactView, EventView, ReleaseView
from wildflower.server.cli.remote import Remote, ServerDirectory, ServerUrl, Token, find_remote
from wildflower.server.cli.waiting import show_progress, tell

app = typer.Typer(help="Build a model's artifacts for the device classes.")

ENDS: Final = ("published", "failed")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """How far a model has come in the release line."""

    model: str
    phase: str
    reason: str
    artifacts: list[ArtifactView]
    releases: list[ReleaseView]

    @property
    def succeeded(self) -> bool:
        """Whether it has not failed."""
        return self.phase != "failed"


@app.command("build", epilog="Example: wildflower build latest --wait")
def build(
    model: Annotated[
        str, typer.Argument(help='Digest of a model, the beginning of it, or "latest".')
    ] = "latest",
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it is published.")] = False,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> BuildResult:
    """Send a model into the release line: build, gates, signature, publication.

    The last model of a training goes there by itself; what is built already is not built again.
    """
    remote = find_remote(server, token, directory)
    before = remote.status().last_event
    line = remote.build(model)
    if wait and line.phase not in ENDS:
        show_progress()
        await_line(remote, line.model, after=before)
    line = remote.line(line.model)
    return BuildResult(line.model, line.phase, line.reason, line.artifacts, line.releases)


def await_line(
    remote: Remote, model: str, *, after: int, timeout_s: float | None = None
) -> EventView:
    """Follow a model through the release line; return its last event.

    Args:
        remote: The server.
        model: Digest of the model.
        after: Number of an event from before it went in.
        timeout_s: Give up after this long.

    Raises:
        RemoteError: The time is over, or the server is lost.
    """

    def until(event: EventView) -> EventView | None:
        if event.subject != model or not event.kind.startswith("line."):
            return None
        tell(event)
        return event if event.kind in {f"line.{end}" for end in ENDS} else None

    return remote.wait_for(until, after=after, timeout_s=timeout_s)
