"""What the agent asks of its sources, as a seam; `ota.release.fetch.ReleaseClient` keeps it."""

from contextlib import AbstractContextManager
from typing import Protocol

from wildflower.client.acceptance import Statements
from wildflower.client.fetcher import Releases
from wildflower.ota.release.asking import Refusal
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.software import Software


class Repository(Releases, Statements, Protocol):
    """What looking for releases needs of `ota.release.fetch.ReleaseClient`."""

    refusals: list[Refusal]
    """What sources have been refused for, since the client was made."""

    def kept(self) -> AbstractContextManager[None]:
        """Ask over one connection for the length of the block."""
        ...

    def release(self, path: str, *, accepted: tuple[str, ...], expected: str) -> Release:
        """Return the release at a target path, if an accepted role signed it."""
        ...

    def software(self, name: str) -> Software | None:
        """Return the newest software of a line; None if nobody who may has signed any."""
        ...
