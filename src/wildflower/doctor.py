"""`wildflower doctor`: what this machine can do, found by trying it, and what to do about it.

Each check is a function of what it looks at, so that a test can show it a machine it dislikes.
A missing extra is no fault: a device that only infers needs none. What fails is what would make
an installed part misbehave.
"""

import base64
import errno
import platform
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, unique
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Final

import typer

import wildflower
from wildflower.client.self_report import measure_self
from wildflower.extras import DISTRIBUTION, Extra, find_extras
from wildflower.ota.device.profile import CLASSES, SelfReport, classify

PYTHON: Final = (3, 11)
PORTS: Final[dict[int, str]] = {
    8440: "operators",
    8442: "enrolment",
    8443: "device HTTPS",
    8444: "device gRPC",
}
"""Where `wildflower server up` listens unless told otherwise."""

LEAST_DISK: Final = 200 * 2**20  # bytes; below it not even a small model can be staged
COMFORTABLE_DISK: Final = 4 * 2**30  # bytes; a virtual environment with torch takes 2 GiB
LAST_YEAR: Final = 2100  # a clock beyond it has lost its battery, as one before the package has
PURPOSES: Final = {
    "train": "a device that trains",
    "server": "wildflower server, build and rounds",
    "simulation": "wildflower demo, local and simulate",
    "data": "the demo's data set and other table formats",
}
DOUBLE: Final = base64.b64decode(
    "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
"""An ONNX model, y = x + x for one float32 (opset 13, 63 bytes); a test reads it with onnx."""


@unique
class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it was.
        state: How it came out.
        found: What is there.
        advice: What to do now; "" where nothing is to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def succeeded(self) -> bool:
        """Whether nothing failed."""
        return all(check.state is not State.FAIL for check in self.checks)


@dataclass(frozen=True, slots=True)
class Version:
    """What is installed here.

    Attributes:
        version: Of wildflower.
        python: Of the interpreter.
        platform: Operating system and instruction set.
    """

    version: str
    python: str
    platform: str


app = typer.Typer(help="Check what this machine can do.")
version_app = typer.Typer(help="Show the version.")


@version_app.command("version", epilog="Example: wildflower version --format json")
def show_version() -> Version:
    """Show the version."""
    machine = f"{platform.system().lower()}-{platform.machine()}"
    return Version(wildflower.__version__, platform.python_version(), machine)


@app.command("doctor", epilog="Example: wildflower doctor --dir /var/lib/wildflower")
def doctor(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where models and state shall lie.")
    ] = Path(),
) -> Diagnosis:
    """Check what this machine can do, and say what to do where it cannot."""
    report = measure_self(directory)
    return Diagnosis(
        (
            check_python(sys.version_info[:2]),
            *map(check_extra, find_extras()),
            check_flower(),
            check_runtime(DOUBLE),
            check_class(report),
            check_disk(report.disk_bytes, directory),
            *(check_port(port, who) for port, who in PORTS.items()),
            check_clock(datetime.now(UTC), Path(wildflower.__file__)),
        )
    )


def check_python(found: Sequence[int]) -> Check:
    """Judge the interpreter's version, such as (3, 11)."""
    text, least = (".".join(map(str, parts)) for parts in (found, PYTHON))
    if tuple(found) < PYTHON:
        return Check("python", State.FAIL, text, f"Install Python {least} or newer.")
    return Check("python", State.OK, text)


def check_extra(extra: Extra) -> Check:
    """Say whether an extra is there; that it is not is no fault."""
    name, purpose = f"extra {extra.name}", PURPOSES[extra.name]
    if not extra.missing:
        return Check(name, State.OK, f"installed ({purpose})")
    advice = f"For {purpose}: pip install 'wildflower[{extra.name}]'"
    return Check(name, State.OK, f"missing {', '.join(extra.missing)}", advice)


def check_flower(found: str | None = None, requirements: Iterable[str] | None = None) -> Check:
    """Judge the version of flwr, whose internals we use.

    Args:
        found: The version; the installed one if None.
        requirements: `Requires-Dist` lines; those of the installed distribution if None.
    """
    if found is None:
        try:
            found = version("flwr")
        except PackageNotFoundError:
            return Check("flwr", State.OK, "not installed (this device does not train)")
    from packaging.requirements import Requirement  # comes with flwr

    lines = requires(DISTRIBUTION) or [] if requirements is None else requirements
    wanted = next(line for line in map(Requirement, lines) if line.name == "flwr")
    if found in wanted.specifier:
        return Check("flwr", State.OK, found)
    advice = f"pip install 'flwr{wanted.specifier}'"
    return Check("flwr", State.FAIL, f"{found}, expected {wanted.specifier}", advice)


def check_runtime(model: bytes) -> Check:
    """Run a model of one addition in this process.

    Args:
        model: ONNX bytes, y = x + x.
    """
    import numpy as np
    import onnxruntime

    found = f"onnxruntime {onnxruntime.__version__}"
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": np.array([21], np.float32)})
    except Exception as error:  # noqa: BLE001  its errors share no base class but Exception
        advice = "pip install --force-reinstall onnxruntime"
        return Check("runtime", State.FAIL, f"{found} cannot run a model: {error}", advice)
    if answer.tolist() != [42.0]:
        advice = "This CPU or build computes wrongly: do not use it."
        return Check("runtime", State.FAIL, f"{found}: 21 + 21 = {answer.tolist()}", advice)
    return Check("runtime", State.OK, f"{found} runs a model")


def check_class(report: SelfReport) -> Check:
    """Say which device class a machine belongs to, and what speaks for it."""
    found = classify(report)
    flags = ", ".join(sorted({*found.any_flag} & {*report.cpu_flags})) or "no special flags"
    advice = "" if found.any_flag else f"It gets fp32 models. Known classes: {', '.join(CLASSES)}."
    return Check("device class", State.OK, f"{found.name} ({report.machine}, {flags})", advice)


def check_disk(free: int, directory: Path) -> Check:
    """Judge `free` bytes where models and state shall lie."""
    found = f"{free / 2**30:.1f} GiB free for {directory}"
    if free < LEAST_DISK:
        return Check("disk", State.FAIL, found, f"Free at least {LEAST_DISK // 2**20} MiB.")
    if free < COMFORTABLE_DISK:
        advice = "Enough for a device; a server or a device that trains wants 4 GiB."
        return Check("disk", State.WARN, found, advice)
    return Check("disk", State.OK, found)


def check_port(port: int, who: str) -> Check:
    """Say whether a server could listen on a port of every interface."""
    name = f"port {port}"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, str(error))
            advice = "A server here needs another port, or what holds this one is a server."
            return Check(name, State.WARN, f"taken ({why}), wanted for {who}", advice)
    return Check(name, State.OK, f"free for {who}")


def check_clock(now: datetime, package: Path) -> Check:
    """Judge the clock: certificates and TUF metadata are worthless to one that is far off.

    Args:
        now: What the clock says.
        package: A file of this package; it cannot have been installed in the future.
    """
    installed = datetime.fromtimestamp(package.stat().st_mtime, UTC)
    found = now.isoformat(timespec="seconds")
    if installed <= now and now.year < LAST_YEAR:
        return Check("clock", State.OK, found)
    when = installed.isoformat(timespec="seconds")
    return Check(
        "clock",
        State.FAIL,
        f"{found}, but wildflower was installed at {when}",
        "Set the clock, for example with NTP.",
    )
