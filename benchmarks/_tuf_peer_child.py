"""A device whose client is python-tuf's own: `Updater` as its documentation shows it.

It is forked off a warm process like the devices of ours (`tests.faults.device`), and its orders
are carried out the same way. Metadata is in `metadata/`, release documents in `documents/`, the
files that an application opens in `files/`. The pinned root is handed in at every start, what is
there and verifies is not fetched again, and after an error it begins anew, a few times. Waits
between tries, and those that a server asks for, are left out, as they are for ours.
"""

import time
from pathlib import Path
from typing import Any

import urllib3
from tests.faults.device import serve
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from wildflower.ota.release.manifest import Release

ERRORS = (DownloadError, RepositoryError, OSError, urllib3.exceptions.HTTPError)
"""What an application that uses it has to expect; the last one comes out of a body that breaks."""


def update(order: dict[str, Any]) -> list[str]:
    """Install what is ordered; return why it could not be, [] if it is there."""
    failures: list[str] = []
    for _ in range(order["tries"]):
        try:
            _install(Path(order["directory"]), order)
        except ERRORS as error:
            failures.append(f"{type(error).__name__}: {error}")
        else:
            return []
    return failures


def _install(device: Path, order: dict[str, Any]) -> None:
    """Verify the metadata and the release's document, then fetch the files that it names."""
    documents = device / "documents"
    updater = Updater(
        str(device / "metadata"),
        f"{order['source']}/tuf/metadata",
        str(documents),
        f"{order['source']}/tuf/targets",
        fetcher=Urllib3Fetcher(socket_timeout=order["timeout_s"]),
        bootstrap=Path(order["root"]).read_bytes(),
    )
    found = updater.get_targetinfo(order["release"])
    if found is None:
        raise RepositoryError(f"{order['release']} is not signed")
    path = updater.find_cached_target(found) or updater.download_target(found)
    updater.config.prefix_targets_with_hash = False  # below /blobs a digest is the whole name
    for entry in Release.from_bytes(Path(path).read_bytes()).files:
        wanted = TargetFile(entry.length, {"sha256": entry.digest}, entry.digest)
        place = device / "files" / entry.name
        if updater.find_cached_target(wanted, str(place)):
            continue
        fetched = place.with_name(f".{place.name}") if order["renames"] else place
        updater.download_target(wanted, str(fetched), f"{order['source']}/blobs")
        if order["renames"]:
            fetched.replace(place)


if __name__ == "__main__":
    time.sleep = lambda _: None
    serve(update)
