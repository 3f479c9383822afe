"""What the owner decided: durable, narrow, and never lost silently."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.client.owner import MAX_FILE, MAX_REASON, Owner, load_owner, save_owner
from wildflower.ota.errors import FormatError

ONE, TWO = "ab" * 32, "cd" * 32


@pytest.mark.parametrize(
    ("owner", "release", "running", "why"),
    [
        (Owner(), TWO, ONE, ""),
        (Owner(paused="fair"), TWO, ONE, "paused on this device: fair"),
        (Owner(paused="fair"), ONE, ONE, ""),
        (Owner(pinned=ONE), TWO, ONE, "release abababababab is pinned on this device"),
        (Owner(pinned=TWO), TWO, ONE, ""),
        (Owner(pinned=TWO), ONE, ONE, ""),
        (Owner("fair", TWO), TWO, ONE, "paused on this device: fair"),
    ],
)
def test_only_what_is_new_is_kept_out(owner: Owner, release: str, running: str, why: str) -> None:
    assert owner.obstacle(release, running) == why


@given(st.text(max_size=MAX_REASON), st.sampled_from(["", ONE, TWO]))
def test_what_was_stored_comes_back(paused: str, pinned: str) -> None:
    try:
        data = Owner(paused, pinned).to_bytes()
    except UnicodeError:
        return  # a lone surrogate is no text
    assert Owner.from_bytes(data) == Owner(paused, pinned)


@given(st.binary(max_size=300))
def test_what_is_no_decision_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Owner.from_bytes(data)


@pytest.mark.parametrize(
    "body",
    [
        '"paused":1,"pinned":""',
        '"paused":"","pinned":null',
        '"paused":"","pinned":"abc"',
        f'"paused":"{"a" * 201}","pinned":""',
    ],
)
def test_a_decision_out_of_range_is_refused(body: str) -> None:
    with pytest.raises(FormatError, match="owner"):
        Owner.from_bytes(f'{{"format":1,"kind":"wildflower.owner",{body}}}'.encode())


def test_decisions_outlast_the_process_and_replace_each_other(tmp_path: Path) -> None:
    assert load_owner(tmp_path) == Owner()
    for owner in (Owner("fair", ONE), Owner(pinned=TWO), Owner()):
        save_owner(owner, tmp_path)
        assert load_owner(tmp_path) == owner
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"x" * (MAX_FILE + 1)])
def test_a_file_that_cannot_be_read_means_paused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "owner.json").write_bytes(data)
    found = load_owner(tmp_path)
    assert "cannot be read" in found.obstacle(TWO, ONE)
    assert len(found.paused) <= MAX_REASON
    save_owner(Owner(found.paused), tmp_path)  # whatever was read can be stored
