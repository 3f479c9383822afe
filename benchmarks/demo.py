"""How long each step of the demo takes, as a user waits for it: `python -m benchmarks.demo`."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._outcome import tell


def main() -> None:
    """Run the demo in a directory of its own and tell the seconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 devices and one round")
    options = parser.parse_args()
    size = ["--devices", "4", "--rounds", "1"] if options.quick else []
    with tempfile.TemporaryDirectory(prefix="wildflower-demo-") as place:
        command = [sys.executable, "-m", "wildflower.cli", "demo", "--format", "json", *size]
        command += ["--dir", str(Path(place) / "demo")]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    result = json.loads(ended.stdout.splitlines()[-1])
    if not result["success"]:
        sys.exit(f"the demo failed: {result['error']['message']}")
    steps = {step["step"]: step["seconds"] for step in result["steps"]}
    figures = {f"{_key(title)}_s": value for title, value in steps.items()}
    rows = [(title, f"{value:7.1f} s") for title, value in steps.items()]
    rows += [(name, f"{value:g}") for name, value in result["figures"].items()]
    tell("demo", figures | result["figures"], rows)


def _key(title: str) -> str:
    return "_".join(re.findall(r"[a-z]+", title.lower()))


if __name__ == "__main__":
    main()
