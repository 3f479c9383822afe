"""How a local fleet comes to life: data dealt out, a server, devices that enrol by themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wildflower.server.initialise import Options, initialise
from wildflower.simulation.data import Split, digits, split_examples
from wildflower.simulation.errors import SimulationError
from wildflower.simulation.local import directory as places
from wildflower.simulation.local.fleet import DevicePlan, Fleet, deal_classes
from wildflower.simulation.partition import dirichlet_parts
from wildflower.strategies.task import Examples, find_task

DEMO_TASK: Final = "wildflower.simulation.local.demo_task:task"
CONCENTRATION: Final = 0.5
"""Of the Dirichlet distribution by which labels are dealt out: devices differ, but not wholly."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    Attributes:
        directory: Where everything goes.
        devices: How many agents.
        model: A `.py` file that defines `task`; None for the demo's digits.
        flower_app: A directory with a Message-API Flower app, which brings its own data.
        data: Examples to deal out; None for the demo's digits.
        seed: Of the split.
        settings: Further keys of `server.toml` and their values.
        tethered: Whether all processes end with this one.
    """

    directory: Path
    devices: int = 8
    model: Path | None = None
    flower_app: Path | None = None
    data: Path | None = None
    seed: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    tethered: bool = False

    @property
    def app(self) -> str:
        """What is learned, as a reference."""
        if self.flower_app is not None:
            return str(self.flower_app.absolute())
        return str(self.model.absolute()) if self.model is not None else DEMO_TASK

    @property
    def model_name(self) -> str:
        """Name of the model's line."""
        if self.flower_app is not None:
            return self.flower_app.absolute().name
        return find_task(self.app).name


def launch(wanted: Launch) -> Fleet:
    """Start a fleet and wait until every device is connected.

    Raises:
        DirectoryError: The directory holds something else, or a fleet that runs.
        SimulationError: The data cannot be dealt out.
        ProcessError: A process ended.
        WaitError: It took too long.
    """
    if wanted.model is not None and wanted.data is None:
        raise SimulationError(
            "a task of your own needs data", hint="Give --data FILE.npz with inputs and targets."
        )
    fleet = set_up(wanted)
    try:
        fleet.start_server()
        start_devices(fleet, plan_devices(wanted))
    except BaseException:
        fleet.down()
        raise
    return fleet


def set_up(wanted: Launch) -> Fleet:
    """Empty the directory, deal out the data, and make the server's directory.

    Raises:
        DirectoryError: The directory holds something else, or a fleet that runs.
    """
    fleet = Fleet(wanted.directory.absolute(), tethered=wanted.tethered)
    if places.is_ours(fleet.directory):
        fleet.down()
    places.prepare(fleet.directory)
    settings: dict[str, object] = {
        "app": wanted.app,
        "model_name": wanted.model_name,
        "quorum": max(3, wanted.devices // 2),
        "round_deadline_s": 300.0,
    }
    if wanted.flower_app is None:
        _deal_out(wanted, fleet.directory / "data")
        settings["proxy_data"] = str(fleet.directory / "data" / "proxy.npz")
    options = Options(profile="demo", free_ports=True, settings=settings | dict(wanted.settings))
    initialise(fleet.server_directory, options, now=datetime.now(UTC))
    return fleet


def plan_devices(
    wanted: Launch, sources: Mapping[str, tuple[str, ...]] | None = None
) -> list[DevicePlan]:
    """Return the devices to start: dealt over the device classes in turn."""
    plans = []
    for index, (device_class, flags) in enumerate(deal_classes(wanted.devices)):
        name = device_name(index)
        data = wanted.directory.absolute() / "data" / f"{name}.npz"
        plans.append(
            DevicePlan(
                name=name,
                device_class=device_class,
                app=wanted.app,
                data=str(data) if data.exists() else "",
                cpu_flags=flags,
                sources=(sources or {}).get(name, ()),
            )
        )
    return plans


def start_devices(fleet: Fleet, plans: list[DevicePlan]) -> None:
    """Start devices and wait until each has enrolled and is connected.

    Raises:
        ProcessError: One ended.
        WaitError: It took too long.
    """
    remote = fleet.remote()
    token = remote.invite(uses=len(plans)).token
    for plan in plans:
        fleet.start_device(plan, token)
    watched = [fleet.process(plan.name) for plan in plans]
    connected: Callable[[], bool] = lambda: remote.status().connected >= len(plans)  # noqa: E731
    fleet.wait("every device to connect", connected, watched=watched)


def device_name(index: int) -> str:
    """Return the name of the device at `index`, from 0."""
    return f"device-{index + 1:02d}"


def _deal_out(wanted: Launch, folder: Path) -> None:
    split = _examples(wanted)
    parts = dirichlet_parts(
        split.train.targets, wanted.devices, concentration=CONCENTRATION, seed=wanted.seed
    )
    for index, part in enumerate(parts):
        split.train[part].save(folder / f"{device_name(index)}.npz")
    split.proxy.save(folder / "proxy.npz")
    split.final.save(folder / "final.npz")


def _examples(wanted: Launch) -> Split:
    if wanted.data is None:
        return digits(seed=wanted.seed)
    return split_examples(Examples.open(wanted.data), seed=wanted.seed)
