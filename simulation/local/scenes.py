"""The demo's steps, in order. Each does what an operator, a device or an attacker would do.

Steps wait for events that the server announces, never for time; where nothing is announced they
look at a condition. Each returns the sentence that is told of it, and raises if it did not hold.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from wildflower.server.api.views import EventView, ReleaseView
from wildflower.server.cli.remote import Remote
from wildflower.server.settings import load_settings
from wildflower.simulation.errors import StepError
from wildflower.simulation.local import human_error, processes
from wildflower.simulation.local.fleet import Fleet
from wildflower.simulation.local.launch import Launch, plan_devices, set_up, start_devices
from wildflower.simulation.local.mirror import HostileMirror, Lie

WAIT_S: Final = 600.0
"""Longest that one announced thing may take on a slow, busy machine."""
CANARY: Final = 250
"""Permille of each target group in the canary; at least one device is drawn."""


@dataclass(slots=True)
class Stage:
    """What the steps share, and what later steps and the counting need to know.

    Attributes:
        fleet: The processes.
        wanted: How they were started.
        rounds: How many rounds to train.
        mirrors: The hostile mirrors.
        stack: Ends what must be ended at the end.
        began: When the demo began.
        training: Id of the training.
        releases: The good releases.
        bad: The releases that a human signed in error.
        victim: The device that is killed in the middle of a round.
        orphans: Processes that would not end.
    """

    fleet: Fleet
    wanted: Launch
    rounds: int
    stack: contextlib.ExitStack
    began: datetime
    mirrors: dict[str, HostileMirror] = field(default_factory=dict)
    training: str = ""
    releases: list[ReleaseView] = field(default_factory=list)
    bad: list[ReleaseView] = field(default_factory=list)
    victim: str = ""
    orphans: list[int] = field(default_factory=list)

    @property
    def remote(self) -> Remote:
        """The operator's way to the server."""
        return self.fleet.remote()


@dataclass(frozen=True, slots=True)
class Scene:
    """One step: its title, and what it does."""

    title: str
    play: Callable[[Stage], str]


@contextlib.contextmanager
def opened(directory: Path, *, devices: int, rounds: int) -> Iterator[Stage]:
    """Set the stage; at the end, end every process and note what is left."""
    wanted = Launch(directory=directory, devices=devices, tethered=True)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(directory, tethered=True)
        stage = Stage(fleet, wanted, rounds, stack, datetime.now(UTC))
        try:
            yield stage
        finally:
            stage.orphans = fleet.down()


def make_server(stage: Stage) -> str:
    """Deal out the data and make the server: CA, keys by role, database, operator token."""
    set_up(stage.wanted)
    keys = sorted((stage.fleet.server_directory / "keys").glob("*.pem"))
    return f"enrolment CA, {len(keys)} signing keys, database, operator token"


def start_server(stage: Stage) -> str:
    """Start the server: all listeners, the SuperLink, the release signer."""
    stage.fleet.start_server()
    status = stage.remote.status()
    return f"{len(status.listeners)} listeners, {len(status.processes)} supervised processes"


def enrol_devices(stage: Stage) -> str:
    """Start the agents; two of them look for releases at a hostile mirror first."""
    server = stage.fleet.server_directory
    origin = load_settings(server).device_url
    names = [plan.name for plan in plan_devices(stage.wanted)]
    for lie, name in zip(Lie, reversed(names), strict=False):
        mirror = HostileMirror(lie, origin, str(server / "ca" / "ca.pem"))
        stage.mirrors[name] = stage.stack.enter_context(mirror)
    sources = {name: (mirror.url,) for name, mirror in stage.mirrors.items()}
    start_devices(stage.fleet, plan_devices(stage.wanted, sources))
    devices = stage.remote.devices()
    _require(len(devices) == len(names), f"{len(devices)} of {len(names)} devices enrolled")
    classes = sorted({device.device_class for device in devices})
    return f"{len(devices)} devices of {len(classes)} classes; {len(sources)} use hostile mirrors"


def train(stage: Stage) -> str:
    """Train under secure aggregation; one device is killed in the middle of a round."""
    remote = stage.remote
    seen = remote.status().last_event
    stage.training = remote.start_training(rounds=stage.rounds).training_id
    stage.victim = plan_devices(stage.wanted)[0].name
    fatal = min(2, stage.rounds)

    def watch(event: EventView) -> bool | None:
        if event.subject == f"{stage.training}/{fatal}":
            if event.kind == "round.stage" and event.fields.get("stage") == "train":
                stage.fleet.kill(stage.victim)
            if event.kind == "round.recorded":
                stage.fleet.restart(stage.victim)
        if event.kind == "training.aborted":
            raise StepError(f"the training was aborted: {event.fields.get('reason')}")
        return True if event.kind == "training.finished" else None

    remote.wait_for(watch, after=seen, timeout_s=WAIT_S)
    rounds = remote.rounds(stage.training)
    struck = rounds[fatal - 1]
    _require(
        len(struck.survivors) == len(struck.cohort) - 1,
        f"round {fatal}: {len(struck.survivors)} of {len(struck.cohort)} devices survived",
    )
    accuracies = ", ".join(f"{r.metrics.get('accuracy', 0.0):.1%}" for r in rounds)
    return f"accuracy {accuracies}; {stage.victim} was killed in round {fatal} and came back"


def release(stage: Stage) -> str:
    """Wait until the last model went through the release line by itself."""
    remote = stage.remote
    model = remote.training(stage.training).model

    def watch(event: EventView) -> bool | None:
        if event.kind == "line.failed":
            raise StepError(f"the release line failed: {event.fields.get('reason')}")
        return True if event.kind == "line.published" and event.subject == model else None

    remote.wait_for(watch, timeout_s=WAIT_S)
    stage.releases = remote.line(model).releases
    artifacts = remote.artifacts(model)
    _require(all(a.passed for a in artifacts), "an artifact did not pass its gates")
    sizes = ", ".join(f"{a.recipe} {a.length / 1000:.0f} kB" for a in artifacts)
    return f"{len(artifacts)} artifacts ({sizes}), gated, signed, published"


def roll_out(stage: Stage) -> str:
    """Bring the releases to a canary of each class, then to every device."""
    remote = stage.remote
    digests = [one.digest for one in stage.releases]
    everyone = stage.wanted.devices
    rollout = remote.create_rollout(digests, stages=(CANARY, 1000), min_reports=everyone).rollout_id
    _wait_for_end(remote, rollout, "rollout.done")
    groups = remote.rollout(rollout).groups
    committed = sum(group.committed for group in groups)
    _require(committed == everyone, f"{committed} of {everyone} devices committed")
    return f"canary of each class, then all: {committed} devices committed"


def infer(stage: Stage) -> str:
    """Let each device's application ask its model about images that nobody has seen."""
    data = stage.fleet.directory / "data" / "final.npz"
    names = [plan.name for plan in plan_devices(stage.wanted)]
    before = {plan: stage.fleet.directory / "logs" / f"{plan}-application.log" for plan in names}
    module = "wildflower.simulation.local.application"
    running = [
        processes.spawn(
            name,
            module,
            ["--dir", str(stage.fleet.device_directory(name)), "--data", str(data)],
            log,
            die_with_parent=True,
        )
        for name, log in before.items()
    ]
    done: Callable[[], bool] = lambda: not any(map(processes.is_alive, running))  # noqa: E731
    stage.fleet.wait("the applications to end", done, timeout_s=WAIT_S)
    processes.reap()
    expected = 500 * len(names)
    remote = stage.remote
    counted: Callable[[], bool] = lambda: sum(s.n for s in remote.summaries()) >= expected  # noqa: E731
    stage.fleet.wait("all summaries to arrive", counted, timeout_s=WAIT_S)
    parts = [
        f"{s.accuracy or 0:.1%} at p95 {s.latency_p95_ms or 0:.2f} ms" for s in remote.summaries()
    ]
    return f"{expected} inferences watched, labelled accuracy per artifact: {'; '.join(parts)}"


def refuse(stage: Stage) -> str:
    """Sign releases whose golden outputs are wrong, and let devices find out."""
    remote = stage.remote
    expires = datetime.now(UTC) + timedelta(days=30)
    stage.bad = human_error.sign_wrong_releases(
        remote, stage.releases, stage.fleet.server_directory / "keys", expires=expires
    )
    digests = [one.digest for one in stage.bad]
    # The canaries of all classes have their say; one more failure would be one beyond the canary.
    rollout = remote.create_rollout(
        digests,
        stages=(CANARY, 1000),
        min_reports=stage.wanted.devices,
        max_failures=len(digests) - 1,
    ).rollout_id
    _wait_for_end(remote, rollout, "rollout.aborted")
    groups = remote.rollout(rollout).groups
    _require(not any(g.committed for g in groups), "a device committed a bad release")
    refused = sum(group.failed for group in groups)
    _require(refused >= 1, "no device refused the bad release")
    lies = sum(bool(mirror.told) for mirror in stage.mirrors.values())
    _require(lies == len(stage.mirrors), "a hostile mirror was never asked")
    return f"{refused} canaries rolled back, the rollout stopped; {lies} hostile mirrors refused"


def follow(stage: Stage) -> str:
    """Trace one device's model back to the round that made it."""
    name = plan_devices(stage.wanted)[-1].name
    device = next(d for d in stage.remote.devices() if d.name == name)
    chain = stage.remote.trace(device.device_id).chains[0]
    _require(bool(chain.gate_report and chain.model), "the chain has a gap")
    links = (chain.artifact, chain.gate_report, chain.model)
    shown = " -> ".join(digest[:8] for digest in links)
    return f"{name} -> {shown} -> round {chain.round_number} of {chain.training[:8]}"


SCENES: Final = (
    Scene("Set up the server", make_server),
    Scene("Start the server", start_server),
    Scene("Enrol devices", enrol_devices),
    Scene("Train with secure aggregation", train),
    Scene("Build, gate, sign, publish", release),
    Scene("Roll out", roll_out),
    Scene("Infer and watch", infer),
    Scene("Refuse what is bad", refuse),
    Scene("Trace", follow),
)


def _wait_for_end(remote: Remote, rollout: str, expected: str) -> None:
    def watch(event: EventView) -> str | None:
        ended = event.subject == rollout and event.kind in ("rollout.done", "rollout.aborted")
        return event.kind if ended else None

    kind = remote.wait_for(watch, timeout_s=WAIT_S)
    reason = remote.rollout(rollout).reason
    _require(kind == expected, f"{kind} instead of {expected}: {reason}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StepError(otherwise)
