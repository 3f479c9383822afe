"""Whose key it is, and whose ciphertexts: forged, altered and foreign ones are refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.he_fakes import IDENTITY, OTHER_IDENTITY, SESSION, encoding

from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.he import trust
from wildflower.strategies.he.messages import Encrypted, Invitation, RunKey, digest_of

NOW = datetime.now(UTC)
EXPIRES = int((NOW + timedelta(days=1)).timestamp())
CA = SimulatedCa()
DEVICE = CA.enrol()


def promise(**changes: Any) -> RunKey:
    values = {
        "min_cohort": 3,
        "expires": EXPIRES,
        "identity": IDENTITY.public_der,
        "sign": IDENTITY.sign,
        **changes,
    }
    return trust.make_key("t1", b"context", **values)


def check(key: RunKey, **changes: Any) -> None:
    trust.check_key(key, **{"holder": IDENTITY.digest, "min_cohort": 3, "now": NOW, **changes})


def test_a_key_of_the_pinned_holder_is_believed() -> None:
    check(promise())
    check(promise(min_cohort=5), min_cohort=5)
    assert promise().holder == IDENTITY.digest


@pytest.mark.parametrize(
    "changes", [{"run": "t2"}, {"context": b"other"}, {"min_cohort": 100}, {"expires": EXPIRES + 1}]
)
def test_a_promise_that_was_altered_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="not signed by it") as caught:
        check(replace(promise(), **changes))
    assert "aggregator" in caught.value.hint


@pytest.mark.parametrize("pinned", [OTHER_IDENTITY.digest, ""], ids=["another", "nobody"])
def test_a_key_of_another_holder_is_refused(pinned: str) -> None:
    with pytest.raises(ProtocolError, match=f"pinned is {pinned[:12] or 'none'}"):
        check(promise(), holder=pinned)


def test_a_key_that_another_holder_signed_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not signed by it"):
        check(promise(sign=OTHER_IDENTITY.sign))


def test_an_expired_key_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expired 3 s ago"):
        check(promise(), now=datetime.fromtimestamp(EXPIRES + 3, UTC))


def test_a_key_for_smaller_sums_is_refused() -> None:
    with pytest.raises(ProtocolError, match="decrypts sums of 3, this device wants 4 or more"):
        check(promise(), min_cohort=4)


def test_an_identity_that_is_no_p256_key_is_refused() -> None:
    tiny = rsa.RSAPublicNumbers(65_537, 2**487 + 12_345).public_key()  # as long as a P-256 key
    der = tiny.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for identity in (bytes(91), der):
        key = promise(identity=identity)
        with pytest.raises(ProtocolError, match="identity"):
            check(key, holder=key.holder)


def invited() -> Invitation:
    return Invitation(SESSION, 1, promise(), encoding())


def encrypted(**changes: Any) -> Encrypted:
    ciphertexts = (b"one", b"two")
    signed = trust.update_bytes(invited(), DEVICE.device_id, digest_of(ciphertexts))
    made = Encrypted(
        SESSION, DEVICE.device_id, ciphertexts, DEVICE.certificate_der, DEVICE.sign(signed)
    )
    return replace(made, **changes)


def verify(update: Encrypted, invitation: Invitation | None = None) -> None:
    trust.verify_update(invitation or invited(), update, ca=CA.certificate, now=NOW)


@pytest.fixture(autouse=True)
def one_invitation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise is signed anew each time; one invitation keeps one digest."""
    made = invited()
    monkeypatch.setattr(f"{__name__}.invited", lambda: made)


def test_an_update_of_its_device_is_believed() -> None:
    verify(encrypted())


OTHER = CA.enrol()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "session": ({"session": bytes(32)}, "another session"),
    "device": ({"device": OTHER.device_id}, "shows the certificate of"),
    "ciphertexts": ({"ciphertexts": (b"two", b"one")}, "not signed by it"),
    "signature": ({"signature": OTHER.sign(b"")}, "not signed by it"),
    "certificate": ({"certificate": b"none"}, "not a certificate"),
    "ca": ({"certificate": SimulatedCa().enrol().certificate_der}, "not signed by the pinned CA"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_update_that_was_altered_is_refused(what: str) -> None:
    changes, why = WRONG[what]
    with pytest.raises(ProtocolError, match=why):
        verify(encrypted(**changes))


def test_an_update_under_another_key_is_refused() -> None:
    other = replace(invited(), key=replace(invited().key, context=b"other"))
    with pytest.raises(ProtocolError, match="not signed by it for this session and key"):
        verify(encrypted(), other)
