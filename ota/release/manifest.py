"""What a release is: one signed document that names every file, demand and origin of a model.

The manifest is a TUF target; its files are named by digest and need no metadata of their own, so
that TUF metadata grows with releases and not with files. `release.digest` is the release's id.

    Release.from_bytes(release.to_bytes()) == release
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Self, TypeVar

from wildflower.ota import canonical
from wildflower.ota.delta.plan import is_worthwhile
from wildflower.ota.errors import FormatError

KIND: Final = "wildflower.release"
MAX_PROBATION: Final = 30 * 86_400  # seconds
HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_FILE: Final = 2**31  # bytes; what ONNX itself can hold in one protobuf file
NO_PROBATION: Final = ("probation_s", 0)
MAX_DELTAS: Final = 5  # more would make every device read what a few of them need
SIGNERS: Final = ("auto", "approved")
"""Roles that may sign releases: the release signer, and k of n people."""
FILE_ROLES: Final = ("model", "golden", "baseline")
"""What a slot holds: the model, the inputs and outputs of its trial, the edges of its summaries."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a release.

    Attributes:
        role: What it is for, one of `FILE_ROLES`.
        name: Its name in the slot, without any directory.
        digest: Its SHA-256, hex.
        length: Its size in bytes, in [1, 2**31].
    """

    role: str
    name: str
    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A shorter way to a release's model file, for devices that run another one.

    Nothing is trusted because it stands here: what counts is the digest of the file that is made.

    Attributes:
        base: SHA-256 of the model file that it starts from, hex.
        digest: SHA-256 of the delta itself, hex.
        length: Bytes of the delta, at least 1 and at most 0.7 of the model file's.
    """

    base: str
    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a device must offer before a byte of the model is fetched.

    Attributes:
        device_class: Name of the device class (`ota.device.profile`).
        runtime: Distribution name of the runtime, such as "onnxruntime".
        runtime_min: Lowest version that will do, inclusive.
        runtime_below: First version that will not do.
        opset: ONNX operator set of the model.
        agent_min: Lowest version of the agent, inclusive.
        ram_bytes: Free memory that loading and running takes.
        disk_bytes: Free disk space that installing takes, part file and slot together.
    """

    device_class: str
    runtime: str
    runtime_min: str
    runtime_below: str
    opset: int
    agent_min: str
    ram_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class TrialBudget:
    """What the release must show on the device before it is committed.

    A manifest says nothing of a probation of 0 seconds, so that those signed before there were
    probations keep their digest.

    Attributes:
        tolerance: Largest absolute difference to the golden outputs.
        min_agreement: Share of golden rows whose arg max must agree, in [0, 1].
        latency_ms: Largest median time of one inference, in milliseconds.
        rss_bytes: Largest resident memory of the process that runs it.
        probation_s: For how long it runs, healthy, before it is committed, in [0, 2592000] s.
    """

    tolerance: float
    min_agreement: float
    latency_ms: float
    rss_bytes: int
    probation_s: int = 0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the model came from; each digest can be asked for with `wildflower trace`.

    Attributes:
        model: Digest of the global model (safetensors).
        training: Id of the training whose round made it; "" if it was imported.
        round_number: Number of that round, from 1; 0 if it was imported.
        gate_report: Digest of the gates' report on this artifact; "" if there is none.
    """

    model: str
    training: str
    round_number: int
    gate_report: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """From `after` on, at most `permille` of the target group may hold the release."""

    after: datetime
    permille: int


@dataclass(frozen=True, slots=True)
class Release:
    """A model on its way out to one target group.

    A manifest without deltas says nothing of them, so that it has the bytes it had before there
    were any.

    Attributes:
        model_name: Name of the model's line, such as "digits".
        target_group: The devices that share this artifact: "<model name>.<device class>".
        order: Position in the line; a device never goes to a lower one unless told so.
        files: What a slot will hold; exactly one of them has the role "model".
        requires: What a device must offer.
        trial: What it must show on the device.
        lineage: Where it came from.
        not_before: No device installs it earlier.
        ramp: Upper bounds on its spread that an online key cannot lift, by time.
        deltas: Ways to the model file from earlier ones, at most 5, each from another.
    """

    model_name: str
    target_group: str
    order: int
    files: tuple[FileEntry, ...]
    requires: Requirement
    trial: TrialBudget
    lineage: Lineage
    not_before: datetime
    ramp: tuple[Ceiling, ...] = ()
    deltas: tuple[Delta, ...] = ()

    @property
    def digest(self) -> str:
        """The release's id: the SHA-256 of its bytes."""
        return canonical.digest(self.to_bytes())

    @property
    def artifact(self) -> FileEntry:
        """The model file."""
        return self.file("model")

    def file(self, role: str) -> FileEntry:
        """Return the file of a role.

        Raises:
            FormatError: The release has no such file.
        """
        for entry in self.files:
            if entry.role == role:
                return entry
        raise FormatError(f"release {self.target_group} {self.order} has no {role} file")

    def ceiling(self, now: datetime) -> int:
        """Return the largest permille that the signed ramp allows at `now`, in [0, 1000]."""
        if now < self.not_before:
            return 0
        reached = [step.permille for step in self.ramp if step.after <= now]
        return max(reached, default=0) if self.ramp else 1000

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is signed."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "model_name": self.model_name,
                "target_group": self.target_group,
                "order": self.order,
                "files": [_fields(entry) for entry in self.files],
                "requires": _fields(self.requires),
                "trial": {k: v for k, v in _fields(self.trial).items() if (k, v) != NO_PROBATION},
                "lineage": _fields(self.lineage),
                "not_before": canonical.to_time(self.not_before),
                "ramp": [
                    {"after": canonical.to_time(step.after), "permille": step.permille}
                    for step in self.ramp
                ],
            }
            | ({"deltas": [_fields(delta) for delta in self.deltas]} if self.deltas else {})
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a manifest from outside.

        Raises:
            FormatError: Not a release manifest, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            release = cls(
                model_name=str(document["model_name"]),
                target_group=str(document["target_group"]),
                order=int(document["order"]),
                files=tuple(_parsed(FileEntry, entry) for entry in document["files"]),
                requires=_parsed(Requirement, document["requires"]),
                trial=_parsed(TrialBudget, document["trial"]),
                lineage=_parsed(Lineage, document["lineage"]),
                not_before=canonical.from_time(document["not_before"]),
                ramp=tuple(
                    Ceiling(canonical.from_time(step["after"]), int(step["permille"]))
                    for step in document["ramp"]
                ),
                deltas=tuple(_parsed(Delta, delta) for delta in document.get("deltas", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"release manifest: {error!r}") from error
        release.check()
        if release.to_bytes() != data:
            raise FormatError("release manifest: it holds what this version does not know")
        return release

    def check(self) -> None:
        """Check every range that the types do not.

        Raises:
            FormatError: A value lies outside its range.
        """
        for name in (self.model_name, self.target_group, *(entry.name for entry in self.files)):
            if not PLAIN_NAME.fullmatch(name):
                raise FormatError(f"not a plain name: {name!r}")
        roles = [entry.role for entry in self.files]
        if sorted(roles) != sorted(set(roles)) or not set(roles) <= set(FILE_ROLES):
            raise FormatError(f"file roles {roles}: each at most once, out of {FILE_ROLES}")
        for entry in self.files:
            if not HEX_DIGEST.fullmatch(entry.digest) or not 1 <= entry.length <= MAX_FILE:
                raise FormatError(f"file {entry.name}: digest or length out of range")
        if "model" not in roles or self.order < 1:
            raise FormatError("a release needs a model file and an order of at least 1")
        if not 0 <= self.trial.probation_s <= MAX_PROBATION:
            raise FormatError(f"a probation lasts at most {MAX_PROBATION} s")
        if not all(0 <= step.permille <= 1000 for step in self.ramp):
            raise FormatError("a ramp's permille lies in [0, 1000]")
        self._check_deltas()

    def _check_deltas(self) -> None:
        """Check the deltas' bounds; whether they are right is seen by who applies one."""
        starts = {self.artifact.digest, *(delta.base for delta in self.deltas)}
        if len(self.deltas) > MAX_DELTAS or len(starts) != 1 + len(self.deltas):
            raise FormatError(
                f"{len(self.deltas)} deltas: at most {MAX_DELTAS}, each from another model file"
            )
        for delta in self.deltas:
            if not HEX_DIGEST.fullmatch(delta.base) or not HEX_DIGEST.fullmatch(delta.digest):
                raise FormatError("a delta: its base and digest are SHA-256 in hex")
            if delta.length < 1 or not is_worthwhile(delta.length, self.artifact.length):
                raise FormatError(
                    f"a delta of {delta.length} bytes to a file of {self.artifact.length}",
                    hint="The whole file is the better way then.",
                )


def target_path(role: str, target_group: str, order: int) -> str:
    """Return where a release's manifest lies among the TUF targets.

    Args:
        role: The delegated role that signs it, "auto" or "approved".
        target_group: The release's target group.
        order: The release's order.

    Example:
        >>> target_path("auto", "digits.linux-generic", 3)
        'models/auto/digits.linux-generic/3.json'
    """
    return f"models/{role}/{target_group}/{order}.json"


P = TypeVar("P", FileEntry, Delta, Requirement, TrialBudget, Lineage)


def _parsed(kind: type[P], entry: Mapping[str, Any]) -> P:
    """Make a part of a manifest from what JSON has for it.

    Raises:
        TypeError: A field is missing, is not known, or has a value of another type.
    """
    part = kind(**entry)
    for field in fields(kind):
        found = type(getattr(part, field.name))
        if found is not field.type and (found, field.type) != (int, float):  # 1.0 is written as 1
            raise TypeError(f"{field.name}: expected {field.type}, found {found}")
    return part


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
