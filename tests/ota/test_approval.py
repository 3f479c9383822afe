"""Statements of approved releases: read before anybody signs, and signed by the first who does."""

from dataclasses import replace

import pytest
from securesystemslib.signer import CryptoSigner
from tests.ota_fakes import NOON, release_of

from wildflower.ota.errors import FormatError, RefusedError, SigningError
from wildflower.ota.release import signing
from wildflower.ota.release.approval import sign_statements, statements_in
from wildflower.ota.release.keys import RoleKeys
from wildflower.ota.release.manifest import target_path
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import (
    Provenance,
    open_statement,
    sign_statement,
    statement_path,
)

ALICE, BOB = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
KEYS = [ALICE.public_key, BOB.public_key]
RELEASE = release_of(b"model")
MADE = Provenance.of(RELEASE, RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {}, NOON), {})
PATH = target_path("approved", RELEASE.target_group, 1)
BESIDE = statement_path(PATH)
BARE = sign_statement(MADE, [])
EMPTY = signing.first_delegated(RoleKeys((ALICE, BOB), 2), expires=NOON)
METADATA = signing.add_release(EMPTY, PATH, RELEASE.to_bytes(), [], expires=NOON, provenance=BARE)
CONTENTS = {PATH: RELEASE.to_bytes(), BESIDE: BARE}


def test_the_first_who_signs_signs_the_statement_and_the_metadata_names_it_then() -> None:
    metadata, contents = sign_statements(METADATA, CONTENTS, [ALICE])
    assert open_statement(contents[BESIDE], KEYS) == MADE
    assert contents[PATH] == CONTENTS[PATH]
    assert statements_in(metadata, contents) == {BESIDE: MADE}
    assert signing.read_targets(metadata).signed.version == 2


def test_who_signs_later_leaves_the_statement_as_it_was_signed() -> None:
    metadata, contents = sign_statements(METADATA, CONTENTS, [ALICE])
    metadata = signing.countersign(metadata, ALICE)
    assert sign_statements(metadata, contents, [BOB]) == (metadata, contents)


def test_a_release_without_a_statement_is_signed_as_it_is() -> None:
    metadata = signing.add_release(EMPTY, PATH, RELEASE.to_bytes(), [], expires=NOON)
    contents = {PATH: RELEASE.to_bytes()}
    assert sign_statements(metadata, contents, [ALICE]) == (metadata, contents)


def named(statement: bytes) -> bytes:
    return signing.put_unsigned(METADATA, BESIDE, statement)


OTHER = sign_statement(replace(MADE, manifest="00" * 32), [])


@pytest.mark.parametrize(
    ("metadata", "contents", "told"),
    [
        (METADATA, {**CONTENTS, BESIDE: OTHER}, "not what the metadata names"),
        (METADATA, {BESIDE: BARE}, "of nothing"),
        (METADATA, {**CONTENTS, f"x{BESIDE}": BARE}, "does not name"),
        (named(OTHER), {**CONTENTS, BESIDE: OTHER}, "of another manifest"),
    ],
)
def test_nobody_signs_a_statement_that_is_not_what_it_seems(
    metadata: bytes, contents: dict[str, bytes], told: str
) -> None:
    with pytest.raises(RefusedError, match=told):
        sign_statements(metadata, contents, [ALICE])


def test_a_statement_that_cannot_be_read_is_told() -> None:
    with pytest.raises(FormatError, match="DSSE"):
        statements_in(named(b"{}"), {**CONTENTS, BESIDE: b"{}"})


def test_what_is_signed_is_not_changed() -> None:
    signed = signing.countersign(METADATA, ALICE)
    with pytest.raises(SigningError, match="signed already"):
        signing.put_unsigned(signed, BESIDE, BARE)
