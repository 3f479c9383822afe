"""Metadata that is signed as it should be and says what nobody should: the client's own workflow.

A thief of a key is no worse a writer of metadata than we are, so noise is not enough: here what was
twisted is signed anew by the very keys of its role, and read from the pinned root on.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.exceptions import FormatError as NoCanonicalFormError
from securesystemslib.formats import encode_canonical
from tests.fuzz import twists
from tests.ota_fakes import GROUP, NOON, Origin

from wildflower.ota.errors import FetchError, RefusedError
from wildflower.ota.release.trust import NotThereError, TrustedView
from wildflower.ota.rollout.document import document_path

FILES = {
    "timestamp": "timestamp.json",
    "snapshot": "2.snapshot.json",
    "targets": "1.targets.json",
    "rollout": "2.rollout.json",
    "root": "2.root.json",
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    found = Origin(tmp_path_factory.mktemp("server"))
    release = found.publish(b"model")
    found.roll_out(release)
    return found


class Wire:
    """Serves an origin, with other bytes in one place."""

    def __init__(self, origin: Origin, instead: Mapping[str, bytes]) -> None:
        self.origin, self.instead = origin, instead

    def read(self, path: str) -> Iterator[bytes]:
        name = path.rpartition("/")[2]
        try:
            data = self.instead[name] if name in self.instead else self.origin.read(path)
        except OSError:  # no file has so long a name
            data = None
        if data is None:
            raise NotThereError(path)
        yield data


def look(origin: Origin, instead: Mapping[str, bytes]) -> None:
    """Do as a device that has seen nothing yet."""
    with TemporaryDirectory() as cache:
        view = TrustedView(Path(cache), origin.root, Wire(origin, instead), NOON)
        view.refresh()
        view.target(document_path(GROUP))
        view.target("software/labels.json")


def signed(origin: Origin, role: str, content: Any) -> bytes:
    """Return metadata with this content, signed by the keys of its role if it can be."""
    try:
        data = encode_canonical(content).encode()  # type: ignore[union-attr]  # no output function is given
        signer = origin.keys[role].signers[0]
        signatures = [{"keyid": signer.public_key.keyid, "sig": signer.sign(data).signature}]
    except (NoCanonicalFormError, UnicodeError, RecursionError):
        signatures = []
    return twists.written({"signed": content, "signatures": signatures})


def content_of(origin: Origin, role: str) -> dict[str, Any]:
    """Return what a role signs, in the version that a device would look for."""
    found: dict[str, Any] = json.loads(origin.repository.current(role))["signed"]
    if role == "root":
        found["version"] = 2
    return found


@pytest.mark.parametrize("role", FILES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_metadata_that_is_signed_and_twisted_is_believed_or_refused_by_name(
    origin: Origin, role: str, data: st.DataObject
) -> None:
    content = data.draw(twists.twisted(content_of(origin, role)))
    try:
        look(origin, {FILES[role]: signed(origin, role, content)})
    except (RefusedError, FetchError):
        return


@pytest.mark.parametrize("role", FILES)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_metadata_that_is_damaged_is_believed_or_refused_by_name(
    origin: Origin, role: str, data: st.DataObject
) -> None:
    whole = signed(origin, role, content_of(origin, role))
    try:
        look(origin, {FILES[role]: data.draw(twists.of(whole))})
    except (RefusedError, FetchError):
        return


def test_what_is_signed_here_is_believed(origin: Origin) -> None:
    look(origin, {FILES[role]: signed(origin, role, content_of(origin, role)) for role in FILES})
