"""What a device allows, whatever a server asks: `policy.toml`, owned by the device's owner.

It is enforced on the device, on the outgoing message and before an install; no server and no
application can go around it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.client.settings_file import read, setting, write

FILE: Final = "policy.toml"
ROLES: Final = ("auto", "approved")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a device allows.

    Attributes:
        secagg: "required": an update leaves only masked; "allowed": plain rounds are fine too.
        release: Roles whose releases it installs, out of "auto" and "approved".
        min_cohort: Smallest cohort it takes part in.
    """

    secagg: str = setting(
        "required",
        '"required" or "allowed"',
        ("required", "allowed").__contains__,
        about="Whether an update may leave this device other than masked",
    )
    release: tuple[str, ...] = setting(
        ("auto",),
        'list out of "auto", "approved"',
        lambda v: bool(v) and all(role in ROLES for role in v),
        about="Who may sign what this device installs",
    )
    min_cohort: int = setting(
        3, "a number in [1, 1000000]", lambda v: 1 <= v <= 10**6, about="Smallest cohort it joins"
    )


def load_policy(directory: Path) -> Policy:
    """Read a device's policy.

    Raises:
        ConfigError: There is none, or a key or value is wrong.
    """
    return read(Policy, directory / FILE)


def save_policy(policy: Policy, directory: Path) -> None:
    """Write a device's policy."""
    write(policy, directory / FILE)
