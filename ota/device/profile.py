"""What a device is: what it says of itself, and the class whose artifact it gets.

A class is a promise about numerics: int8 kernels of x86 CPUs without VNNI saturate where VNNI does
not, so the two get different artifacts; whatever fits neither gets the conservative fp32 one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, IncompatibleError

KIND: Final = "wildflower.self-report"
MAX_HOLDS: Final = 8
"""Of whom a server is told who keep new releases out; the first ones say enough."""


@dataclass(frozen=True, slots=True)
class SelfReport:
    """What a device says of itself at enrolment and check-in.

    Attributes:
        machine: Instruction set as `platform.machine()` names it, such as "x86_64".
        cpu_flags: Flags of the CPU, sorted.
        ram_bytes: Total memory.
        disk_bytes: Free space where slots lie.
        agent: Version of the agent.
        runtimes: Version of each inference runtime, by distribution name.
        wanted_class: The class the device asks for; "" leaves it to the server.
        holds: Who keeps new releases out on the device, each in a sentence.
    """

    machine: str
    cpu_flags: tuple[str, ...]
    ram_bytes: int
    disk_bytes: int
    agent: str
    runtimes: Mapping[str, str]
    wanted_class: str = ""
    holds: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        body = {name: getattr(self, name) for name in self.__slots__}
        body |= {"cpu_flags": list(self.cpu_flags), "runtimes": dict(self.runtimes)}
        body |= {"holds": list(self.holds)}
        return canonical.to_bytes({"kind": KIND, "format": 1} | body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a report from outside.

        Raises:
            FormatError: Not a self-report.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            return cls(
                machine=_text(document, "machine"),
                cpu_flags=tuple(str(flag) for flag in document["cpu_flags"]),
                ram_bytes=int(document["ram_bytes"]),
                disk_bytes=int(document["disk_bytes"]),
                agent=_text(document, "agent"),
                runtimes={str(k): str(v) for k, v in document["runtimes"].items()},
                wanted_class=_text(document, "wanted_class"),
                holds=tuple(str(hold) for hold in document.get("holds", ()))[:MAX_HOLDS],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"self-report: {error!r}") from error


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """Devices that can share one artifact.

    Attributes:
        name: Name of the class, part of its target groups' names.
        machine: Instruction set it demands; "" for any.
        any_flag: At least one of these CPU flags is demanded; empty for none.
    """

    name: str
    machine: str = ""
    any_flag: tuple[str, ...] = ()

    def fits(self, report: SelfReport) -> bool:
        """Whether a device with this report keeps the class's promise."""
        has_machine = self.machine in ("", report.machine)
        return has_machine and (not self.any_flag or bool({*self.any_flag} & {*report.cpu_flags}))


CLASSES: Final[Mapping[str, DeviceClass]] = MappingProxyType(
    {
        known.name: known
        for known in (
            DeviceClass("linux-x86_64-vnni", "x86_64", ("avx512_vnni", "avx_vnni")),
            DeviceClass("linux-x86_64-avx2", "x86_64", ("avx2",)),
            DeviceClass("linux-generic"),
        )
    }
)
"""The classes we build for, the most specific first."""


def classify(report: SelfReport) -> DeviceClass:
    """Return the class of a device: the one it asks for, or the most specific that fits.

    Raises:
        IncompatibleError: It asks for a class that is unknown or that it does not fit.
    """
    if not report.wanted_class:
        return next(known for known in CLASSES.values() if known.fits(report))
    wanted = CLASSES.get(report.wanted_class)
    if wanted is None:
        known = ", ".join(CLASSES)
        raise IncompatibleError(
            f"unknown device class {report.wanted_class!r}", hint=f"Known: {known}"
        )
    if not wanted.fits(report):
        raise IncompatibleError(
            f"device class {wanted.name} demands {wanted.machine} with one of {wanted.any_flag}, "
            f"the device reports {report.machine} without it",
            hint="Leave the class empty to get the one that fits.",
        )
    return wanted


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{key} must be text of at most 200 characters")
    return value
