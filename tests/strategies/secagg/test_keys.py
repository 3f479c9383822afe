"""Whose keys they are: certificates, signatures, and standard derivations."""

import hmac
import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding as Form
from hypothesis import given
from hypothesis import strategies as st
from tests.secagg_fakes import NOW, VALID, fleet, issue, make_authority, make_device, make_params

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.client import advertise
from wildflower.strategies.secagg.messages import Advertisement

AUTHORITY, DEVICES = fleet()
CA = AUTHORITY.certificate
DEVICE, OTHER = DEVICES[:2]
PARAMS = make_params(4)


def advertised() -> Advertisement:
    return advertise(PARAMS, DEVICE, entropy=bytes(32))[1]


def test_a_device_is_known_by_its_certificate() -> None:
    device, key = keys.certified_key(DEVICE.certificate_der, ca=CA, now=NOW)
    assert device == DEVICE.device_id
    assert key == DEVICE.key.public_key()
    keys.verify(PARAMS, advertised(), ca=CA, now=NOW)


def test_the_pinned_ca_is_read_from_its_file() -> None:
    assert keys.load_ca(CA.public_bytes(Form.PEM)) == CA


def test_a_device_is_no_ca() -> None:
    pem = issue(AUTHORITY.key, DEVICE.key, DEVICE.device_id).public_bytes(Form.PEM)
    with pytest.raises(ValueError, match="not the certificate of a P-256 CA"):
        keys.load_ca(pem)


@pytest.mark.parametrize("now", [VALID[0] - timedelta(1), VALID[1] + timedelta(1)], ids=str)
def test_a_certificate_counts_only_while_it_is_valid(now: datetime) -> None:
    with pytest.raises(ProtocolError, match="is valid from") as caught:
        keys.certified_key(DEVICE.certificate_der, ca=CA, now=now)
    assert "clock" in caught.value.hint


def test_a_certificate_of_another_ca_is_refused() -> None:
    stranger = make_device(make_authority())
    with pytest.raises(ProtocolError, match="not signed by the pinned CA"):
        keys.certified_key(stranger.certificate_der, ca=CA, now=NOW)


def test_a_certificate_of_another_issuer_is_refused() -> None:
    # Signed by a key of its own name: the issuer's name is not the CA's.
    key = ec.generate_private_key(ec.SECP256R1())
    own = issue(key, key, "Wildflower test CA", is_ca=True)
    renamed = issue(key, key, "Another CA", is_ca=True)
    with pytest.raises(ProtocolError, match="not a certificate of the pinned CA"):
        keys.certified_key(own.public_bytes(Form.DER), ca=renamed, now=NOW)


def test_an_expired_ca_vouches_for_nobody() -> None:
    old = make_authority((VALID[0], NOW - timedelta(hours=1)))
    device = make_device(old)
    with pytest.raises(ProtocolError, match="is valid from"):
        keys.certified_key(device.certificate_der, ca=old.certificate, now=NOW)


def test_only_device_keys_count() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = keys.device_id_of(key.public_key())
    wide = ec.generate_private_key(ec.SECP384R1())
    edwards = ed25519.Ed25519PrivateKey.generate()
    for certificate in (
        issue(AUTHORITY.key, key, name, is_ca=True),
        issue(AUTHORITY.key, wide, keys.device_id_of(wide.public_key())),
        issue(AUTHORITY.key, edwards, name),
    ):
        with pytest.raises(ProtocolError, match="not that of a device's P-256 key"):
            keys.certified_key(certificate.public_bytes(Form.DER), ca=CA, now=NOW)


def test_constraints_may_be_left_out_of_a_device_certificate() -> None:
    device = make_device(AUTHORITY, is_ca=None)
    assert keys.certified_key(device.certificate_der, ca=CA, now=NOW)[0] == device.device_id


def test_a_name_that_is_not_the_keys_own_is_refused() -> None:
    certificate = issue(AUTHORITY.key, DEVICE.key, OTHER.device_id)
    with pytest.raises(ProtocolError, match="not the id of its own key"):
        keys.certified_key(certificate.public_bytes(Form.DER), ca=CA, now=NOW)


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"certificate", DEVICE.certificate_der[:-1]])
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a certificate"):
        keys.certified_key(data, ca=CA, now=NOW)


def test_no_damaged_certificate_gets_through() -> None:
    der = DEVICE.certificate_der
    for place in range(0, len(der), 3):
        damaged = der[:place] + bytes([der[place] ^ 1]) + der[place + 1 :]
        with pytest.raises(ProtocolError):
            keys.certified_key(damaged, ca=CA, now=NOW)


FLIPPED = bytes([1]) + bytes(31)


@pytest.mark.parametrize(
    "changes",
    [
        {"sealing_key": FLIPPED},
        {"masking_key": FLIPPED},
        {"seed_digest": FLIPPED},
        {"signature": b"\x30\x00"},
        {"signature": OTHER.sign(b"something else")},
    ],
    ids=["sealing key", "masking key", "seed", "no signature", "signature of something else"],
)
def test_keys_that_were_exchanged_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=f"keys of {DEVICE.device_id} are not signed") as caught:
        keys.verify(PARAMS, replace(advertised(), **changes), ca=CA, now=NOW)
    assert "aggregator" in caught.value.hint


def test_a_signature_counts_for_its_own_parameters_only() -> None:
    weaker = make_params(5, threshold=4)
    with pytest.raises(ProtocolError, match="not signed by it for this session"):
        keys.verify(weaker, advertised(), ca=CA, now=NOW)


def test_a_signature_counts_for_its_own_session_only() -> None:
    later = make_params(4, session=b"s" * 32)
    with pytest.raises(ProtocolError, match="another session"):
        keys.verify(later, advertised(), ca=CA, now=NOW)
    replayed = replace(advertised(), session=b"s" * 32)
    with pytest.raises(ProtocolError, match="not signed by it for this session"):
        keys.verify(later, replayed, ca=CA, now=NOW)


def test_a_device_cannot_speak_for_another() -> None:
    with pytest.raises(ProtocolError, match="shows the certificate of"):
        keys.verify(PARAMS, replace(advertised(), device=OTHER.device_id), ca=CA, now=NOW)


def test_what_is_signed_is_of_one_length_and_begins_with_its_purpose() -> None:
    signed = keys.signed_bytes(PARAMS, advertised())
    assert signed.startswith(b"wildflower/secagg/1/advertisement\0")
    assert len(signed) == 34 + 32 + 32 + 32 + 3 * 32


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 as RFC 5869 writes it, section 2."""
    key = hmac.digest(salt, secret, "sha256")
    found = block = b""
    for counter in itertools.count(1):
        if len(found) >= length:
            break
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        found += block
    return found[:length]


def test_keys_are_derived_as_rfc_5869_says() -> None:
    # appendix A.1
    known = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert known.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    expected = hkdf(b"secret", b"s" * 32, b"wildflower/secagg/1/mask", 32)
    assert keys.derive(b"secret", b"s" * 32, b"mask") == expected


def test_pairs_agree_as_rfc_7748_says() -> None:
    # section 6.1
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert keys.public_key(alice).hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    expected = keys.derive(shared, bytes(32), b"mask")
    assert keys.pair_mask_keys(alice, bytes(32))(keys.public_key(bob)) == expected
    assert keys.pair_mask_keys(bob, bytes(32))(keys.public_key(alice)) == expected


FIELD = 2**255 - 19
# Of some coordinates there are two encodings, and the highest bit does not count.
ORDER_8 = (
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
)
LOW_ORDER = [
    *(value.to_bytes(32, "little") for value in (0, 1, FIELD - 1, FIELD, FIELD + 1)),
    *(bytes.fromhex(digits) for digits in ORDER_8),
]


@pytest.mark.parametrize("top", [0, 0x80])
@pytest.mark.parametrize("public", LOW_ORDER, ids=bytes.hex)
def test_keys_of_low_order_are_refused(public: bytes, top: int) -> None:
    weak = public[:31] + bytes([public[31] | top])
    with pytest.raises(ProtocolError, match="low order"):
        keys.check_order(weak)
    with pytest.raises(ProtocolError, match="low order"):
        keys.agree(bytes(31) + b"\x40", weak, bytes(32), b"mask")


@given(st.binary(min_size=32, max_size=32))
def test_no_other_key_is_refused(private: bytes) -> None:
    keys.check_order(keys.public_key(private))


def test_derived_keys_differ_by_session_and_purpose() -> None:
    found = {
        keys.derive(secret, session, purpose)
        for secret in (bytes(32), b"a" * 32)
        for session in (bytes(32), b"s" * 32)
        for purpose in (b"mask", b"seal", b"self")
    }
    assert len(found) == 12


def test_what_is_sealed_opens_only_on_its_own_route() -> None:
    key, nonce = bytes(32), bytes(12)
    way = keys.route(bytes(32), DEVICE.device_id, OTHER.device_id)
    back = keys.route(bytes(32), OTHER.device_id, DEVICE.device_id)
    sealed = keys.seal(key, nonce, b"share", way)
    assert keys.unseal(key, sealed, way) == b"share"
    for wrong in ((key, sealed, back), (b"k" * 32, sealed, way), (key, sealed[:-1] + b"\0", way)):
        with pytest.raises(ProtocolError, match="forged"):
            keys.unseal(*wrong)
