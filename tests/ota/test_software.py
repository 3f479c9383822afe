"""What else travels to devices: the signed document."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.software import MAX_FILES, Software, software_path

LABELS = Software(
    name="labels",
    order=2,
    handler="files",
    device_class="linux-generic",
    agent_min="0.1",
    files=(
        FileEntry("payload", "labels.txt", "ab" * 32, 20),
        FileEntry("payload", "tokenizer.json", "cd" * 32, 2000),
    ),
)


def changed(path: tuple[str | int, ...], value: Any) -> bytes:
    document = json.loads(LABELS.to_bytes())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return canonical.to_bytes(document)


def test_a_document_comes_back_as_it_was() -> None:
    assert Software.from_bytes(LABELS.to_bytes()) == LABELS
    assert LABELS.digest == canonical.digest(LABELS.to_bytes())


def test_its_newest_document_lies_where_its_role_may_sign() -> None:
    assert software_path(LABELS.name) == "software/labels.json"


def test_it_may_be_for_all_classes() -> None:
    assert Software.from_bytes(changed(("device_class",), "")).device_class == ""


ENTRY = {"name": "a", "digest": "ab" * 32, "length": 1}
OUT_OF_RANGE: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "a path for a name": (("name",), "../labels"),
    "a path for a handler": (("handler",), "../../bin/sh"),
    "no handler": (("handler",), ""),
    "a path for a class": (("device_class",), "a/b"),
    "a path for a file": (("files", 0, "name"), "/etc/passwd"),
    "a file twice": (("files", 1, "name"), "labels.txt"),
    "no files": (("files",), []),
    "too many": (("files",), [ENTRY | {"name": f"a{n}"} for n in range(MAX_FILES + 1)]),
    "files that are none": (("files",), 5),
    "a digest that is none": (("files", 0, "digest"), "xyz"),
    "a digest that is a number": (("files", 0, "digest"), 5),
    "an empty file": (("files", 0, "length"), 0),
    "a length that is a truth": (("files", 0, "length"), True),
    "an order below 1": (("order",), 0),
    "an order that is a text": (("order",), "3"),
    "a version that is a number": (("agent_min",), 5),
    "something new": (("extra",), 1),
    "something new in a file": (("files", 0, "mode"), 0o755),
    "a name that is none": (("name",), None),
}


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_value_out_of_range_is_no_software(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(FormatError):
        Software.from_bytes(changed(path, value))


@given(st.binary(max_size=100), st.integers(0, 700))
def test_damaged_bytes_never_give_the_same_document(noise: bytes, at: int) -> None:
    whole = LABELS.to_bytes()
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        found = Software.from_bytes(damaged)
    except FormatError:
        return
    assert (found == LABELS) is (damaged == whole)
