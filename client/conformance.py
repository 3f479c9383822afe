"""The TUF client that devices run, as the command that tuf-conformance drives.

    python -m wildflower.client.conformance --metadata-dir D init ROOT
    python -m wildflower.client.conformance --metadata-url U --metadata-dir D refresh
    python -m wildflower.client.conformance --metadata-url U --metadata-dir D --target-name T
        --target-dir TD --target-base-url TU download

It exits with 0 or 1 and adds nothing to `ota.release.trust`: the root given to `init` stays the
pinned anchor, as a device's does, and newer roots are found again through the chain in the cache.
What is verified lies in D under unversioned names (`root.json`, `timestamp.json`, ...), targets lie
in TD under their quoted paths and are fetched again only if they are not what is signed now.

Source: CLIENT-CLI.md of theupdateframework/tuf-conformance.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import quote

from wildflower.ota.errors import OtaError, RefusedError
from wildflower.ota.release.connection import Connection
from wildflower.ota.release.fetch import HttpSource
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.trust import METADATA, TARGETS, Clock, TrustedView

PINNED: Final = "pinned-root"
"""The root that `init` was given; no role's file is called so."""
TIMEOUT_S: Final = 20.0


class _Parser(argparse.ArgumentParser):
    """The contract knows two exit codes, and 2 is neither."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}\n")


class _TwoPlaces:
    """A `BytesSource` whose metadata and targets lie under base URLs of their own."""

    def __init__(self, client: Connection, metadata: str, targets: str) -> None:
        self._metadata = HttpSource(client, metadata)
        self._targets = HttpSource(client, targets)

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes.

        Raises:
            NotThereError: There is no such file.
            FetchError: It could not be had.
        """
        if path.startswith(f"{METADATA}/"):
            return self._metadata.read(path.removeprefix(f"{METADATA}/"))
        return self._targets.read(path.removeprefix(f"{TARGETS}/"))


def download(view: TrustedView, names: Sequence[str], directory: Path) -> None:
    """Fetch targets, in order, those that are not there already.

    Raises:
        RefusedError: Nobody signed such a target, or what is served is not what was signed.
        FetchError: It could not be had.
        OSError: The directory cannot be written.
    """
    for name in names:
        destination = directory / quote(name, safe="")
        if view.is_target(name, destination):
            continue
        data = view.target(name)
        if data is None:
            raise RefusedError(f"{name}: nobody who may has signed such a target")
        write_durably(destination, data)


def run(options: argparse.Namespace, now: datetime) -> None:
    """Carry out one command.

    Raises:
        OtaError: It failed.
        OSError: A file cannot be read or written.
    """
    is_init = options.command == "init"
    pinned = options.root if is_init else options.metadata_dir / PINNED
    root = pinned.read_bytes()
    with Connection(None, timeout_s=TIMEOUT_S) as client:
        source = _TwoPlaces(client, options.metadata_url, options.target_base_url)
        view = TrustedView(options.metadata_dir, root, source, now)  # asks nobody yet
        if is_init:
            write_durably(options.metadata_dir / PINNED, root)
            return
        view.refresh()
        if options.command == "download":
            download(view, options.target_name, options.target_dir)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exit with 1 if it is none."""
    parser = _Parser(prog="wildflower.client.conformance", description="Drive the TUF client.")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url", default="")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    options = parser.parse_args(arguments)
    if options.command != "init" and not options.metadata_url:
        parser.error(f"{options.command} needs --metadata-url")
    given = (options.target_name, options.target_dir, options.target_base_url)
    if options.command == "download" and not all(given):
        parser.error("download needs --target-name, --target-dir and --target-base-url")
    return options


def main(arguments: Sequence[str] | None = None, *, now: Clock = lambda: datetime.now(UTC)) -> int:
    """Run one command; return 0, or 1 after a line on stderr that says what was refused."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        run(options, now())
    except (OtaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  its only output
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
