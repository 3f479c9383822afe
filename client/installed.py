"""A committed release in memory, and the ways to it: by its device's name, checked byte for byte.

A slot is the directory `slots/<digest of the manifest>`, or a link to it, so its name vouches for
the manifest and the manifest for the files.
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.ota.device.runtime import LoadedModel, Runtime
from wildflower.ota.errors import FormatError, ModelError, RefusedError
from wildflower.ota.observe.baseline import Baseline
from wildflower.ota.observe.recorder import Recorder
from wildflower.ota.release.manifest import FileEntry, Release

log = logging.getLogger(__name__)

ROOT: Final = Path("/var/lib/wildflower")
ROOT_VARIABLE: Final = "WILDFLOWER_ROOT"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
BREATH_S: Final = 0.001
"""Between two steps of loading. Python hands its lock over after 5 ms of one thread's work only,
and a caller that came in between would wait for as long; no step of ours takes one."""
UNREADABLE: Final = (RefusedError, FormatError, ModelError, OSError)

Link = tuple[int, int]
"""Inode and time of `slots/current`: others after every flip, even one to the same release."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One verified slot, loaded.

    Attributes:
        release: Digest of the release.
        artifact: Digest of the model file.
        model: The model.
        baseline: What its answers are counted against.
        recorder: That counts them, empty.
    """

    release: str
    artifact: str
    model: LoadedModel
    baseline: Baseline
    recorder: Recorder


def find_device(name: str, root: Path | None = None) -> Path:
    """Return the directory of the device that runs a model.

    Args:
        name: The model's name, or the name of a directory below the root.
        root: Where devices live; what WILDFLOWER_ROOT says, or /var/lib/wildflower.

    Returns:
        `root/name` if there is one, else the root if that is a device that runs such a model.

    Raises:
        RefusedError: Neither is there.
        ValueError: Not a name; a path is given as a `Path`.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model; give a directory as a Path")
    root = root or Path(os.environ.get(ROOT_VARIABLE, ROOT))
    if (root / name / "slots").is_dir():
        return root / name
    try:
        release = Release.from_bytes((root / "slots" / "current" / "manifest.json").read_bytes())
    except (OSError, FormatError):
        release = None
    if release is not None and release.model_name == name:
        return root
    there = release.model_name if release is not None else "none"
    raise RefusedError(
        f"no device in {root} runs a model {name!r}; found {there}",
        hint=f"Set {ROOT_VARIABLE}, or give the device's directory as a Path.",
    )


def identity_of(slots: Path) -> Link | None:
    """Return what tells whether `slots/current` was flipped; None if it is not there."""
    try:
        found = (slots / "current").lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Choice:
    """What a device can run.

    Attributes:
        link: `slots/current` when it was chosen.
        installed: The model; None if no slot holds what was signed.
        refusal: Why `current`, and perhaps `previous`, were refused; "" for neither.
    """

    link: Link | None
    installed: Installed | None
    refusal: str


def choose(slots: Path, runtime: Runtime, breathe: Callable[[], object] = lambda: None) -> Choice:
    """Load the first slot that is what was signed: current, else previous.

    Args:
        slots: The device's slots.
        runtime: What runs the model.
        breathe: Called between steps, so that other threads have their turn.
    """
    link = identity_of(slots)
    reasons: list[str] = []
    for name in ("current", "previous"):
        try:
            return Choice(link, load_slot(slots / name, runtime, breathe), "; ".join(reasons))
        except UNREADABLE as error:
            reasons.append(f"slots/{name}: {error}")
            log.error("slot refused", extra={"slot": name, "reason": str(error)})
    return Choice(link, None, "; ".join(reasons))


class Loading(threading.Thread):
    """Chooses in a thread of its own, so that who answers meanwhile does not wait."""

    def __init__(self, slots: Path, runtime: Runtime) -> None:
        super().__init__(name="model-loading", daemon=True)
        self._slots, self._runtime = slots, runtime
        self.choice: Choice | None = None
        """What it found; None until it has ended."""

    def run(self) -> None:
        """Choose."""
        self.choice = choose(self._slots, self._runtime, lambda: time.sleep(BREATH_S))


def load_slot(
    slot: Path, runtime: Runtime, breathe: Callable[[], object] = lambda: None
) -> Installed:
    """Load a slot whose every byte is what was signed.

    Args:
        slot: Its directory, or a link to it.
        runtime: What runs the model.
        breathe: Called between steps, so that other threads have their turn.

    Raises:
        RefusedError: A digest is not the one that was signed.
        FormatError: The manifest or the baseline cannot be read.
        ModelError: The runtime cannot load the model.
        OSError: A file is missing.
    """
    directory = slot.resolve(strict=True)
    manifest = (directory / "manifest.json").read_bytes()
    _check(manifest, directory.name, "the manifest")
    breathe()
    release = Release.from_bytes(manifest)
    breathe()
    baseline = Baseline.from_bytes(_read(directory, release.file("baseline")))
    breathe()
    recorder = Recorder(release.artifact.digest, baseline)
    breathe()
    model = _read(directory, release.artifact)
    breathe()
    loaded = runtime.load(model)
    return Installed(directory.name, release.artifact.digest, loaded, baseline, recorder)


def _read(directory: Path, entry: FileEntry) -> bytes:
    data = (directory / entry.name).read_bytes()
    _check(data, entry.digest, entry.name)
    return data


def _check(data: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise RefusedError(f"{name} has digest {found[:16]}, signed was {expected[:16]}")
