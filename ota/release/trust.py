"""A verified view of a TUF repository: what is signed, as of one moment, from one source.

All checks of the TUF client workflow (specification 1.0.34, section 5) are python-tuf's: signature
thresholds, root rotation, rollback, freeze, mix-and-match and length limits. Added here: the root
is pinned and the clock is handed in (`tuf_compat`), targets are small documents that are returned
as bytes and written nowhere, and each failure is one of two errors that a reader can act on:
RefusedError (what was served is not what was signed) or FetchError (it could not be had).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface

from wildflower.ota import canonical
from wildflower.ota.errors import FetchError, RefusedError, SlowError, StorageError
from wildflower.ota.release.tuf_compat import DurableUpdater

METADATA: Final = "tuf/metadata"
TARGETS: Final = "tuf/targets"


class BytesSource(Protocol):
    """Where the bytes of a repository come from."""

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the content of `path`, in pieces; the reader may stop at any piece.

        Raises:
            NotThereError: There is no such file.
            FetchError: It could not be had.
        """
        ...


class NotThereError(FetchError):
    """The source has no such file."""


class _Adapter(FetcherInterface):
    """Lets python-tuf read from a `BytesSource`; URLs are paths here."""

    def __init__(self, source: BytesSource) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._source.read(url)
        except NotThereError as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except FetchError as error:
            raise exceptions.DownloadError(str(error)) from error


class TrustedView:
    """What one source's repository says, verified against a pinned root.

    Args:
        cache: Directory of metadata seen before; protects from going back to older metadata.
        root: The pinned root metadata.
        source: Where the bytes come from.
        now: The moment against which expiry is checked.

    Raises:
        RefusedError: `root` is not valid root metadata.
        StorageError: The cache cannot be written.
    """

    def __init__(self, cache: Path, root: bytes, source: BytesSource, now: datetime) -> None:
        self._now = now
        self._adapter = _Adapter(source)
        with self._translated("root"):
            self._updater = DurableUpdater(
                cache,
                metadata_url=METADATA,
                targets_url=TARGETS,
                fetcher=self._adapter,
                root=root,
                now=now,
            )

    def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and targets. Once per view.

        Raises:
            RefusedError: Wrong signature, version, length or digest, or expired.
            FetchError: The source does not answer or lacks a file.
            StorageError: The cache cannot be written.
        """
        with self._translated("metadata"):
            self._updater.refresh()

    def target(self, path: str, *, known: bytes = b"") -> bytes | None:
        """Return a target's verified bytes; None if nobody who may has signed such a target.

        Args:
            path: Its path among the targets, such as "rollout/digits.linux-generic.json".
            known: What it was before; not fetched again if that is what is signed now.

        Raises:
            RefusedError: Metadata or bytes are not what was signed.
            FetchError: The source does not answer or lacks a file.
            StorageError: The cache cannot be written.
        """
        with self._translated(path):
            info = self._find(path)
            if info is None:
                return None
            if info.length > canonical.MAX_DOCUMENT:
                raise RefusedError(f"{path}: {info.length} bytes, at most {canonical.MAX_DOCUMENT}")
            if known and _is_signed(info, known):
                return known
            data = self._adapter.download_bytes(
                f"{TARGETS}/{self._updater.place_of(info)}", info.length
            )
            _check(info, data)
            return data

    def is_target(self, path: str, file: Path) -> bool:
        """Whether a file holds, byte for byte, what is signed as a target now.

        Raises:
            RefusedError: Metadata is not what was signed.
            FetchError: The source does not answer or lacks a file.
            StorageError: The cache cannot be written.
        """
        with self._translated(path):
            info = self._find(path)
            if info is None or not file.is_file() or file.stat().st_size != info.length:
                return False
            return _is_signed(info, file.read_bytes())

    def _find(self, path: str) -> TargetFile | None:
        """Look a target up in the delegations, in their order.

        Raises:
            RefusedError: The path is a trick: it names another directory than it seems to.
        """
        if not path.isprintable() or "\\" in path or {"", ".", ".."} & set(path.split("/")):
            raise RefusedError(f"{path!r}: no path of a target", hint="Paths have plain segments.")
        return self._updater.get_targetinfo(path)

    @contextmanager
    def _translated(self, target: str) -> Iterator[None]:
        try:
            yield
        except exceptions.RepositoryError as error:
            found = next((name for kind, name in _REASONS if isinstance(error, kind)), "malformed")
            as_of = f" (as of {canonical.to_time(self._now)})" if found == "expired" else ""
            raise RefusedError(f"{target}: {found}: {error}{as_of}") from error
        except exceptions.DownloadLengthMismatchError as error:
            limit = str(error).rpartition(" ")[2]  # how much came differs each time; told is once
            raise RefusedError(f"{target}: endless: more than {limit} bytes") from error
        except exceptions.DownloadError as error:
            is_slow = isinstance(error.__cause__, SlowError)
            kind = SlowError if is_slow else FetchError
            raise kind(f"{target}: {error}") from error
        except _UNREADABLE as error:  # python-tuf lets some through that a signer can provoke
            why = f"{type(error).__name__}: {error}"
            raise RefusedError(f"{target}: malformed: {why[:200]}") from error
        except OSError as error:
            raise StorageError(f"metadata cache: {error}", hint="Free some space.") from error


def _is_signed(info: TargetFile, data: bytes) -> bool:
    """Whether these bytes are what is signed as a target."""
    try:
        info.verify_length_and_hashes(data)
    except exceptions.LengthOrHashMismatchError:
        return False
    return True


def _check(info: TargetFile, data: bytes) -> None:
    """Check every digest that is signed, not only the one in the file's name.

    Raises:
        RefusedError: The bytes are not what was signed.
    """
    try:
        info.verify_length_and_hashes(data)
    except exceptions.LengthOrHashMismatchError as error:
        signed = ", ".join(f"{name} {value}" for name, value in info.hashes.items())
        raise RefusedError(
            f"{info.path}: wrong digest: found {len(data)} bytes of SHA-256 "
            f"{canonical.digest(data)}, expected {info.length} of {signed}"
        ) from error


_UNREADABLE: Final = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What comes of metadata that is signed, and in which a name is a number."""

_REASONS: Final = (
    (exceptions.UnsignedMetadataError, "wrong signature"),
    (exceptions.BadVersionNumberError, "rollback"),
    (exceptions.ExpiredMetadataError, "expired"),
    (exceptions.LengthOrHashMismatchError, "wrong digest"),
)
"""What a reader of logs calls the errors of python-tuf; others are "malformed"."""

Clock = Callable[[], datetime]
"""Returns the moment in UTC that expiry is checked against."""
