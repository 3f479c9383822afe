"""The server's half of bundles that a person carries: releases out, reports and summaries in.

What goes out is what a fresh device asks for: a client's whole verification runs over the
repository, and what it reads is packed. So a bundle is complete, consistent and verified, or is
not made. It holds nothing secret and nothing that the device HTTPS would not serve.

What comes in is believed for the device's signature. Everything may come twice, also by the
network in between: it is stored once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import unquote

from wildflower.ota import canonical
from wildflower.ota.device import owed
from wildflower.ota.device.owed import Item, Owed
from wildflower.ota.errors import FormatError
from wildflower.ota.release import signing
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.parcel import Content, Parcel
from wildflower.ota.release.repository import Repository
from wildflower.ota.release.statement import statement_path
from wildflower.ota.release.trust import NotThereError, TrustedView
from wildflower.ota.rollout.document import RolloutDocument, document_path
from wildflower.server.blobs import BlobStore
from wildflower.server.errors import ConflictError, NotFoundError
from wildflower.server.ingest import MAX_BATCH
from wildflower.server.reception import Reception, has_signed
from wildflower.server.records import Device, Report
from wildflower.server.store import Store

MAX_SUMMARY: Final = 65_536  # bytes; what a device's spool takes
FEWEST_DIGITS: Final = 6
"""Of a digest that an operator shortens."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What a bundle for devices holds.

    Attributes:
        contents: Where each entry comes from, by its name in the bundle.
        release: What it brings.
        document: What devices shall do with it.
        good_until: From then on devices refuse it as expired.
    """

    contents: dict[str, Content] = field(repr=False)
    release: Release
    document: RolloutDocument
    good_until: datetime


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of a bundle from a device.

    Attributes:
        device: Who owes it.
        reports: How many reports were new here.
        summaries: How many summaries were new here.
        known: How many reports and summaries had come before.
        refused: How many summaries cannot be read or are of a model that is not ours.
    """

    device: Device
    reports: int
    summaries: int
    known: int
    refused: int


def pack_release(
    directory: Path, blobs: BlobStore, group: str, *, release: str, now: datetime
) -> Packed:
    """Gather what devices of a target group need for the release that is rolled out to them.

    Args:
        directory: The server's, with `tuf`.
        blobs: Its files.
        group: The target group.
        release: Digest of the release that is expected, or its beginning; "" takes any.
        now: The moment; what has expired is not packed.

    Raises:
        NotFoundError: Nothing is rolled out to the group.
        ConflictError: Another release is.
        BlobError: A file is damaged.
        RefusedError: A device would refuse what is published.
    """
    source = _Recorded(directory)
    with TemporaryDirectory(prefix="wildflower-bundle-") as cache:
        view = TrustedView(Path(cache), Repository(directory / "tuf").root, source, now)
        view.refresh()
        document = _document(view, group, release)
        manifest = view.target(document.release_path)
        if manifest is None:
            raise NotFoundError(f"nobody has signed {document.release_path}")
        view.target(statement_path(document.release_path))  # only so that it is packed, too
    found = Release.from_bytes(manifest)
    contents: dict[str, Content] = dict(source.read_so_far)
    for entry in found.files:
        blobs.check(entry.digest)
        contents[f"blobs/{entry.digest}"] = blobs.path(entry.digest)
    return Packed(contents, found, document, _good_until(source.read_so_far))


def take_owed(store: Store, parcel: Parcel, now: Callable[[], datetime]) -> TakenIn:
    """Store what a device owed, each report and summary once.

    Nothing is stored unless the whole list is the device's and all of it is there.

    Args:
        store: Where it goes.
        parcel: The bundle, from outside.
        now: The clock, UTC.

    Raises:
        FormatError: It is damaged, incomplete, or not signed by the device it names.
        NotFoundError: The device is unknown or revoked.
    """
    data = parcel.read(owed.LIST, canonical.MAX_DOCUMENT)
    listed = Owed.from_bytes(data)
    device = store.get(Device, listed.device_id)
    if device is None or device.revoked:
        raise NotFoundError(
            f"device {listed.device_id[:12]} is unknown or revoked", hint="wildflower fleet ls"
        )
    if not has_signed(device, data, parcel.read(owed.SIGNATURE, owed.MAX_SIGNATURE)):
        raise FormatError(f"the list is not signed by device {device.device_id[:12]}")
    reports = _listed(parcel, listed.reports, owed.report_name)
    summaries = _listed(parcel, listed.summaries, owed.summary_name)
    reception = Reception(store, invited=lambda _: "", now=now)
    new = [one for one in reports if _is_new(store, device, one[0])]
    for sequence, document in new:
        signature = parcel.read(owed.signature_name(sequence), owed.MAX_SIGNATURE)
        reception.report(device, document, signature)
    stream = bytes.fromhex(listed.stream)
    batches = [summaries[at : at + MAX_BATCH] for at in range(0, len(summaries), MAX_BATCH)]
    taken = [reception.upload(device, stream, batch) for batch in batches]
    stored = sum(one.stored for one in taken)
    refused = sum(len(one.refused) for one in taken)
    return TakenIn(
        device=device,
        reports=len(new),
        summaries=stored,
        known=len(reports) + len(summaries) - len(new) - stored - refused,
        refused=refused,
    )


class _Recorded:
    """A repository on disk that remembers what was read from it.

    Attributes:
        read_so_far: Contents by path, as devices name them.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.read_so_far: dict[str, bytes] = {}

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's content, whole, so that what is packed is what was verified."""
        name = unquote(path)
        try:
            data = (self._directory / name).read_bytes()
        except OSError as error:
            raise NotThereError(f"{name}: {error.strerror}") from error
        self.read_so_far[name] = data
        yield data


def _document(view: TrustedView, group: str, release: str) -> RolloutDocument:
    data = view.target(document_path(group))
    if data is None:
        raise NotFoundError(
            f"nothing is rolled out to {group}", hint="wildflower rollout ls shows the groups."
        )
    document = RolloutDocument.from_bytes(data)
    if release and (len(release) < FEWEST_DIGITS or not document.release.startswith(release)):
        raise ConflictError(
            f"{group} is to run release {document.release[:12]}, not {release[:12]}",
            hint="Devices follow the rollout, on a stick as online: begin one for that release.",
        )
    return document


def _good_until(files: dict[str, bytes]) -> datetime:
    """Return when the first of the metadata expires; old roots may have."""
    dated = [data for name, data in files.items() if "/metadata/" in name and ".root." not in name]
    return min(signing.expiry(data) for data in dated)


def _listed(
    parcel: Parcel, items: Sequence[Item], name_of: Callable[[int], str]
) -> list[tuple[int, bytes]]:
    """Return what a list names, each with the digest that the list says."""
    found = []
    for sequence, digest in items:
        data = parcel.read(name_of(sequence), MAX_SUMMARY)
        if canonical.digest(data) != digest:
            raise FormatError(f"{name_of(sequence)} is not what the device has listed")
        found.append((sequence, data))
    return found


def _is_new(store: Store, device: Device, sequence: int) -> bool:
    return store.get(Report, f"{device.device_id}/{sequence}") is None
