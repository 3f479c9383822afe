"""One device's process in a local fleet: enrol if that is still to be done, then be the agent.

A real device does the same in two commands, `wildflower device enroll` and `wildflower agent run`;
here it is one process, so that eight of them start in seconds.

    python -m wildflower.simulation.local.device --dir DIR --token TOKEN --name NAME ...
"""

import argparse
from pathlib import Path
from typing import Final

from wildflower.client.daemon import run_daemon
from wildflower.client.enrolment import Enrolment, enrol
from wildflower.client.policy import Policy
from wildflower.logs import LogFormat, configure_logging

POLL_S: Final = 5.0
"""How often it looks for releases unasked; hints make it look at once."""
UPLOAD_S: Final = 1.0
"""How often it uploads summaries: nobody wants to wait an hour for a demo."""


def main() -> None:
    """Enrol once, then run until told to end."""
    options = _parse()
    configure_logging(LogFormat.TEXT, verbosity=1)
    if not (options.dir / "agent.toml").exists():
        wanted = Enrolment(
            directory=options.dir,
            name=options.name,
            device_class=options.device_class,
            app=options.app,
            data=options.data,
            sources=tuple(options.source),
            cpu_flags=tuple(options.cpu_flag),
            policy=Policy(release=("auto", "approved")),
            poll_s=POLL_S,
            upload_s=UPLOAD_S,
        )
        enrol(options.token, wanted)
    run_daemon(options.dir)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device-class", default="")
    parser.add_argument("--app", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--source", action="append", default=[])
    parser.add_argument("--cpu-flag", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
