"""What a device allows, whatever a server asks: `policy.toml`, owned by the device's owner.

It is enforced on the device, on the outgoing message and before an install; no server and no
application can go around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.client.settings_file import read, setting, write
from wildflower.ota.device.acceptance import Demands
from wildflower.ota.device.conditions import Metered, Rules, Window
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import HEX_DIGEST, PLAIN_NAME, SIGNERS
from wildflower.ota.release.method import JOIN

FILE: Final = "policy.toml"
UNITS: Final = ("device", "example")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a device allows.

    Attributes:
        secagg: "required": an update leaves only masked; "allowed": plain rounds are fine too.
        release: Roles whose releases it installs, out of "auto" and "approved".
        min_cohort: Smallest cohort it takes part in.
        helpers: Digests of the helpers of one-shot rounds, as `wildflower helper show` prints them.
            All of them take part in each such round, and no others: a server that could choose
            would choose the one it is in league with.
        key_holder: Digest of the key holder of homomorphic rounds, as `wildflower keyholder show`
            prints it; "" for no such rounds.
        max_epsilon_per_month: Largest epsilon that its answers of 30 days may amount to; 0 for no
            limit. With one, an answer that is not differentially private does not leave.
        unit: What the epsilon protects: "device" (all its data) or "example" (each of them).
        scrub_s: How often everything that is installed is read and compared with what was signed;
            0 for only when the agent begins.
        pinned_recall: "obey": a signed order takes back a release that is pinned here too; "keep":
            it stays, and the server is told.
        metered: What is fetched over a metered network: "never" anything, with "delta"
            all but whole model files and software, "always" everything.
        battery_min: With less charge, in percent, nothing is fetched unless on the mains.
        window: When releases are fetched, by the device's clock, as "01:00-05:00"; "" for always.
        software: Lines of software, such as "labels", that it installs by its owner's handlers
            when the role `software` has signed them; none by default.
        delta_fetch: "allowed": a model file may be made from the one that runs and a delta, and
            fetched whole where that fails; "never": it is always fetched whole.
        delta: At which the epsilon is told; the device's own, because a server's would be a way
            around the limit.
        max_epsilon: Largest epsilon that the training of a release may have spent, for the same
            unit and at no larger delta; 0 for no limit. With one, a release whose statement of
            provenance tells no epsilon is refused.
        min_clients: Fewest devices whose updates are in a release; 0 for any number.
        strategies: How a release may have been made, each a combination such as "secagg+fedavg"
            whose names must all be true of it; none for any.
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
        lambda v: bool(v) and all(role in SIGNERS for role in v),
        about="Who may sign what this device installs",
    )
    min_cohort: int = setting(
        3, "a number in [1, 1000000]", lambda v: 1 <= v <= 10**6, about="Smallest cohort it joins"
    )
    helpers: tuple[str, ...] = setting(
        (),
        "list of at most 8 digests, 64 hex digits each; none: no one-shot rounds",
        lambda v: _are_texts(v, 8, HEX_DIGEST.fullmatch),
        about="Digests of the helpers of one-shot rounds, all of which must take part",
    )
    key_holder: str = setting(
        "",
        'a digest of 64 hex digits, or "" for no homomorphic rounds',
        lambda v: not v or bool(HEX_DIGEST.fullmatch(v)),
        about="Digest of the key holder of homomorphic rounds",
    )
    max_epsilon_per_month: float = setting(
        0.0,
        "a number in [0, 1000], 0 for no limit",
        lambda v: 0 <= v <= 1000,
        about="Largest epsilon of all answers of 30 days",
    )
    unit: str = setting(
        "device",
        '"device" or "example"',
        UNITS.__contains__,
        about="What that epsilon protects",
    )
    delta: float = setting(
        1e-5,
        "a number in [1e-15, 0.01]",
        lambda v: 1e-15 <= v <= 0.01,
        about="The delta at which that epsilon is told",
    )
    pinned_recall: str = setting(
        "obey",
        '"obey" or "keep"',
        ("obey", "keep").__contains__,
        about="What to do when a pinned release is ordered back; it is reported either way",
    )
    software: tuple[str, ...] = setting(
        (),
        "list of at most 16 plain names; none: the role software is refused",
        lambda v: _are_texts(v, 16, PLAIN_NAME.fullmatch),
        about="Lines of software that the handlers of this device install",
    )
    delta_fetch: str = setting(
        "allowed",
        '"allowed" or "never"',
        ("allowed", "never").__contains__,
        about="Whether releases may come as their difference from what runs",
    )
    metered: str = setting(
        "always",
        '"never", "delta" or "always"',
        tuple(Metered).__contains__,
        about="What is fetched over a metered network",
    )
    battery_min: int = setting(
        0,
        "percent in [0, 100]",
        lambda v: 0 <= v <= 100,
        about="With less charge nothing is fetched, unless on the mains",
    )
    window: str = setting(
        "",
        'HH:MM-HH:MM, or "" for always',
        lambda v: not v or _is_window(v),
        about="When releases are fetched, by the device's clock",
    )
    scrub_s: float = setting(
        86_400.0,
        "seconds in [1, 31536000], 0 for only at the agent's start",
        lambda v: v == 0 or 1 <= v <= 31_536_000,
        about="How often what is installed is compared with what was signed",
    )

    max_epsilon: float = setting(
        0.0,
        "a number in [0, 1000], 0 for no limit",
        lambda v: 0 <= v <= 1000,
        about="Largest epsilon of the training that a release comes from",
    )
    min_clients: int = setting(
        0,
        "a number in [0, 1000000], 0 for any number",
        lambda v: 0 <= v <= 10**6,
        about="Fewest devices whose updates are in a release",
    )
    strategies: tuple[str, ...] = setting(
        (),
        'list of at most 32 combinations of `wildflower strategies ls`, such as "secagg+fedavg"; '
        "none: any",
        lambda v: _are_texts(v, 32, _is_known),
        about="How a release may have been made",
    )

    @property
    def demands(self) -> Demands:
        """What is demanded of where a release comes from."""
        return Demands(self.max_epsilon, self.delta, self.unit, self.min_clients, self.strategies)

    @property
    def fetching(self) -> Rules:
        """When releases are fetched."""
        window = Window.parse(self.window) if self.window else None
        return Rules(Metered(self.metered), self.battery_min, window)


def load_policy(directory: Path) -> Policy:
    """Read a device's policy.

    Raises:
        ConfigError: There is none, or a key or value is wrong.
    """
    return read(Policy, directory / FILE)


def save_policy(policy: Policy, directory: Path) -> None:
    """Write a device's policy."""
    write(policy, directory / FILE)


def _are_texts(found: Sequence[object], most: int, allows: Callable[[str], object]) -> bool:
    return len(found) <= most and all(isinstance(one, str) and allows(one) for one in found)


def _is_known(combination: str) -> bool:
    """Whether it names what a statement tells; a mistyped one would refuse every release."""
    from wildflower.strategies.combine import parse
    from wildflower.strategies.errors import OptionError
    from wildflower.strategies.option import Kind

    try:
        options = parse(combination)
    except OptionError:
        return False
    told = {one.name for one in options if one.kind not in (Kind.SELECTION, Kind.WEIGHTING)}
    return told == set(combination.split(JOIN))


def _is_window(text: str) -> bool:
    try:
        Window.parse(text)
    except FormatError:
        return False
    return True
