"""A helper that is killed right after a session's claim is on its disk, before it answers."""

import os
import signal
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from wildflower.server.helper import create_app, opened
from wildflower.server.listener import Listener, Place, TlsFiles
from wildflower.server.pinned import CERTIFICATE_FILE, KEY_FILE
from wildflower.strategies.secagg.helper import Claims


class DeadlyClaims:
    """Claims whose power is cut when they have kept their promise."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def claim(self, session: bytes, request: bytes, *, now: datetime) -> bytes:
        self._claims.claim(session, request, now=now)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead")


def main(directory: Path, port: int) -> None:
    with opened(directory) as home:
        helper = replace(home.helper, claims=DeadlyClaims(home.helper.claims))
        application = create_app(helper, now=lambda: datetime.now(UTC))
        files = TlsFiles(directory / KEY_FILE, directory / CERTIFICATE_FILE)
        with Listener(application, Place("127.0.0.1", port, "--listen"), files):
            sys.stderr.write("helper ready\n")
            sys.stderr.flush()
            threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
