"""The audit trail: what it shows, what it cannot hide, and that nothing is signed without it."""

import multiprocessing
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tests.ota_fakes import NOON
from tuf.api.metadata import Metadata, Targets

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release import audit
from wildflower.ota.release.audit import START, AuditedSigner, Record, Trail, follow, head
from wildflower.ota.release.keys import RoleKeys

KEY = "ab" * 32


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / audit.FILE)


def three(trail: Trail) -> bytes:
    for number in range(3):
        trail.append(KEY, f"payload {number}".encode(), NOON)
    return trail.path.read_bytes()


def test_each_signature_is_a_line_that_names_the_line_before(trail: Trail) -> None:
    data = three(trail)
    first, second, third = follow(data)
    assert (first.number, first.previous) == (1, START)
    assert second.previous == canonical.digest(data.split(b"\n")[0])
    assert third.payload == canonical.digest(b"payload 2")
    assert (third.key, third.at, third.what, third.length) == (KEY, NOON, "bytes", 9)


def test_a_trail_begins_empty(trail: Trail) -> None:
    assert follow(b"") == ()
    assert head(b"") == START
    assert follow(b"", seen=START) == ()


def test_only_its_owner_can_read_a_trail(trail: Trail) -> None:
    three(trail)
    assert stat.S_IMODE(trail.path.stat().st_mode) == 0o600


def test_metadata_is_called_by_its_type_and_version(trail: Trail) -> None:
    signer = AuditedSigner(CryptoSigner.generate_ed25519(), trail, lambda: NOON)
    metadata = Metadata(Targets(version=7, expires=NOON))
    metadata.sign(signer)
    [record] = follow(trail.path.read_bytes())
    assert record.what == "targets 7"
    assert record.key == signer.public_key.keyid
    assert record.payload == canonical.digest(metadata.signed_bytes)


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"DSSEv1 4 type 2 {}", "DSSE"),
        (b"{}", "bytes"),
        (b'{"_type": "root", "version": true}', "bytes"),
        (b'{"_type": "root\\n", "version": 1}', "bytes"),
        (b'{"_type": "root", "version": 3}', "root 3"),
        (b"[" * 100_000, "bytes"),
        (b"\xff", "bytes"),
        (b"[]", "bytes"),
    ],
)
def test_other_bytes_are_called_what_they_say_they_are(
    trail: Trail, payload: bytes, what: str
) -> None:
    assert trail.append(KEY, payload, NOON).what == what


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_found(trail: Trail, line: int) -> None:
    lines = three(trail).split(b"\n")
    record = Record.from_line(lines[line])
    lines[line] = replace(record, key="cd" * 32).to_line()[:-1]
    changed = b"\n".join(lines)
    if line < 2:
        with pytest.raises(FormatError, match=f"line {line + 2} does not follow line {line + 1}"):
            follow(changed)
    with pytest.raises(FormatError, match="does not contain the head"):
        follow(b"\n".join(lines[: line + 1]) + b"\n", seen=head(trail.path.read_bytes()))


def test_a_line_taken_out_is_found(trail: Trail) -> None:
    first, _, third, end = three(trail).split(b"\n")
    with pytest.raises(FormatError, match="line 2 does not follow"):
        follow(b"\n".join([first, third, end]))


def test_an_end_cut_off_is_found_by_whoever_noted_the_head(trail: Trail) -> None:
    data = three(trail)
    noted = head(data)
    cut = data[: data.rindex(b"\n", 0, -1) + 1]
    assert len(follow(cut)) == 2
    with pytest.raises(FormatError, match="does not contain the head"):
        follow(cut, seen=noted)
    trail.append(KEY, b"one more", NOON)
    assert len(follow(trail.path.read_bytes(), seen=noted)) == 4


def test_a_line_that_a_power_cut_tore_is_no_signature_and_the_trail_goes_on(trail: Trail) -> None:
    data = three(trail)
    trail.path.write_bytes(data + data[:100])
    assert len(follow(trail.path.read_bytes())) == 3
    trail.append(KEY, b"after", NOON)
    assert trail.path.read_bytes().startswith(data)
    assert len(follow(trail.path.read_bytes())) == 4


def test_nothing_is_signed_that_cannot_be_written_down(tmp_path: Path) -> None:
    inner = CountingSigner()
    signer = AuditedSigner(inner, Trail(tmp_path / "missing" / "audit.jsonl"), lambda: NOON)
    with pytest.raises(SigningError, match="cannot be written") as refused:
        signer.sign(b"payload")
    assert "Nothing was signed" in refused.value.hint
    assert inner.count == 0


def test_nothing_is_signed_after_a_damaged_line(trail: Trail) -> None:
    trail.path.write_bytes(b"not ours\n")
    inner = CountingSigner()
    with pytest.raises(SigningError, match="damaged"):
        AuditedSigner(inner, trail, lambda: NOON).sign(b"payload")
    assert inner.count == 0
    assert trail.path.read_bytes() == b"not ours\n"


class CountingSigner(CryptoSigner):
    """A real signer that counts."""

    def __init__(self) -> None:
        super().__init__(CryptoSigner.generate_ed25519()._private_key)
        self.count = 0

    def sign(self, payload: bytes):  # type: ignore[no-untyped-def]  # as its parent's
        self.count += 1
        return super().sign(payload)


def test_an_audited_signer_signs_as_its_inner_one_does(trail: Trail) -> None:
    inner = CryptoSigner.generate_ed25519()
    keys = audit.audited({"root": RoleKeys((inner,))}, trail, lambda: NOON)
    [signer] = keys["root"].signers
    assert signer.public_key == inner.public_key
    inner.public_key.verify_signature(signer.sign(b"data"), b"data")
    assert len(follow(trail.path.read_bytes())) == 1
    with pytest.raises(NotImplementedError):
        AuditedSigner.from_priv_key_uri("file2:x", inner.public_key)


def _append(path: Path) -> None:
    for _ in range(20):
        Trail(path).append(KEY, b"x", NOON)


def test_processes_that_append_at_once_make_one_chain(trail: Trail) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(trail.path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(follow(trail.path.read_bytes())) == 60


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_otherwise_than_by_name(data: bytes) -> None:
    try:
        follow(data + b"\n")
    except FormatError:
        return


@given(st.integers(0, 2000), st.integers(1, 255))
def test_any_changed_byte_is_found(position: int, change: int) -> None:
    lines, last = [], START
    for number in (1, 2, 3):
        line = Record(number, NOON, KEY, "bytes", "ef" * 32, 5, last).to_line()
        lines.append(line)
        last = canonical.digest(line[:-1])
    data = b"".join(lines)
    at = position % len(data)
    changed = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    with pytest.raises(FormatError):
        follow(changed, seen=last)


GOOD = Record(1, NOON, KEY, "bytes", "ef", 5, START).to_line()[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"x" * 2000,
        GOOD.replace(b'"length":5', b'"length":"5"'),
        GOOD.replace(b'"number":1', b'"number":true'),
        GOOD.replace(b'"what":"bytes"', b'"what":null'),
        GOOD.replace(b'"what"', b'"who":"me","what"'),
        GOOD.replace(b"2026-06-01T12", b"yesterday"),
        GOOD.replace(b"2026-06-01T12:00:00.000000Z", b"2026-06-01T14:00:00.000000+02:00"),
    ],
)
def test_a_line_of_another_form_is_refused(line: bytes) -> None:
    assert Record.from_line(GOOD).to_line()[:-1] == GOOD
    with pytest.raises(FormatError):
        Record.from_line(line)
