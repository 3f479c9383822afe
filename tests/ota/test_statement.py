"""Provenance statements: their form, who signed them, and of which release they are."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tests.ota_fakes import NOON, file_entry, release_of

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, RefusedError
from wildflower.ota.release.audit import AuditedSigner, Trail, follow
from wildflower.ota.release.manifest import Lineage
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import (
    PAYLOAD_TYPE,
    Provenance,
    cosign_statement,
    open_statement,
    read_statement,
    sign_statement,
    statement_path,
)

RECORD = RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {"accuracy": 0.9}, NOON)
RELEASE = release_of(b"model", lineage=Lineage(RECORD.model, "t1", 3, "cd" * 32))
MADE = Provenance.of(RELEASE, RECORD, {"onnx": "1.20"}, {"epsilon": 2.5, "delta": 1e-5})
SIGNER = CryptoSigner.generate_ed25519()
OTHER = CryptoSigner.generate_ed25519()


def test_a_statement_comes_back_as_it_was_made() -> None:
    assert Provenance.from_bytes(MADE.to_bytes()) == MADE
    MADE.check(RELEASE)


def test_the_order_of_files_in_a_manifest_is_none_of_its_claims() -> None:
    files = (file_entry(b"model"), file_entry(b"golden", role="golden", name="golden.npz"))
    for ordered in (files, files[::-1]):
        release = replace(RELEASE, files=ordered)
        found = Provenance.of(release, RECORD, {})
        Provenance.from_bytes(found.to_bytes()).check(release)


def test_it_is_a_statement_that_in_toto_and_slsa_describe() -> None:
    found = json.loads(MADE.to_bytes())
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    [subject] = found["subject"]
    assert subject == {"name": "model.onnx", "digest": {"sha256": RELEASE.artifact.digest}}
    assert set(found["predicate"]) == {"buildDefinition", "runDetails"}
    definition = found["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"][0]["digest"] == {"sha256": RECORD.model}
    assert definition["externalParameters"]["survivors"] == 7


def test_an_envelope_is_opened_by_the_signers_key() -> None:
    data = sign_statement(MADE, [SIGNER])
    assert open_statement(data, [SIGNER.public_key, OTHER.public_key]) == MADE
    envelope = json.loads(data)
    assert envelope["payloadType"] == PAYLOAD_TYPE
    assert base64.b64decode(envelope["payload"]) == MADE.to_bytes()


def test_several_signers_make_a_threshold() -> None:
    both = sign_statement(MADE, [SIGNER, OTHER])
    keys = [SIGNER.public_key, OTHER.public_key]
    assert open_statement(both, keys, threshold=2) == MADE
    with pytest.raises(RefusedError, match="wrong signature"):
        open_statement(sign_statement(MADE, [SIGNER]), keys, threshold=2)
    with pytest.raises(RefusedError, match="threshold"):
        open_statement(both, keys[:1], threshold=2)


def test_a_strangers_signature_opens_nothing() -> None:
    with pytest.raises(RefusedError, match="wrong signature"):
        open_statement(sign_statement(MADE, [OTHER]), [SIGNER.public_key])


def test_what_was_changed_after_signing_is_refused() -> None:
    envelope = json.loads(sign_statement(MADE, [SIGNER]))
    lie = replace(MADE, survivors=8).to_bytes()
    envelope["payload"] = base64.b64encode(lie).decode()
    with pytest.raises(RefusedError, match="wrong signature"):
        open_statement(json.dumps(envelope).encode(), [SIGNER.public_key])


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("manifest", {"order": 2}),
        ("manifest", {"lineage": Lineage("ab" * 32, "t2", 3, "cd" * 32)}),
    ],
)
def test_it_is_of_one_release(what: str, changes: dict[str, object]) -> None:
    with pytest.raises(RefusedError, match=f"of another {what}"):
        MADE.check(replace(RELEASE, **changes))  # type: ignore[arg-type]  # fields of a release


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("files", {"files": {"model.onnx": "00" * 32}}),
        ("model", {"model": "00" * 32}),
        ("training", {"training": "t9"}),
        ("round", {"round_number": 4}),
        ("gate report", {"gate_report": "00" * 32}),
    ],
)
def test_every_claim_about_the_release_is_checked(what: str, changes: dict[str, object]) -> None:
    with pytest.raises(RefusedError, match=f"of another {what}"):
        replace(MADE, **changes).check(RELEASE)  # type: ignore[arg-type]  # fields of its own


def test_it_is_told_in_a_line() -> None:
    told = "round t1/3, no method told, 7 of 8 devices, epsilon 2.5, delta 1e-05"
    assert str(MADE) == told
    assert str(replace(MADE, privacy={"\n": 1.0})).endswith("no privacy told")
    silent = replace(MADE, privacy={}, method=Method("fedavg", "he"))
    assert str(silent) == "round t1/3, he+fedavg, 7 of 8 devices, no privacy told"


def test_another_release_of_the_same_model_takes_it_over() -> None:
    again = replace(RELEASE, order=2)
    found = MADE.taken_over(again)
    found.check(again)
    assert replace(found, manifest=MADE.manifest) == MADE
    other = replace(RELEASE, files=(file_entry(b"built anew"),))
    assert MADE.taken_over(other).toolchain == {}
    stranger = replace(RELEASE, lineage=Lineage("ab" * 32, "t2", 3, "cd" * 32))
    with pytest.raises(RefusedError, match="of another training"):
        MADE.taken_over(stranger)


def test_an_envelope_is_cosigned_and_can_be_read_without_keys() -> None:
    bare = sign_statement(MADE, [])
    assert read_statement(bare) == MADE
    both = cosign_statement(cosign_statement(bare, [SIGNER]), [OTHER])
    assert open_statement(both, [SIGNER.public_key, OTHER.public_key], threshold=2) == MADE
    with pytest.raises(FormatError, match="DSSE"):
        cosign_statement(b"{}", [SIGNER])


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"epsilon": -1.0}},
        {"training": "t1\n  + models/approved/x"},
        {"training": "\x1b[2K"},
        {"training": "t" * 201},
        {"survivors": 0},
        {"survivors": 9},
        {"round_number": 0},
        {"files": {}},
        {"model": "no digest"},
        {"round_record": "AB" * 32},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="provenance"):
        Provenance.from_bytes(replace(MADE, **changes).to_bytes())  # type: ignore[arg-type]


def test_other_documents_are_refused() -> None:
    good = json.loads(MADE.to_bytes())
    changes: list[dict[str, object]] = [
        {"_type": "x"},
        {"subject": 1},
        {"more": 1},
        {"predicate": {}},
    ]
    for change in changes:
        with pytest.raises(FormatError, match="provenance"):
            Provenance.from_bytes(canonical.to_bytes(good | change))
    for data in (b"", b"[]", b"[" * 100_000, b"\xff", b" " * 300_000):
        with pytest.raises(FormatError, match="provenance"):
            Provenance.from_bytes(data)
    huge = MADE.to_bytes().replace(b'"epsilon":2.5', b'"epsilon":1e999')
    with pytest.raises(FormatError, match="provenance"):
        Provenance.from_bytes(huge)


def test_other_envelopes_are_refused() -> None:
    good = json.loads(sign_statement(MADE, [SIGNER]))
    changes: list[dict[str, object]] = [
        {"payloadType": "text/plain"},
        {"payload": 1},
        {"signatures": [{}]},
    ]
    for change in changes:
        with pytest.raises(FormatError, match="provenance"):
            open_statement(json.dumps(good | change).encode(), [SIGNER.public_key])
    for data in (b"", b"{}", b"[" * 100_000, b" " * 300_000):
        with pytest.raises(FormatError, match="provenance"):
            open_statement(data, [SIGNER.public_key])


def test_its_signature_is_in_the_trail(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "audit.jsonl")
    sign_statement(MADE, [AuditedSigner(SIGNER, trail, lambda: NOON)])
    [record] = follow(trail.path.read_bytes())
    assert record.what == "DSSE"


def test_it_lies_beside_its_manifest_and_its_role_may_sign_it() -> None:
    from tuf.api.metadata import DelegatedRole

    from wildflower.ota.release.signing import PATHS

    path = statement_path("models/auto/digits.linux-generic/3.json")
    role = DelegatedRole("models/auto", [], 1, True, [PATHS["models/auto"]])
    assert role.is_delegated_path(path)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parsers_fail_otherwise_than_by_name(data: bytes) -> None:
    with pytest.raises(FormatError):
        Provenance.from_bytes(data)
    with pytest.raises(FormatError):
        open_statement(data, [SIGNER.public_key])
    with pytest.raises(FormatError):
        read_statement(data)


@given(st.integers(0, 5000), st.integers(1, 255))
def test_no_changed_byte_of_an_envelope_changes_what_is_believed(at: int, change: int) -> None:
    data = bytearray(ENVELOPE)
    data[at % len(data)] ^= change
    try:
        assert open_statement(bytes(data), [SIGNER.public_key]) == MADE
    except (FormatError, RefusedError):
        return


ENVELOPE = sign_statement(MADE, [SIGNER])
