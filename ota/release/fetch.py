"""What a device asks of its sources: is there news, what is the release, give me its files.

Sources are base URLs tried in order, for metadata (`/tuf/...`) and for files (`/blobs/<digest>`).
None is trusted. One that serves something else than what was signed is refused, which is written
down in `refusals` for the device's report, and the next one is asked.

Nothing here decides whether a release is installed; `ota.device` does.
"""

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import httpx

from wildflower.ota import canonical
from wildflower.ota.errors import FetchError, FormatError, RefusedError, SlowError
from wildflower.ota.release.asking import Asking, Refusal
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.download import Download, Surroundings
from wildflower.ota.release.http import LateError, Line
from wildflower.ota.release.manifest import SIGNERS, FileEntry, Release, target_path
from wildflower.ota.release.software import Software, software_path
from wildflower.ota.release.trust import Clock, NotThereError, TrustedView
from wildflower.ota.rollout.document import RolloutDocument, document_path

if TYPE_CHECKING:
    from wildflower.ota.release.statement import Provenance

T = TypeVar("T")


LONGEST_S: Final = 120.0
"""Seconds for one file of metadata; a source that drips is left for the next one."""


class HttpSource:
    """A `BytesSource` under a base URL.

    Attributes:
        client: The HTTP client; the view that reads from here outlives it.
    """

    def __init__(
        self, client: Line, base: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = client
        self._base = base.rstrip("/")
        self._clock = clock

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file.

        Raises:
            NotThereError: HTTP 403, 404 or 410.
            SlowError: It drips.
            FetchError: Any other failure.
        """
        url = f"{self._base}/{path}"
        headers = {"Accept-Encoding": "identity"}
        began = self._clock()
        try:
            with self.client.get(url, headers) as answer:
                if answer.status_code in (403, 404, 410):
                    raise NotThereError(f"{url}: HTTP {answer.status_code}")
                if answer.status_code != 200:
                    raise FetchError(f"{url}: HTTP {answer.status_code}")
                for chunk in answer.iter_raw():
                    if self._clock() - began > LONGEST_S:
                        raise SlowError(f"{url}: not there after {LONGEST_S:g} s")
                    yield chunk
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind = SlowError if isinstance(error, LateError) else FetchError
            raise kind(f"{url}: {type(error).__name__}: {error}") from error


class ReleaseClient:
    """A device's view of the releases that are signed for it.

    Args:
        directory: Cache of verified metadata, one process at a time.
        root: The pinned TUF root metadata.
        sources: Base URLs, tried in order.
        http: Makes an HTTP client; one is made for each call and closed after it, or for a whole
            look (see `kept`).
        now: The moment that expiry is checked against.
        wait: Waits for seconds between tries; may return early.
        draw: Draws in [0, 1) for the jitter.

    Attributes:
        refusals: What sources have been refused for, since the client was made.
    """

    def __init__(
        self,
        directory: Path,
        root: bytes,
        sources: Sequence[str],
        http: Callable[[], Line],
        now: Clock,
        *,
        wait: Callable[[float], object] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not sources:
            raise ValueError("no source to fetch from")
        self.refusals: list[Refusal] = []
        self._directory = directory
        self._root = root
        self._sources = tuple(sources)
        self._http = http
        self._now = now
        self._surroundings = Surroundings(wait=wait, draw=draw, now=now)
        self._kept: Line | None = None
        self._promised: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}
        self._views: dict[str, tuple[HttpSource, TrustedView]] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Ask with one HTTP client, over one connection, for the length of the block."""
        if self._kept is not None:
            yield
            return
        with self._http() as client:
            self._kept = client
            try:
                yield
            finally:
                self._kept = None

    def refresh(self) -> None:
        """Look for news: verify a source's metadata as of now.

        What follows, up to the next refresh, is answered from the same verified state.

        Raises:
            RefusedError: A source was refused and no other answered.
            FetchError: No source answered.
            StorageError: The cache cannot be written.
        """
        self._views.clear()
        self._ask("metadata", lambda _: None)

    def rollout(self, target_group: str) -> RolloutDocument | None:
        """Return what the group's devices shall do; None if nothing was ever rolled out to it.

        Raises:
            RefusedError: The document is of another group or malformed, or see `refresh`.
            FetchError: No source answered.
            StorageError: The cache cannot be written.
        """

        def read(view: TrustedView) -> RolloutDocument | None:
            path = document_path(target_group)
            data = view.target(path, known=self._documents.get(path, b""))
            if data is None:
                return None
            self._documents[path] = data  # an idle look costs two requests, not three
            document = _parsed(RolloutDocument.from_bytes, path, data)
            if document.target_group != target_group:
                raise RefusedError(
                    f"{path}: a document for {document.target_group}, expected {target_group}"
                )
            return document

        document = self._ask(document_path(target_group), read)
        if document is not None:
            self._promised[document.release_path] = document.release
        return document

    def release(
        self, path: str, *, accepted: Collection[str] = SIGNERS, expected: str = ""
    ) -> Release:
        """Return the release at a target path.

        Args:
            path: As a rollout document names it.
            accepted: Roles whose signature the device's policy accepts.
            expected: Digest that the manifest must have; "" takes the one of the rollout document
                that named the path, if this client has seen it.

        Raises:
            RefusedError: The role is not accepted, nobody signed such a release, or what is signed
                there is for another group or order or has another digest.
            FetchError: No source answered.
            StorageError: The cache cannot be written.
        """
        role = path.split("/")[1] if path.startswith("models/") else ""
        if role not in accepted:
            found = f"role {role!r}" if role else "no role"
            raise RefusedError(
                f"{path}: found {found}, expected one of {sorted(accepted)}",
                hint="The device's policy says which roles it accepts.",
            )
        digest = expected or self._promised.get(path, "")
        return self._ask(path, lambda view: _release(view, path, role, digest))

    def statement(self, path: str, release: Release) -> "Provenance | None":
        """Return where a release comes from, as its role has signed it; None if it has not.

        Args:
            path: Where the release's manifest lies, as a rollout document names it.
            release: What lies there.

        Raises:
            RefusedError: It is of another release or malformed, or see `refresh`.
            FetchError: No source answered.
            StorageError: The cache cannot be written.
        """
        from wildflower.ota.release.statement import read_statement, statement_path

        beside = statement_path(path)

        def read(view: TrustedView) -> "Provenance | None":
            data = view.target(beside)
            found = _parsed(read_statement, beside, data) if data is not None else None
            if found is not None:
                found.check(release)
            return found

        return self._ask(beside, read)

    def software(self, name: str) -> Software | None:
        """Return the newest software of a line; None if nobody who may has signed any.

        Raises:
            RefusedError: The document is of another line or malformed, or see `refresh`.
            FetchError: No source answered.
            StorageError: The cache cannot be written.
        """
        path = software_path(name)

        def read(view: TrustedView) -> Software | None:
            data = view.target(path)
            software = _parsed(Software.from_bytes, path, data) if data is not None else None
            if software is not None and software.name != name:
                raise RefusedError(f"{path}: software of {software.name}, expected {name}")
            return software

        return self._ask(path, read)

    def fetch(
        self,
        entry: FileEntry,
        destination: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_bytes: Callable[[int], None] = lambda _: None,
        budget: ByteBudget | None = None,
    ) -> None:
        """Fetch a file of a release; go on where an earlier try stopped.

        Args:
            entry: What the signed manifest says of it.
            destination: Where it shall lie; the part file lies beside it.
            should_stop: Asked between chunks; True keeps the part and ends the download.
            on_bytes: Told how many bytes of the file are in the part, after each chunk.
            budget: What the update may cost; what comes is counted there.

        Raises:
            RefusedError: No source served the file, and one at least served something else.
            FetchError: No source could be had; StoppedError if `should_stop` said so, BudgetError
                if the update has cost too much.
            StorageError: The disk is full or cannot be written; the part is kept.
        """
        with self._client() as client:
            download = Download(
                entry,
                destination,
                client,
                should_stop=should_stop,
                on_bytes=on_bytes,
                surroundings=self._surroundings,
                refusals=self.refusals,
                budget=budget,
            )
            download.run(self._sources)

    def _ask(self, target: str, read: Callable[[TrustedView], T]) -> T:
        """Read from the first source whose metadata verifies, those that have verified first."""
        asking = Asking(target, self.refusals)
        for source in sorted(self._sources, key=lambda source: source not in self._views):
            try:
                with self._client() as client:
                    return read(self._view(source, client))
            except RefusedError as error:
                asking.failed(source, error, f"{source} served {error}")
            except FetchError as error:
                asking.failed(source, error, f"{source}: {error}")
        raise asking.error()

    @contextmanager
    def _client(self) -> Iterator[Line]:
        if self._kept is not None:
            yield self._kept
            return
        with self._http() as client:
            yield client

    def _view(self, source: str, client: Line) -> TrustedView:
        if source in self._views:
            http, view = self._views[source]
            http.client = client
            return view
        http = HttpSource(client, source)
        view = TrustedView(self._directory, self._root, http, self._now())
        view.refresh()
        self._views[source] = (http, view)
        return view


def _release(view: TrustedView, path: str, role: str, digest: str) -> Release:
    data = view.target(path)
    if data is None:
        raise RefusedError(f"{path}: nobody who may has signed such a release")
    release = _parsed(Release.from_bytes, path, data)
    own = target_path(role, release.target_group, release.order)
    if own != path:
        raise RefusedError(f"{path}: found the release of {own}")
    found = canonical.digest(data)  # a release has one byte form
    if digest and found != digest:
        raise RefusedError(f"{path}: found release {found}, expected {digest}")
    return release


def _parsed(parse: Callable[[bytes], T], path: str, data: bytes) -> T:
    try:
        return parse(data)
    except FormatError as error:
        raise RefusedError(f"{path}: signed, but malformed: {error}") from error
