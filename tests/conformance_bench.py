"""What a case of the TUF conformance table works with: a repository, its server, and a client.

A case is a function that gets a `Bench`, does to the repository what an operator or an attacker
would, runs the client's commands, and asserts on what the contract lets one see: exit codes, the
metadata and targets on disk, and the requests.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tests.tuf_repository import RepositoryServer, TufRepository

from wildflower.client import conformance


class Client(Protocol):
    """Runs one command of the client, some days later than the repository's beginning."""

    def __call__(self, arguments: Sequence[str], days: int) -> int:
        """Return the exit code."""
        ...


def in_process(now: datetime) -> Client:
    """Return a client that is called, with a clock of its own."""

    def run(arguments: Sequence[str], days: int) -> int:
        try:
            return conformance.main(arguments, now=lambda: now + timedelta(days=days))
        except SystemExit as end:
            return int(end.code or 0)

    return run


def as_process(arguments: Sequence[str], days: int) -> int:
    """Run the client as tuf-conformance does: a process, under faketime where time must pass."""
    faketime = shutil.which("faketime")
    late = [faketime, "-f", f"+{days}d"] if days and faketime else []
    command = [*late, sys.executable, "-m", "wildflower.client.conformance", *arguments]
    ended = subprocess.run(command, check=False, timeout=60, capture_output=True, env=os.environ)
    return ended.returncode


@dataclass
class Bench:
    """One client and its repository.

    Attributes:
        server: Serves `repository`.
        client: Runs the client.
        directory: Of this case alone.
        now: When the repository begins.
        asked: What the last command asked for, in order.
    """

    server: RepositoryServer
    client: Client
    directory: Path
    now: datetime
    asked: list[str]

    @property
    def repository(self) -> TufRepository:
        return self.server.repository

    @property
    def metadata(self) -> Path:
        return self.directory / "metadata"

    @property
    def targets(self) -> Path:
        return self.directory / "targets"

    def use(self, **options: Any) -> TufRepository:
        """Begin with another repository."""
        self.server.repository = TufRepository(self.now, **options)
        return self.repository

    def run(self, *arguments: str, days: int = 0) -> int:
        self.server.asked.clear()
        code = self.client(arguments, days)
        self.asked = [path.removeprefix("metadata/") for path in self.server.asked]
        return code

    def init(self, root: bytes | None = None) -> int:
        path = self.directory / "initial.json"
        path.write_bytes(self.repository.first_root if root is None else root)
        return self.run("--metadata-dir", str(self.metadata), "init", str(path))

    def refresh(self, days: int = 0) -> int:
        return self.run(*self._repository_options(), "refresh", days=days)

    def download(self, *names: str, days: int = 0) -> int:
        return self.run(
            *self._repository_options(),
            *(word for name in names for word in ("--target-name", name)),
            *("--target-dir", str(self.targets)),
            *("--target-base-url", f"{self.server.url}/targets"),
            "download",
            days=days,
        )

    def _repository_options(self) -> tuple[str, ...]:
        url = f"{self.server.url}/metadata"
        return ("--metadata-url", url, "--metadata-dir", str(self.metadata))

    def stored(self, role: str) -> bytes | None:
        """Return the metadata that the client trusts for a role, as it lies there."""
        path = self.metadata / f"{quote(role, safe='')}.json"
        return path.read_bytes() if path.exists() else None

    def version(self, role: str) -> int:
        """Return the version that the client trusts; 0 for none."""
        data = self.stored(role)
        return int(json.loads(data)["signed"]["version"]) if data else 0

    def downloaded(self) -> list[bytes]:
        """Return what lies in the targets' directory, by name."""
        return [path.read_bytes() for path in sorted(self.targets.rglob("*")) if path.is_file()]


@dataclass(frozen=True)
class Case:
    """One scenario.

    Attributes:
        section: Of the TUF specification 1.0.34.
        title: What must be the case, a claim.
        play: The scenario; raises AssertionError where the claim is false.
    """

    section: str
    title: str
    play: Callable[[Bench], None]

    def __str__(self) -> str:
        return f"{self.section} {self.title}"


def collector(cases: list[Case]) -> Callable[[str, str], Callable[..., Callable[[Bench], None]]]:
    """Return a decorator that adds a scenario to a table."""

    def case(section: str, title: str) -> Callable[..., Callable[[Bench], None]]:
        def add(play: Callable[[Bench], None]) -> Callable[[Bench], None]:
            cases.append(Case(section, title, play))
            return play

        return add

    return case


@contextmanager
def bench(directory: Path, client: Client, now: datetime) -> Iterator[Bench]:
    """Yield a bench whose client has pinned nothing yet."""
    with RepositoryServer(TufRepository(now)) as server:
        yield Bench(server, client, directory, now, [])
