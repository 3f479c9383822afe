import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.rollout.document import Order, RolloutDocument, document_path

DOCUMENT = RolloutDocument(
    rollout="13420db42eb1a607",
    target_group="digits.linux-generic",
    order=Order.INSTALL,
    release_path="models/auto/digits.linux-generic/3.json",
    release="ab" * 32,
    salt="0011223344556677",
    permille=250,
    not_before=datetime(2026, 11, 24, 12, tzinfo=UTC),
    window_s=600,
)
GOLDEN = Path(__file__).parents[1] / "goldens" / "rollout-document.json"


def test_a_document_comes_back_as_it_was() -> None:
    assert RolloutDocument.from_bytes(DOCUMENT.to_bytes()) == DOCUMENT


def test_its_bytes_stay_what_devices_understand(update_goldens: bool) -> None:
    if update_goldens:
        GOLDEN.write_bytes(DOCUMENT.to_bytes())
    assert DOCUMENT.to_bytes() == GOLDEN.read_bytes()


BAD: dict[str, tuple[str, Any]] = {
    "an order nobody knows": ("order", "explode"),
    "a salt that is no hex": ("salt", "salty"),
    "more than all": ("permille", 1001),
    "less than nothing": ("permille", -1),
    "a window before it begins": ("window_s", -1),
    "a time that is none": ("not_before", "soon"),
    "a share that is none": ("permille", "many"),
}


@pytest.mark.parametrize(("key", "value"), BAD.values(), ids=BAD)
def test_a_value_out_of_range_is_no_document(key: str, value: Any) -> None:
    document = json.loads(DOCUMENT.to_bytes()) | {key: value}
    with pytest.raises(FormatError):
        RolloutDocument.from_bytes(canonical.to_bytes(document))


@given(st.binary(max_size=60), st.integers(0, 500))
def test_damaged_bytes_never_give_the_same_document(noise: bytes, at: int) -> None:
    whole = DOCUMENT.to_bytes()
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        found = RolloutDocument.from_bytes(damaged)
    except FormatError:
        return
    assert (found == DOCUMENT) is (damaged == whole)


def test_each_group_has_a_document_of_its_own() -> None:
    assert document_path("digits.linux-generic") == "rollout/digits.linux-generic.json"
