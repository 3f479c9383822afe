"""The `wildflower` command as a user calls it, and its committed schemas."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "schemas"


def wildflower(*arguments: str, timeout_s: float = 240.0) -> tuple[int, dict[str, Any], str]:
    """Run a command; return its exit code, its last JSON line, and what it told people."""
    ended = subprocess.run(
        [sys.executable, "-m", "wildflower.cli", *arguments, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = ended.stdout.splitlines()
    return ended.returncode, json.loads(lines[-1]) if lines else {}, ended.stderr


def run(words: str, *arguments: str, timeout_s: float = 240.0) -> dict[str, Any]:
    """Run a command that must succeed and keep its committed schema; return its answer."""
    code, answer, told = wildflower(*words.split(), *arguments, timeout_s=timeout_s)
    assert code == 0, f"{words}: {answer}\n{told}"
    schema = json.loads((SCHEMAS / f"{words.replace(' ', '-')}.json").read_text())
    jsonschema.validate(answer, schema)
    return answer


def await_connected(devices: int, *server: str) -> None:
    """Wait until so many agents have come back; how soon depends on the machine's load."""
    for _ in range(120):
        if sum(each["connected"] for each in run("fleet ls", *server)["devices"]) == devices:
            return
        time.sleep(1)
    raise AssertionError(f"{devices} devices were never connected")


def processes_of(place: Path) -> list[int]:
    """Return the pids of processes whose command line names a directory."""
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(place) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]
