"""Parcels: what comes back is what went in, and a hostile one costs a bounded sum."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wildflower.ota.errors import FormatError
from wildflower.ota.release import parcel
from wildflower.ota.release.parcel import BLOCK, Parcel, write_parcel

LONG = (
    "tuf/targets/models/approved/a-model-with-a-name.linux-generic/" + "ab" * 32 + ".1234567.json"
)
ANY_FOLDER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100
)


def names() -> st.SearchStrategy[str]:
    return st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}(/[a-z0-9]{1,20}){0,3}", fullmatch=True)


def tar(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for header, data in members:
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def opened(tmp_path: Path, data: bytes) -> Parcel:
    path = tmp_path / "from-outside"
    path.write_bytes(data)
    return Parcel.open(path)


@ANY_FOLDER
@given(contents=st.dictionaries(names(), st.binary(max_size=2000), max_size=8))
def test_what_goes_in_comes_out(contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "parcel"
    assert write_parcel(path, contents) == path.stat().st_size
    found = Parcel.open(path)
    assert {name: found.read(name, 2000) for name in found.places} == contents


def test_anybody_can_list_it_with_tar(tmp_path: Path) -> None:
    path = tmp_path / "parcel"
    write_parcel(path, {LONG: b"one", "blobs/b": b"two"})
    with tarfile.open(path) as file:
        assert file.getnames() == [LONG, "blobs/b"]


def test_what_tar_wrote_is_read_too(tmp_path: Path) -> None:
    found = opened(tmp_path, tar((tarfile.TarInfo("blobs/a"), b"x" * 700)))
    assert found.read("blobs/a", 700) == b"x" * 700


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"one" * 100_000)
    write_parcel(tmp_path / "a", {"one": source})
    write_parcel(tmp_path / "b", {"one": b"one" * 100_000})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b"".join(Parcel.open(tmp_path / "a").pieces("one", 299_990)) == b"eoneoneone"


@pytest.mark.parametrize(
    "name",
    ["../up", "/etc/passwd", "a/../b", "a//b", ".hidden", "a\\b", "", "a/./b", "ü", "a" * 300],
)
def test_names_that_are_no_plain_names_are_neither_written_nor_read(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match="no plain name"):
        write_parcel(tmp_path / "parcel", {name: b""})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FormatError):
        opened(tmp_path, tar((tarfile.TarInfo(name), b"x"), kind=tarfile.GNU_FORMAT))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_directories_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.type, header.linkname = kind, "/etc/passwd"
    with pytest.raises(FormatError, match=r"no regular file|no plain name"):
        opened(tmp_path, tar((header, b"")))


def test_extended_headers_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.pax_headers = {"path": "../b"}
    with pytest.raises(FormatError):
        opened(tmp_path, tar((header, b""), kind=tarfile.PAX_FORMAT))


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="twice"):
        opened(tmp_path, tar((tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2")))


def test_more_entries_than_allowed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tar((tarfile.TarInfo("a"), b""), (tarfile.TarInfo("b"), b""))
    monkeypatch.setattr(parcel, "MAX_ENTRIES", 1)
    with pytest.raises(FormatError, match="more than 1 entries"):
        opened(tmp_path, data)
    with pytest.raises(FormatError, match="at most 1 entries"):
        write_parcel(tmp_path / "out", {"a": b"", "b": b""})


def test_a_size_that_lies_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.size = 2**31
    with pytest.raises(FormatError, match="cut short in a"):
        opened(tmp_path, header.tobuf(tarfile.USTAR_FORMAT) + bytes(4 * BLOCK))
    header.size = 2**40
    with pytest.raises(FormatError, match="at most"):
        opened(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(4 * BLOCK))


def test_something_behind_the_end_is_refused(tmp_path: Path) -> None:
    good = tar((tarfile.TarInfo("a"), b"1"))
    with pytest.raises(FormatError, match="lies behind"):
        opened(tmp_path, good + b"x" * BLOCK)


@pytest.mark.parametrize("cut", [0, 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK])
def test_one_that_is_cut_short_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "whole"
    write_parcel(path, {"a": b"1"})
    with pytest.raises(FormatError):
        opened(tmp_path, path.read_bytes()[:cut])


def test_an_entry_is_read_within_a_limit_and_only_if_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "parcel"
    write_parcel(path, {"a": b"12345"})
    found = Parcel.open(path)
    with pytest.raises(FormatError, match="5 bytes, at most 4"):
        found.read("a", 4)
    with pytest.raises(FormatError, match="there is no 'b'"):
        found.read("b", 4)
    path.write_bytes(path.read_bytes()[: BLOCK + 2])
    with pytest.raises(FormatError, match="ends early"):
        found.read("a", 5)


def test_a_full_disk_or_a_missing_file_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_parcel(tmp_path / "parcel", {"a": b"1", "b": tmp_path / "missing"})
    assert list(tmp_path.iterdir()) == []


@ANY_FOLDER
@given(data=st.binary(max_size=4 * BLOCK))
def test_noise_is_refused_or_read_and_never_anything_else(data: bytes, tmp_path: Path) -> None:
    try:
        found = opened(tmp_path, data)
    except FormatError:
        return
    assert all(len(found.read(name, len(data))) <= len(data) for name in found.places)


@ANY_FOLDER
@given(at=st.integers(0, 6 * BLOCK - 1), to=st.integers(0, 255), cut=st.integers(0, 6 * BLOCK))
def test_a_damaged_parcel_is_refused_or_read_and_never_anything_else(
    at: int, to: int, cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "whole"
    write_parcel(path, {"a/b": b"1" * 600, "c": b""})
    data = bytearray(path.read_bytes())
    data[at] = to
    try:
        found = opened(tmp_path, bytes(data[: len(data) - cut % BLOCK]))
    except FormatError:
        return
    assert all(len(found.read(name, len(data))) <= len(data) for name in found.places)
