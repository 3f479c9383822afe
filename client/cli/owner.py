"""`wildflower agent pause`, `resume`, `pin`, `unpin`: what the person at the device decides."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.config import load_config
from wildflower.client.errors import ConfigError
from wildflower.client.owner import DIGEST, MAX_REASON, Owner, load_owner, save_owner
from wildflower.ota.device.slots import Slots

app = typer.Typer(no_args_is_help=True, help="Run and inspect a device's agent.")

Directory = Annotated[Path, typer.Option("--dir", help="The device's directory.")]
DEFAULT = Path("/var/lib/wildflower")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the owner decided, as it is in force now."""

    paused: str
    pinned: str
    running: str


@app.command("pause", epilog='Example: wildflower agent pause --reason "trade fair"')
def pause(
    *,
    directory: Directory = DEFAULT,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at the device.")] = "by hand",
) -> Decision:
    """Install nothing new until `resume`; also what is on its way waits.

    The model goes on answering, reports go on being sent, a signed order to leave a release is
    still followed.
    """
    if not (reason.isprintable() and 0 < len(reason) <= MAX_REASON):
        raise ConfigError(
            f"reason = {reason[:80]!r} is not allowed",
            hint=f"Allowed: 1 to {MAX_REASON} printable characters.",
        )
    return _decide(directory, paused=reason)


@app.command("resume", epilog="Example: wildflower agent resume --dir /var/lib/wildflower")
def resume(*, directory: Directory = DEFAULT) -> Decision:
    """Let new releases in again."""
    return _decide(directory, paused="")


@app.command("pin", epilog="Example: wildflower agent pin --dir /var/lib/wildflower")
def pin(
    release: Annotated[
        str, typer.Argument(help="Digest, or how it begins; empty: the release that runs.")
    ] = "",
    *,
    directory: Directory = DEFAULT,
) -> Decision:
    """Install no release but this one until `unpin`.

    A pin is no downgrade: an earlier release comes back only by a signed order.
    """
    slots = Slots(directory / "slots") if (directory / "slots").is_dir() else None
    if not release and slots is not None:
        release = slots.running()
    known = [one.digest for one in slots.releases()] if slots is not None else []
    found = [digest for digest in known if release and digest.startswith(release)]
    if len(found) != 1 and not DIGEST.fullmatch(release):
        raise ConfigError(
            f"{release!r} names no release on this device" if release else "nothing runs yet",
            hint=f"On the device: {', '.join(d[:12] for d in known) or 'none'}. "
            "Another one takes all 64 digits of its digest.",
        )
    return _decide(directory, pinned=found[0] if len(found) == 1 else release)


@app.command("unpin", epilog="Example: wildflower agent unpin --dir /var/lib/wildflower")
def unpin(*, directory: Directory = DEFAULT) -> Decision:
    """Let other releases in again."""
    return _decide(directory, pinned="")


def _decide(directory: Path, **changes: str) -> Decision:
    load_config(directory)  # says what to do where no device is
    owner: Owner = replace(load_owner(directory), **changes)
    try:
        save_owner(owner, directory)
    except OSError as error:
        raise ConfigError(
            f"not decided, nothing has changed: {error}", hint="Is the disk full or read-only?"
        ) from error
    running = Slots(directory / "slots").running() if (directory / "slots").is_dir() else ""
    return Decision(owner.paused, owner.pinned, running)
