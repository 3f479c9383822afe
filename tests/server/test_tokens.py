import base64
import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.server.errors import EnrolmentError
from wildflower.server.tokens import Invitation, digest_of, mint, opens, parse, token_id_of

CA, ROOT = "ca" * 32, "00" * 32
INVITATION = Invitation.make("https://fl.example.org:8442", CA, ROOT, entropy=b"\x01" * 32)


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32))
def test_a_token_says_what_it_was_made_of(entropy: bytes) -> None:
    made = Invitation.make("https://[::1]:8442", CA, ROOT, entropy=entropy)
    assert parse(made.to_text()) == made
    assert len(made.secret) == 43


def test_the_form_of_a_token_is_the_documented_one() -> None:
    text = INVITATION.to_text()
    assert text.startswith("wf1.")
    assert "=" not in text
    body = text.removeprefix("wf1.")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert document == {
        "url": "https://fl.example.org:8442",
        "secret": INVITATION.secret,
        "ca": CA,
        "root": ROOT,
    }


def test_the_store_never_sees_the_secret() -> None:
    record = mint(INVITATION, ring="lab", uses=3, expires_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert INVITATION.secret not in repr(record)
    assert record.token_id == token_id_of(INVITATION.secret)
    assert record.secret_digest == digest_of(INVITATION.secret)
    assert (record.ring, record.uses_left) == ("lab", 3)
    assert opens(INVITATION.secret, record)
    assert not opens(INVITATION.secret[:-1] + "A", record)


def test_an_invitation_keeps_its_secret_from_logs() -> None:
    assert INVITATION.secret not in repr(INVITATION)


def test_an_invitation_takes_all_of_its_entropy() -> None:
    with pytest.raises(ValueError, match="32 bytes of entropy, not 16"):
        Invitation.make("https://x", CA, ROOT, entropy=b"\x01" * 16)


DAMAGED = {
    "no prefix": INVITATION.to_text()[4:],
    "another version": INVITATION.to_text().replace("wf1.", "wf2."),
    "cut": INVITATION.to_text()[:-5],
    "too long": INVITATION.to_text() + "A" * 4000,
    "empty": "wf1.",
    "a list": "wf1.W10",
    "not base64": "wf1.!!!!",
    "not ascii": "wf1.ü",
    "no TLS": replace(INVITATION, url="http://x").to_text(),
    "short secret": replace(INVITATION, secret="abc").to_text(),
    "no digest": replace(INVITATION, ca="CA").to_text(),
    "no root": replace(INVITATION, root="").to_text(),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_token_is_refused(text: str) -> None:
    with pytest.raises(EnrolmentError, match="join token"):
        parse(text)


@settings(max_examples=100)
@given(
    st.text(max_size=50)
    | st.recursive(st.none() | st.text(max_size=5) | st.integers(), st.lists).map(json.dumps)
)
def test_any_text_is_a_token_or_a_named_error(text: str) -> None:
    for body in (
        text,
        "wf1." + text,
        "wf1." + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode(),
    ):
        with contextlib.suppress(EnrolmentError):
            parse(body)
