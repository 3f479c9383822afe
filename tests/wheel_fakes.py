"""Wheels of agents that do nothing but what a test wants."""

import zipfile
from pathlib import Path

SHORT = "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(directory: Path, version: str, daemon: str) -> Path:
    """Write a wheel of the package, whose daemon is a few lines of Python; return its path.

    Args:
        directory: Made if it is not there.
        version: What it says that it is.
        daemon: The code of `wildflower.client.daemon`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    info = f"wildflower-{version}.dist-info"
    files = {
        "wildflower/__init__.py": "",
        "wildflower/client/__init__.py": "",
        "wildflower/client/daemon.py": daemon,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: wildflower\nVersion: {version}\n",
        f"{info}/WHEEL": SHORT,
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = directory / f"wildflower-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, text)
    return path
