"""What a device says of itself, read from the kernel and the installed packages."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import wildflower
from wildflower.ota.device.profile import SelfReport

RUNTIMES: Final = ("onnxruntime", "ai-edge-litert")
CPU_INFO: Final = Path("/proc/cpuinfo")


def cpu_flags(text: str) -> tuple[str, ...]:
    r"""Return the flags that all CPUs of a `/proc/cpuinfo` have, sorted.

    x86 calls them "flags", ARM "Features".

    Example:
        >>> cpu_flags("flags : sse avx2\nflags : avx2\n")
        ('avx2',)
    """
    found = [
        set(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    return tuple(sorted(set.intersection(*found))) if found else ()


def measure_self(
    directory: Path,
    *,
    claimed_flags: Sequence[str] = (),
    wanted_class: str = "",
    cpu_info: Path = CPU_INFO,
) -> SelfReport:
    """Return what this device is.

    Args:
        directory: Where slots will lie; its file system's free space is reported.
        claimed_flags: CPU flags to report beyond the CPU's own; for emulated devices.
        wanted_class: The device class to ask for.
        cpu_info: Where the kernel tells about the CPU.
    """
    try:
        flags = cpu_flags(cpu_info.read_text())
    except OSError:
        flags = ()
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return SelfReport(
        machine=platform.machine(),
        cpu_flags=tuple(sorted({*flags, *claimed_flags})),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        disk_bytes=shutil.disk_usage(existing).free,
        agent=wildflower.__version__,
        runtimes={name: version for name in RUNTIMES if (version := _version(name))},
        wanted_class=wanted_class,
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
