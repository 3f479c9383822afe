"""A device without a network: releases come in on a stick, and what it owes goes out on one.

    apply_bundle    the agent's own look, with the bundle as its only source
    collect         unsent reports and summaries, signed, into a bundle; nothing is marked as sent
    acknowledge     the server has taken that bundle: they are not sent again

A bundle is a mirror that happens to lie in a file, and is trusted as little as any: the same
metadata, digests, policy and trial decide. What is collected twice, the server takes once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from wildflower.client.agent import report_of
from wildflower.client.config import load_config
from wildflower.client.daemon import alone, clock, system_clock
from wildflower.client.errors import AgentError
from wildflower.client.identity import Identity
from wildflower.client.parcel_line import SOURCE, ParcelLine
from wildflower.client.policy import load_policy
from wildflower.client.spool import Spool
from wildflower.client.updates import Updates
from wildflower.ota import canonical
from wildflower.ota.device import owed
from wildflower.ota.device.journal import Entry, Journal, glance
from wildflower.ota.device.owed import Owed
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, FormatError, RefusedError
from wildflower.ota.release.fetch import ReleaseClient
from wildflower.ota.release.parcel import Content, Parcel, write_parcel

log = logging.getLogger(__name__)

NOTHING_HERE: Final = "nothing in it is for this device's target group"


@dataclass(frozen=True, slots=True)
class Applied:
    """What a bundle meant for this device.

    Attributes:
        running: Digest of the release that runs now; "" for none.
        phase: Where the update machine stands; "idle" when it is through.
        outcomes: What was newly reported, each as a sentence.
        waits: Why what the bundle offers does not run yet; "" if it does.
    """

    running: str
    phase: str
    outcomes: tuple[str, ...]
    waits: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What is in a bundle for the server: how many of each, and its size in bytes."""

    reports: int
    summaries: int
    size: int


def apply_bundle(
    directory: Path, path: Path, system: Callable[[], datetime] = system_clock
) -> Applied:
    """Look at a bundle as the agent looks at its server, and do what it means here.

    Args:
        directory: The device's; no agent may run in it meanwhile.
        path: The bundle.
        system: What the system says the time is.

    Raises:
        FormatError: The file is no bundle.
        RefusedError: What is in it is not what was signed, or has expired.
        FetchError: It lacks something that this device needs.
        AgentError: The device is not enrolled, or an agent runs in the directory.
        ConfigError: A setting is wrong.
        StorageError: The disk is full, read-only or broken.
    """
    parcel = _opened(path)
    with _switched_on(directory, parcel, system) as updates:
        last = max((entry.sequence for entry in updates.journal.reports()), default=0)
        updates.begin()
        try:
            updates.look()
        except FetchError as error:
            raise FetchError(
                f"{path.name}: {error}",
                hint="What runs goes on. Was it exported for this device's target group? "
                "wildflower agent status",
            ) from error
        except RefusedError as error:
            raise RefusedError(
                f"{path.name}: {error}",
                hint=error.hint
                or "What runs goes on, and the server will be told. Export it "
                "again at the server where this device is enrolled, with --days if it is long "
                "on its way.",
            ) from error
        finally:
            updates.end()
        news = [entry for entry in updates.journal.reports() if entry.sequence > last]
        return Applied(
            running=updates.slots.running(),
            phase=updates.journal.load().phase.value,
            outcomes=tuple(f"{one.outcome.value}: {one.reason}".rstrip(": ") for one in news),
            waits=_why_not(updates),
        )


def collect(
    directory: Path, path: Path, system: Callable[[], datetime] = system_clock
) -> Collected:
    """Write what the device owes into a bundle, beside a running agent or without one.

    Args:
        directory: The device's.
        path: Where the bundle shall lie.
        system: What the system says the time is.

    Raises:
        AgentError: The device is not enrolled, or the file cannot be written.
        ConfigError: A setting is wrong.
        StorageError: The journal cannot be read.
    """
    config, identity = load_config(directory), Identity.load(directory)
    spool = Spool(directory / "spool")
    contents: dict[str, Content] = {owed.LIST: b"", owed.SIGNATURE: b""}  # they come first
    reports = []
    for entry in _unsent(directory)[: owed.MAX_REPORTS]:
        document = report_of(config.device_id, entry).to_bytes()
        contents[owed.report_name(entry.sequence)] = document
        contents[owed.signature_name(entry.sequence)] = identity.sign(document)
        reports.append((entry.sequence, canonical.digest(document)))
    summaries = []
    for sequence, payload in spool.pending(owed.MAX_SUMMARIES):
        contents[owed.summary_name(sequence)] = payload
        summaries.append((sequence, canonical.digest(payload)))
    listed = Owed(
        config.device_id, spool.stream.hex(), tuple(reports), tuple(summaries), system()
    ).to_bytes()
    contents |= {owed.LIST: listed, owed.SIGNATURE: identity.sign(listed)}
    try:
        size = write_parcel(path, contents)
    except OSError as error:
        raise AgentError(
            f"{path} cannot be written: {error.strerror}",
            hint="What is owed stays owed. Is there room, and may you write there?",
        ) from error
    return Collected(len(reports), len(summaries), size)


def acknowledge(
    directory: Path, path: Path, system: Callable[[], datetime] = system_clock
) -> Collected:
    """Remember that the server has taken a bundle; repeating it changes nothing.

    Args:
        directory: The device's; no agent may run in it meanwhile.
        path: The bundle, as `collect` wrote it.
        system: What the system says the time is.

    Raises:
        FormatError: The file is no bundle of this device's.
        AgentError: The device is not enrolled, or an agent runs in the directory.
        StorageError: The journal cannot be written.
    """
    identity, parcel = Identity.load(directory), _opened(path)
    data = parcel.read(owed.LIST, canonical.MAX_DOCUMENT)
    listed = Owed.from_bytes(data)
    if not identity.has_signed(data, parcel.read(owed.SIGNATURE, owed.MAX_SIGNATURE)):
        raise FormatError(
            f"{path.name} was not collected on this device",
            hint="What is owed stays owed. Bring it to the device that it came from.",
        )
    with alone(directory), _journal(directory, system()) as journal:
        for sequence, _ in listed.reports:
            journal.mark_sent(sequence)
        spool = Spool(directory / "spool")
        if listed.summaries and spool.stream.hex() == listed.stream:
            spool.ack(listed.summaries[-1][0])
    return Collected(len(listed.reports), len(listed.summaries), path.stat().st_size)


def _opened(path: Path) -> Parcel:
    try:
        return Parcel.open(path)
    except FormatError as error:
        raise FormatError(
            f"{path.name}: {error}",
            hint="What runs goes on. Copy the file once more, or write it again: wildflower bundle",
        ) from error
    except OSError as error:
        raise AgentError(
            f"{path} cannot be read: {error.strerror}",
            hint="What runs goes on. Is it the file's name, and may you read it?",
        ) from error


def _unsent(directory: Path) -> list[Entry]:
    path = directory / "journal.db"
    if not path.exists():
        return []
    with glance(path) as journal:
        return journal.reports(unsent=True)


@contextmanager
def _journal(directory: Path, now: datetime) -> Iterator[Journal]:
    is_first = not Slots(directory / "slots").running()
    with closing(Journal.open(directory / "journal.db", now=now, is_first=is_first)) as journal:
        yield journal


@contextmanager
def _switched_on(
    directory: Path, parcel: Parcel, system: Callable[[], datetime]
) -> Iterator[Updates]:
    """Wire a device's updates with a bundle for a network."""
    config, identity = load_config(directory), Identity.load(directory)
    with alone(directory), _journal(directory, system()) as journal:
        now = clock(journal, system)
        releases = ReleaseClient(
            directory / "tuf",
            identity.root,
            (SOURCE,),
            lambda: ParcelLine(parcel),
            now,
            wait=lambda _: None,  # what a file has not now it will not have in a second
        )
        yield Updates(
            config=config,
            policy=load_policy(directory),
            journal=journal,
            slots=Slots(directory / "slots"),
            releases=releases,
            now=now,
            should_stop=lambda: False,
        )


def _why_not(updates: Updates) -> str:
    document = updates.releases.rollout(updates.group) if updates.group else None
    if document is None:
        return NOTHING_HERE
    if document.release == updates.slots.running():
        return ""
    why = updates.obstacle(document, updates.standing()) or "; ".join(updates.lock.waiting)
    return why or f"phase {updates.journal.load().phase.value}; the agent goes on with it"
