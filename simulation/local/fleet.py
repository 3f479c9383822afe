"""A real server and real agents, as processes of one user in one directory, on free ports.

Everything that a deployment has is there: enrolment, TLS, the SuperLink, the release signer, one
agent process per device. What a deployment does not have: all offline keys lie on this machine,
and a device may claim CPU features, so that several device classes fit on one host.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from wildflower.client.self_report import measure_self
from wildflower.ota.device.profile import CLASSES
from wildflower.server.cli.remote import Remote
from wildflower.simulation.errors import DirectoryError, WaitError
from wildflower.simulation.local import processes
from wildflower.simulation.local.processes import Process

START_S: Final = 90.0
"""Seconds that a server or a fleet may take to start on a slow, busy machine."""
LOOK_S: Final = 0.1
"""Seconds between two looks at a condition that nobody announces."""
SERVER: Final = "server"


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device to start.

    Attributes:
        name: What it is called.
        device_class: The class it asks for.
        app: What it trains.
        data: Its examples; "" for none.
        cpu_flags: CPU features it claims beyond the host's; empty on a host that has them.
        sources: Where it looks for releases first; the server itself always comes last.
    """

    name: str
    device_class: str
    app: str
    data: str = ""
    cpu_flags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def deal_classes(count: int) -> list[tuple[str, tuple[str, ...]]]:
    """Return a device class for each of `count` devices, and the CPU flags it has to claim."""
    here = measure_self(Path.cwd())
    known = list(CLASSES.values())
    dealt = [known[index % len(known)] for index in range(count)]
    return [(c.name, () if c.fits(here) else c.any_flag[:1]) for c in dealt]


@dataclass(frozen=True, slots=True)
class Fleet:
    """A local fleet that runs, or ran.

    Attributes:
        directory: Where it lives.
        tethered: Whether its processes end with the process that starts them.
    """

    directory: Path
    tethered: bool = False

    @property
    def server_directory(self) -> Path:
        """The server's directory."""
        return self.directory / SERVER

    def device_directory(self, name: str) -> Path:
        """Return a device's directory."""
        return self.directory / "devices" / name

    def processes(self) -> list[Process]:
        """Return the latest process of each name, running or not."""
        return list({process.name: process for process in processes.load(self.directory)}.values())

    def process(self, name: str) -> Process:
        """Return the process of a name.

        Raises:
            DirectoryError: There is none.
        """
        known = {process.name: process for process in self.processes()}
        if name not in known:
            raise DirectoryError(
                f"there is no process {name!r}", hint=f"There are: {', '.join(sorted(known))}"
            )
        return known[name]

    def remote(self) -> Remote:
        """Return the operator's way to the server."""
        return Remote.of_directory(self.server_directory)

    def start_server(self) -> None:
        """Start the server and wait until all its listeners answer.

        Raises:
            ProcessError: It ended instead.
            WaitError: It did not answer in time.
        """
        arguments = ["-v", "server", "up", "--dir", str(self.server_directory)]
        server = self._spawn(SERVER, "wildflower.cli", arguments)
        self.wait("the server's listeners", self.remote().is_ready, watched=[server])

    def start_device(self, plan: DevicePlan, token: str = "") -> None:
        """Start a device's process; it enrols by itself if it has not, with the token."""
        home = self.device_directory(plan.name)
        arguments = ["--dir", str(home), "--name", plan.name, "--token", token]
        arguments += ["--device-class", plan.device_class, "--app", plan.app, "--data", plan.data]
        arguments += [word for source in plan.sources for word in ("--source", source)]
        arguments += [word for flag in plan.cpu_flags for word in ("--cpu-flag", flag)]
        self._remember(plan)
        self._spawn(plan.name, "wildflower.simulation.local.device", arguments)

    def kill(self, name: str) -> None:
        """End one process as a power cut would."""
        processes.kill(self.process(name))

    def restart(self, name: str) -> None:
        """Start a process again that has ended, as it was started before."""
        if name == SERVER:
            self.start_server()
        else:
            self.start_device(self._plans()[name])

    def wait(
        self,
        what: str,
        condition: Callable[[], bool],
        *,
        watched: Sequence[Process] = (),
        timeout_s: float = START_S,
    ) -> None:
        """Wait until a condition holds that no event announces.

        Raises:
            ProcessError: A watched process ended meanwhile.
            WaitError: The time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            for process in watched:
                processes.require_alive(process)
            if time.monotonic() > deadline:
                raise WaitError(
                    f"waited {timeout_s:.0f} s for {what} in vain",
                    hint=f"Logs: {self.directory / 'logs'}",
                )
            time.sleep(LOOK_S)

    def down(self) -> list[int]:
        """End every process, devices first; return the pids of what would not end."""
        started = processes.load(self.directory)
        processes.stop([process for process in started if process.name != SERVER])
        processes.stop([process for process in started if process.name == SERVER])
        return processes.orphans(started)

    def _spawn(self, name: str, module: str, arguments: Sequence[str]) -> Process:
        log = self.directory / "logs" / f"{name}.log"
        process = processes.spawn(name, module, arguments, log, die_with_parent=self.tethered)
        processes.save(self.directory, [*processes.load(self.directory), process])
        return process

    def _plans(self) -> dict[str, DevicePlan]:
        rows = json.loads((self.directory / "plans.json").read_text())
        return {plan.name: plan for plan in map(_plan, rows)}

    def _remember(self, plan: DevicePlan) -> None:
        """Keep how a device was started, so that it can be started again."""
        path = self.directory / "plans.json"
        known = self._plans() if path.exists() else {}
        known[plan.name] = plan
        path.write_text(json.dumps([asdict(each) for each in known.values()]))


def _plan(row: dict[str, Any]) -> DevicePlan:
    lists = {name: tuple(row[name]) for name in ("cpu_flags", "sources")}
    return DevicePlan(**row | lists)
