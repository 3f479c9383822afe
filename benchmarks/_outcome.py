"""How every benchmark ends: a table for people, then ONE line of JSON for programs."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Return what the figures were measured on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def cpu_model() -> str:
    """Return the CPU's name as the kernel knows it, or the architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def tell(name: str, figures: Mapping[str, float], rows: Sequence[tuple[str, str]]) -> None:
    """Print the table and the line."""
    width = max((len(title) for title, _ in rows), default=0)
    for title, value in rows:
        print(f"{title:<{width}}  {value}")
    print(json.dumps({"name": name, "figures": dict(figures), "machine": machine()}))
