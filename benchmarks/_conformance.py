"""How many scenarios of the TUF conformance table the device's client passes.

    passed, total, failed = play_all()                # the client is called, its clock ours
    passed, total, failed = play_all(processes=True)  # a process a command; needs `faketime`

Every scenario names its section of the TUF specification; the table is that of
`tests/client/test_conformance.py`. No failure is expected, none is skipped.
"""

import contextlib
import io
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests import (
    conformance_delegations,
    conformance_online,
    conformance_roots,
    conformance_targets,
)
from tests.conformance_bench import Case, as_process, bench, in_process

CASES = [
    *conformance_roots.CASES,
    *conformance_online.CASES,
    *conformance_delegations.CASES,
    *conformance_targets.CASES,
]


def play_all(*, processes: bool = False) -> tuple[int, int, list[str]]:
    """Play every scenario.

    Args:
        processes: Whether each command is a process of its own, as tuf-conformance does it.

    Returns:
        Scenarios passed, scenarios in all, and the names of those that failed.

    Raises:
        RuntimeError: Processes cannot be put into another time: there is no `faketime`.
    """
    if processes and not shutil.which("faketime"):
        raise RuntimeError("no faketime on this machine: apt install faketime")
    failed = [str(case) for case in CASES if not _passes(case, processes=processes)]
    return len(CASES) - len(failed), len(CASES), failed


def _passes(case: Case, *, processes: bool) -> bool:
    now = datetime.now(UTC).replace(microsecond=0)
    client = as_process if processes else in_process(now)
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.redirect_stderr(io.StringIO()),
        bench(Path(place), client, now) as on,
    ):
        try:
            case.play(on)
        except Exception:  # noqa: BLE001  a client that crashes has not passed either
            return False
    return True
