"""`wildflower bundle apply`, `collect`, `ack`: the device's half of what a person carries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.sneakernet import acknowledge, apply_bundle, collect

app = typer.Typer(
    no_args_is_help=True, help="Carry releases to devices without a network, and reports back."
)

Directory = Annotated[Path, typer.Option("--dir", help="The device's directory.")]
DEFAULT = Path("/var/lib/wildflower")


@dataclass(frozen=True, slots=True)
class BundleApplied:
    """What a bundle meant for this device; the exit code is 1 if something went wrong with it."""

    running: str
    phase: str
    outcomes: list[str]
    waits: str

    @property
    def succeeded(self) -> bool:
        """Whether everything that came of it is well."""
        return all(one.startswith("committed") for one in self.outcomes)


@dataclass(frozen=True, slots=True)
class BundleCollected:
    """What a device owes, in a file."""

    bundle: str
    reports: int
    summaries: int
    size: int


@dataclass(frozen=True, slots=True)
class BundleAcknowledged:
    """What is not sent again."""

    reports: int
    summaries: int


@app.command("apply", epilog="Example: wildflower bundle apply stick.tar --dir /var/lib/wildflower")
def apply(
    bundle: Annotated[Path, typer.Argument(help="What `wildflower bundle export` wrote.")],
    *,
    directory: Directory = DEFAULT,
) -> BundleApplied:
    """Look at a bundle as the agent looks at its server; the agent must not run meanwhile.

    Signatures, digests, policy, rollout and trial decide as they do online. What has expired by
    the device's clock is refused. A release on probation is committed by the agent, later.
    """
    done = apply_bundle(directory, bundle)
    return BundleApplied(done.running, done.phase, list(done.outcomes), done.waits)


@app.command("collect", epilog="Example: wildflower bundle collect --out from-device.tar")
def gather(
    *,
    out: Annotated[Path, typer.Option("--out", help="Where the bundle shall be written.")],
    directory: Directory = DEFAULT,
) -> BundleCollected:
    """Write the reports and summaries that the server has not yet into one signed file.

    They stay unsent until `wildflower bundle ack`, or until the network takes them.
    """
    done = collect(directory, out)
    return BundleCollected(str(out), done.reports, done.summaries, done.size)


@app.command("ack", epilog="Example: wildflower bundle ack from-device.tar")
def ack(
    bundle: Annotated[Path, typer.Argument(help="The file that `collect` wrote on this device.")],
    *,
    directory: Directory = DEFAULT,
) -> BundleAcknowledged:
    """Remember that the server has taken what was collected; the agent must not run meanwhile."""
    done = acknowledge(directory, bundle)
    return BundleAcknowledged(done.reports, done.summaries)
