"""The operator's way to a server: its REST API as methods, for commands and scripts.

    remote = Remote.of_directory(Path("server"))            # on the server's host
    remote = Remote("http://127.0.0.1:8440", token)         # through a tunnel

What the server answers is parsed into the classes it was made from (`server.api.views`). Errors
are `RemoteError`s with the server's own sentence and hint. Nothing here imports a server.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Self, TypeVar

import httpx
import typer

from wildflower.server.api.privacy_views import PrivacyView
from wildflower.server.api.views import (
    ArtifactView,
    BlobView,
    DeviceView,
    EventView,
    GateView,
    InvitationView,
    LineView,
    ModelView,
    ReleaseView,
    RolloutView,
    RoundView,
    StatusView,
    SummaryView,
    TrainingView,
)
from wildflower.server.cli.rest import Rest, parse
from wildflower.server.errors import RemoteError
from wildflower.server.trace import Trace

T = TypeVar("T")

OPERATOR_FILE: Final = "operator.json"
DIRECTORY_VARIABLE: Final = "WILDFLOWER_SERVER_DIR"
URL_VARIABLE: Final = "WILDFLOWER_SERVER_URL"
TOKEN_VARIABLE: Final = "WILDFLOWER_TOKEN"  # noqa: S105  the variable's name, not a token
PATIENCE_S: Final = 60.0  # how long a server that is being restarted is waited for
RETRY_S: Final = 0.25

ServerUrl = Annotated[
    str, typer.Option("--server", envvar=URL_VARIABLE, help="URL of the operator API.")
]
Token = Annotated[
    str, typer.Option("--token", envvar=TOKEN_VARIABLE, help="Operator token, with --server.")
]
ServerDirectory = Annotated[
    Path | None,
    typer.Option(
        "--dir", envvar=DIRECTORY_VARIABLE, help="The server's directory, on the server's host."
    ),
]


def find_remote(server: str, token: str, directory: Path | None) -> "Remote":
    """Return the server that a command line or the environment names.

    Raises:
        RemoteError: None is named, or its `operator.json` cannot be read.
    """
    if server:
        if not token:
            raise RemoteError(
                f"no token for {server}", hint=f"Give --token or set {TOKEN_VARIABLE}."
            )
        return Remote(server, token)
    if directory is None:
        raise RemoteError(
            "no server is named",
            hint=f"Give --dir or --server, or set {DIRECTORY_VARIABLE} or {URL_VARIABLE}.",
        )
    return Remote.of_directory(directory)


@dataclass(frozen=True, slots=True)
class Remote:
    """A server, as an operator reaches it.

    Attributes:
        url: Its operator API, such as "http://127.0.0.1:8440".
        token: The operator's.
        transport: What carries requests; None for the network.
    """

    url: str
    token: str = field(repr=False)
    transport: httpx.BaseTransport | None = field(default=None, repr=False)

    @classmethod
    def of_directory(cls, directory: Path) -> Self:
        """Return the server of a directory on this host.

        Raises:
            RemoteError: Its `operator.json` cannot be read.
        """
        path = directory / OPERATOR_FILE
        try:
            found = json.loads(path.read_text())
            return cls(str(found["url"]), str(found["token"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RemoteError(
                f"{path} cannot be read: {error}",
                hint=f"Is it a server's? Set one up: wildflower server init --dir {directory}",
            ) from error

    @property
    def _rest(self) -> Rest:
        return Rest(self.url, self.token, self.transport)

    def is_ready(self) -> bool:
        """Whether the server answers and says that all its parts are up."""
        try:
            with self._rest.client() as client:
                return bool(client.get("/healthz").is_success)
        except httpx.HTTPError:
            return False

    def status(self) -> StatusView:
        """Return how the server is."""
        return self._rest.get("status", StatusView)

    def invite(
        self, *, ring: str = "default", uses: int = 1, hours: float = 24.0
    ) -> InvitationView:
        """Make a join token."""
        return self._rest.post(
            "tokens", InvitationView, {"ring": ring, "uses": uses, "expires_s": hours * 3600}
        )

    def devices(self) -> list[DeviceView]:
        """Return every enrolled device."""
        return list(self._rest.pages("devices", DeviceView))

    def start_training(
        self,
        *,
        rounds: int,
        settings: Mapping[str, float | str] | None = None,
    ) -> TrainingView:
        """Ask for a training; it waits for those asked for before.

        Args:
            rounds: How many rounds.
            settings: See `server.training_settings`.
        """
        body = {"rounds": rounds, "settings": dict(settings or {})}
        return self._rest.post("trainings", TrainingView, body)

    def trainings(self) -> list[TrainingView]:
        """Return every training."""
        return list(self._rest.pages("trainings", TrainingView))

    def training(self, training_id: str) -> TrainingView:
        """Return a training, by its id or the beginning of it, or "latest"."""
        return self._rest.get(f"trainings/{training_id}", TrainingView)

    def rounds(self, training_id: str) -> list[RoundView]:
        """Return the rounds of a training."""
        return list(self._rest.pages("rounds", RoundView, training=training_id))

    def privacy(self) -> PrivacyView:
        """Return what the population has given up of its privacy."""
        return self._rest.get("privacy", PrivacyView)

    def models(self) -> list[ModelView]:
        """Return every global model."""
        return list(self._rest.pages("models", ModelView))

    def build(self, model: str = "latest") -> LineView:
        """Send a model into the release line; one that is on its way is left alone."""
        return self._rest.post(f"models/{model}/build", LineView, {})

    def line(self, model: str) -> LineView:
        """Return how far a model has come in the release line."""
        return self._rest.get(f"models/{model}/line", LineView)

    def artifacts(self, model: str = "") -> list[ArtifactView]:
        """Return the artifacts of a model, or all."""
        return list(
            self._rest.pages("artifacts", ArtifactView, **({"model": model} if model else {}))
        )

    def gate(self, digest: str) -> GateView:
        """Return a gate report, by its digest or its artifact's."""
        return self._rest.get(f"gates/{digest}", GateView)

    def releases(self) -> list[ReleaseView]:
        """Return every published release."""
        return list(self._rest.pages("releases", ReleaseView))

    def submit_release(
        self, manifest: bytes, metadata: bytes, statement: bytes = b""
    ) -> ReleaseView:
        """Publish a release that offline keys have signed.

        Args:
            manifest: Its bytes.
            metadata: The signed metadata of the role `models/approved` that names it.
            statement: The envelope of where it comes from; b"" for none.
        """
        body = {"manifest": manifest.decode(), "metadata": metadata.decode()}
        body |= {"statement": statement.decode()} if statement else {}
        return self._rest.post("releases", ReleaseView, body)

    def statement(self, release: str) -> bytes:
        """Return the signed statement of where a release comes from; b"" if it has none."""
        return self._rest.request("GET", f"releases/{release}/statement").content

    def rollouts(self) -> list[RolloutView]:
        """Return every rollout."""
        return list(self._rest.pages("rollouts", RolloutView))

    def rollout(self, rollout_id: str) -> RolloutView:
        """Return a rollout, by its id or the beginning of it, or "latest"."""
        return self._rest.get(f"rollouts/{rollout_id}", RolloutView)

    def create_rollout(
        self,
        releases: Sequence[str] = ("latest",),
        *,
        stages: Sequence[int] = (250, 1000),
        min_reports: int = 1,
        max_failures: int = 0,
        soak_s: int = 0,
        window_s: int = 0,
    ) -> RolloutView:
        """Bring releases to devices, in stages.

        Args:
            releases: Digests, "latest", or "latest:approved" for the approved ones.
            stages: Permille of every target group that each stage reaches.
            min_reports: Devices that must have reported before a stage is left.
            max_failures: Failures that are tolerated.
            soak_s: Seconds that a stage is watched after it has its reports.
            window_s: Devices spread their downloads over this many seconds.
        """
        body = {
            "releases": list(releases),
            "stages": list(stages),
            "min_reports": min_reports,
            "max_failures": max_failures,
            "soak_s": soak_s,
            "window_s": window_s,
        }
        return self._rest.post("rollouts", RolloutView, body)

    def abort_rollout(self, rollout_id: str, reason: str, *, roll_back: bool = True) -> RolloutView:
        """End a rollout; devices that hold the release go back if `roll_back`."""
        body = {"reason": reason, "roll_back": roll_back}
        return self._rest.post(f"rollouts/{rollout_id}/abort", RolloutView, body)

    def trace(self, asked: str) -> Trace:
        """Follow something through the loop."""
        return self._rest.get(f"trace/{asked}", Trace)

    def summaries(self) -> list[SummaryView]:
        """Return how each artifact does on the fleet."""
        return list(self._rest.pages("summaries", SummaryView))

    def put_blob(self, data: bytes) -> BlobView:
        """Store a file; storing it again changes nothing."""
        return parse(self._rest.request("POST", "blobs", content=data).content, BlobView)

    def blob(self, digest: str) -> bytes:
        """Return a stored file."""
        return self._rest.request("GET", f"blobs/{digest}").content

    def has_blob(self, digest: str) -> bool:
        """Whether the server has a file."""
        try:
            self._rest.request("HEAD", f"blobs/{digest}")
        except RemoteError:
            return False
        return True

    def repository(self, role: str) -> bytes:
        """Return the current metadata of a TUF role, such as "models/approved"."""
        return self._rest.request("GET", f"repository/{role}").content

    def events(self, after: int = 0, limit: int = 1000) -> list[EventView]:
        """Return what has happened after event number `after`, without waiting."""
        return self._rest.get("events/log", list[EventView], after=after, limit=limit)

    def follow(
        self, after: int = 0, *, patience_s: float = PATIENCE_S, timeout_s: float | None = None
    ) -> Iterator[EventView]:
        """Yield events as they happen, without end; a lost connection is made anew.

        Args:
            after: Number of the last event that the caller knows.
            patience_s: How long a server that cannot be reached is waited for.
            timeout_s: Stop after this long, between two events or heartbeats; None for never.

        Raises:
            RemoteError: The server is away for longer than `patience_s`, or refuses.
        """
        seen, lost = after, time.monotonic()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while end is None or time.monotonic() < end:
            try:
                for event in self._rest.stream(seen):
                    lost = time.monotonic()
                    if event is not None:
                        seen = event.number
                        yield event
                    if end is not None and time.monotonic() > end:
                        return
            except httpx.HTTPError as error:
                if time.monotonic() - lost > patience_s:
                    raise self._rest.unreachable(error) from error
                time.sleep(RETRY_S)  # a server that starts again says nothing until it is there

    def wait_for(
        self,
        until: Callable[[EventView], T | None],
        *,
        after: int = 0,
        timeout_s: float | None = None,
    ) -> T:
        """Follow events until one gives a result.

        Args:
            until: Returns the result at the event that ends the wait, None before.
            after: Number of the last event that the caller knows.
            timeout_s: Give up after this long.

        Raises:
            RemoteError: The time is over, or the server is lost.
        """
        for event in self.follow(after, timeout_s=timeout_s):
            result = until(event)
            if result is not None:
                return result
        raise RemoteError(f"nothing came of it within {timeout_s:g} s")
