"""Every parser of bytes that others wrote, on the way of a release to a device and back.

Each has the errors that it may answer with, and bytes that it understands, which are where fuzzing
begins. Whatever else comes out of one is a hole: an agent that any source can end.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from securesystemslib.signer import CryptoSigner
from tests.device_fakes import document, manifest, self_report
from tests.ota.test_software import LABELS
from tests.ota_fakes import NOON, Origin, release_of
from tests.slots_fakes import reference

from wildflower.client.enrolment import Answer, parse_token, read_answer
from wildflower.client.errors import EnrolmentError, JoinTokenError
from wildflower.client.groups import groups_of
from wildflower.client.owner import Owner
from wildflower.client.privacy_book import Book
from wildflower.ota.delta.decode import decode
from wildflower.ota.delta.encode import diff
from wildflower.ota.device import decision, handlers, machine
from wildflower.ota.device.decision import Standing
from wildflower.ota.device.owed import Owed
from wildflower.ota.device.profile import SelfReport
from wildflower.ota.device.report import DeviceReport, Outcome
from wildflower.ota.errors import DeltaError, FormatError, RefusedError
from wildflower.ota.observe.baseline import Baseline
from wildflower.ota.observe.summary import Summary
from wildflower.ota.release import signing
from wildflower.ota.release.bundle import Bundle, propose
from wildflower.ota.release.ceremony import Authority, Change, read_root
from wildflower.ota.release.keyring import KeyEntry, make_key
from wildflower.ota.release.keys import APPROVED, DELEGATED
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.parcel import Parcel, write_parcel
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.software import Software
from wildflower.ota.release.statement import Provenance, open_statement, sign_statement
from wildflower.ota.rollout.document import RolloutDocument
from wildflower.strategies.errors import StoredStateError

SIGNER: Final = CryptoSigner.generate_ed25519()
OLD: Final = np.arange(4000, dtype=np.uint8).tobytes()
NEW: Final = OLD[:2000] + b"in between" + OLD[2000:][::-1]
RECORD: Final = RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {"accuracy": 0.9}, NOON)
REPORT: Final = DeviceReport("ab" * 32, 1, Outcome.REFUSED, "r1", "cd" * 32, "", "why", NOON)


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        parse: Reads bytes.
        errors: What it may raise.
        seeds: Bytes that it understands.
    """

    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def feed(self, data: bytes) -> None:
        """Let it read; whatever is no error of its own passes through."""
        try:
            self.parse(data)
        except self.errors:
            return


def _delta(data: bytes) -> bytes:
    made = bytearray()
    target = hashlib.sha256(NEW).hexdigest()
    decode(memoryview(OLD), memoryview(data), made.extend, target=target, size=len(NEW))
    return bytes(made)


def _qualified(data: bytes) -> object:
    """Read a manifest and compare it with a device."""
    found = Release.from_bytes(data)
    here = Standing("ab" * 32, "linux-generic", running=manifest(2), highest_order=2)
    return decision.qualify(found, here, self_report()), found.ceiling(NOON), found.artifact


def _decided(data: bytes) -> object:
    """Read a rollout document and decide on it, as a device does that runs something."""
    found, release = RolloutDocument.from_bytes(data), manifest(1)
    here = Standing("ab" * 32, "linux-generic", running=manifest(2), roles=("auto",))
    under_way = machine.State(machine.Phase.FETCHING, release=release, rollout="r1")
    return (
        decision.forgery(found),
        decision.obstacle(found, here, NOON),
        decision.overreach(found, release, NOON),
        decision.offer(found, release, here, NOON),
        decision.recall(found, here, NOON),
        decision.cannot_go_back(found, here, NOON),
        decision.reconsider(under_way, found, here.device_id, NOON),
    )


def _parcel(data: bytes) -> list[bytes]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "parcel"
        path.write_bytes(data)
        found = Parcel.open(path)
        return [found.read(name, 1000) for name in found.places]


def _some_parcel() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "parcel"
        write_parcel(path, {"blobs/one": b"1" * 600, "tuf/metadata/timestamp.json": b"{}"})
        return path.read_bytes()


def _owed() -> bytes:
    return Owed("ab" * 32, "cd" * 16, ((1, "ef" * 32),), ((2, "ef" * 32),), NOON).to_bytes()


@cache
def _repository() -> Mapping[str, bytes]:
    """Return metadata of each kind, a signing bundle and the description of a key."""
    with TemporaryDirectory() as folder:
        origin = Origin(Path(folder) / "server")
        origin.roll_out(origin.publish(b"model"))
        read = origin.repository.current
        authority = Authority(read("root"), read("targets"))
        change = Change(APPROVED, (SIGNER.public_key,))
        bundle = propose(authority, {role: read(role) for role in DELEGATED}, change, NOON)
        entry = make_key(Path(folder) / "keys", "one", passphrase=None)
        roles = ("root", "targets", "snapshot", "timestamp", "rollout", "models/auto")
        return {
            **{role: read(role) for role in roles},
            "bundle": bundle.to_bytes(),
            "key": entry.to_bytes(),
        }


@cache
def targets() -> Mapping[str, Target]:
    """Return the parsers by name."""
    form, made = (FormatError,), _repository()
    release = release_of(b"model")
    statement = Provenance.of(release, RECORD, {})
    shown = machine.State(machine.Phase.FETCHING, release=manifest(1), rollout="r1")
    token = json.dumps({"url": "https://a", "secret": "s", "ca": "ab" * 32, "root": "cd" * 32})
    return {
        "manifest": Target(_qualified, form, (release.to_bytes(), manifest(2).to_bytes())),
        "rollout document": Target(_decided, form, (document(manifest(1)).to_bytes(),)),
        "software document": Target(Software.from_bytes, form, (LABELS.to_bytes(),)),
        "statement": Target(Provenance.from_bytes, form, (statement.to_bytes(),)),
        "envelope": Target(
            lambda data: open_statement(data, [SIGNER.public_key]),
            (FormatError, RefusedError),
            (sign_statement(statement, [SIGNER]),),
        ),
        "record of a round": Target(RoundRecord.from_bytes, form, (RECORD.to_bytes(),)),
        "signing bundle": Target(
            lambda data: Bundle.from_bytes(data).says(),
            (FormatError, RefusedError),
            (made["bundle"],),
        ),
        "description of a key": Target(KeyEntry.from_bytes, form, (made["key"],)),
        "root": Target(read_root, form, (made["root"],)),
        "targets": Target(
            signing.read_targets, form, (made["targets"], made["rollout"], made["models/auto"])
        ),
        "snapshot": Target(signing.published_versions, form, (made["snapshot"],)),
        "timestamp": Target(signing.snapshot_version, form, (made["timestamp"],)),
        "expiry": Target(signing.expiry, form, (made["timestamp"], made["root"])),
        "groups": Target(lambda data: groups_of(data, "linux-generic"), (), (made["rollout"],)),
        "delta": Target(_delta, (DeltaError,), (diff(OLD, NEW, [], []),)),
        "parcel": Target(_parcel, form, (_some_parcel(),)),
        "device report": Target(DeviceReport.from_bytes, form, (REPORT.to_bytes(),)),
        "self report": Target(SelfReport.from_bytes, form, (self_report().to_bytes(),)),
        "what is owed": Target(Owed.from_bytes, form, (_owed(),)),
        "owner's decision": Target(Owner.from_bytes, form, (Owner("fair", "ab" * 32).to_bytes(),)),
        "update under way": Target(machine.State.from_bytes, form, (shown.to_bytes(),)),
        "software under way": Target(
            handlers.State.from_bytes, form, (handlers.State().to_bytes(),)
        ),
        "baseline": Target(Baseline.from_bytes, form, (reference().to_bytes(),)),
        "summary": Target(
            Summary.from_bytes,
            form,
            (Summary.zero("ab" * 32, "cd" * 32, reference().shape).to_bytes(),),
        ),
        "book of privacy": Target(Book.from_bytes, (StoredStateError,), (Book().to_bytes(),)),
        "join token": Target(
            lambda data: parse_token(data.decode("latin-1")),
            (JoinTokenError,),
            (b"wf1." + base64.urlsafe_b64encode(token.encode()),),
        ),
        "answer to an enrolment": Target(
            lambda data: read_answer(Answer(403, data)),
            (EnrolmentError,),
            (b'{"error": {"message": "no", "hint": "ask"}}',),
        ),
    }
