"""Whose keys they are, and what two clients derive from them.

The aggregator hands out the public keys, so it must not be able to put its own in their place.
Each device has an identity: a P-256 key whose certificate the enrolment CA signed. An advertisement
is signed by that key over the session and its parameters, and a client accepts it only if

    certificate -> signed by the CA that was pinned at enrolment, valid now, no CA itself,
                   its common name the SHA-256 of its own key: the device id
    signature   -> by that key, over this session, these parameters, this device id, these keys

so a key of another device, session, threshold or encoding is refused. Revocation is not looked up:
certificates are short-lived, and the aggregator, which would bring the list, is not trusted.

Pairs agree on keys by X25519 and HKDF-SHA256 with the session's id as salt. What a client sends to
one neighbour is sealed with AES-256-GCM, session, sender and receiver as associated data.

Sources: RFC 7748, RFC 5869, RFC 5280, NIST SP 800-38D.
"""

import functools
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg.messages import Advertisement, SessionParams

NONCE: Final = 12  # bytes
_FIELD: Final = 2**255 - 19
_FIELD_BITS: Final = 2**255 - 1  # X25519 ignores the highest bit
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""Points whose order divides 8, by their u coordinate (RFC 7748, section 6.1)."""
_UNREADABLE: Final = (
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Identity(Protocol):
    """A device's identity: its key stays where it is."""

    @property
    def device_id(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo, hex."""
        ...

    @property
    def certificate_der(self) -> bytes:
        """The certificate that the enrolment CA issued."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA P-256 signature over the SHA-256 of `data`, DER."""
        ...


def load_ca(pem: bytes) -> x509.Certificate:
    """Return the enrolment CA's certificate that was pinned at enrolment.

    Raises:
        ValueError: No certificate of a P-256 CA.
    """
    ca = x509.load_pem_x509_certificate(pem)
    if not _is_ca(ca) or not isinstance(ca.public_key(), ec.EllipticCurvePublicKey):
        raise ValueError(f"{ca.subject.rfc4514_string()}: not the certificate of a P-256 CA")
    return ca


def device_id_of(key: ec.EllipticCurvePublicKey) -> str:
    """Return the device id of a public key."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


def certified_key(
    certificate: bytes, *, ca: x509.Certificate, now: datetime
) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return the device id and key that a certificate vouches for.

    Args:
        certificate: DER.
        ca: The pinned enrolment CA.
        now: The present, with a time zone.

    Raises:
        ProtocolError: Not a valid certificate of a device of this CA.
    """
    found, device, key = _issued(certificate, ca)
    for valid in (ca, found):
        if not valid.not_valid_before_utc <= now <= valid.not_valid_after_utc:
            raise ProtocolError(
                f"a certificate is valid from {valid.not_valid_before_utc} to"
                f" {valid.not_valid_after_utc}, now is {now}",
                hint="Check the device's clock, or renew the certificate.",
            )
    return device, key


@functools.lru_cache(maxsize=4096)
def _issued(
    certificate: bytes, ca: x509.Certificate
) -> tuple[x509.Certificate, str, ec.EllipticCurvePublicKey]:
    """Return what a certificate of this CA says; kept, as it is shown again in every round."""
    try:
        found = x509.load_der_x509_certificate(certificate)
        found.verify_directly_issued_by(ca)
        key, is_ca = found.public_key(), _is_ca(found)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except InvalidSignature as error:
        raise ProtocolError("a certificate is not signed by the pinned CA") from error
    except (ValueError, TypeError, *_UNREADABLE) as error:
        raise ProtocolError(f"not a certificate of the pinned CA: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1" or is_ca:
        raise ProtocolError("a certificate is not that of a device's P-256 key")
    device = device_id_of(key)
    if [name.value for name in names] != [device]:
        raise ProtocolError("a certificate's common name is not the id of its own key")
    return found, device, key


def signed_bytes(params: SessionParams, advertisement: Advertisement) -> bytes:
    """Return what a device signs: all parts have one length, so nothing can be shifted."""
    return b"".join(
        (
            b"wildflower/secagg/1/advertisement\0",
            advertisement.session,
            bytes.fromhex(advertisement.device),
            params.digest,
            advertisement.sealing_key,
            advertisement.masking_key,
            advertisement.seed_digest,
        )
    )


def verify(
    params: SessionParams, advertisement: Advertisement, *, ca: x509.Certificate, now: datetime
) -> None:
    """Refuse an advertisement that its device did not make for this session.

    Raises:
        ProtocolError: Another session, a certificate that is not valid, a signature that does not
            fit, for example because the keys, the parameters or the session were exchanged.
    """
    if advertisement.session != params.session:
        raise ProtocolError("an advertisement belongs to another session")
    device, key = certified_key(advertisement.certificate, ca=ca, now=now)
    if device != advertisement.device:
        raise ProtocolError(f"{advertisement.device} shows the certificate of {device}")
    try:
        key.verify(
            advertisement.signature, signed_bytes(params, advertisement), ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature as error:
        raise ProtocolError(
            f"the keys of {advertisement.device} are not signed by it for this session",
            hint="Somebody exchanged keys or parameters on the way: look at the aggregator.",
        ) from error


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seed_digest(session: bytes, seed: bytes) -> bytes:
    """Return the digest by which the seed of a client's own mask is recognised."""
    return hashlib.sha256(b"wildflower/secagg/1/seed\0" + session + seed).digest()


def derive(secret: bytes, session: bytes, purpose: bytes) -> bytes:
    """Return a 32-byte key for one purpose in one session (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), 32, session, b"wildflower/secagg/1/" + purpose).derive(secret)


def agreement(private: bytes, session: bytes, purpose: bytes) -> Callable[[bytes], bytes]:
    """Return what makes the keys that a private key shares with others' public keys.

    It is loaded once, which costs as much as agreeing on one key. What is returned raises
    `ProtocolError` for one of the few public keys that give everybody the same secret.
    """
    loaded = X25519PrivateKey.from_private_bytes(private)

    def shared_with(public: bytes) -> bytes:
        try:
            shared = loaded.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ProtocolError("a public key is of low order") from error
        return derive(shared, session, purpose)

    return shared_with


def agree(private: bytes, public: bytes, session: bytes, purpose: bytes) -> bytes:
    """Return the key that two holders of X25519 keys share for one purpose in one session.

    Raises:
        ProtocolError: The public key is one of the few that give everybody the same secret.
    """
    return agreement(private, session, purpose)(public)


def check_order(public: bytes) -> None:
    """Refuse a public key of low order, whose secrets everybody knows.

    Raises:
        ProtocolError: It is one.
    """
    if (int.from_bytes(public, "little") & _FIELD_BITS) % _FIELD in _LOW_ORDER:
        raise ProtocolError("a public key is of low order")


def self_mask_key(seed: bytes, session: bytes) -> bytes:
    """Return the key of a client's own mask."""
    return derive(seed, session, b"self")


def pair_mask_keys(private: bytes, session: bytes) -> Callable[[bytes], bytes]:
    """Return what makes, of another's public key, the key of the mask that both share."""
    return agreement(private, session, b"mask")


def seal(key: bytes, nonce: bytes, plain: bytes, route: bytes) -> bytes:
    """Return `plain` encrypted and bound to its route, the nonce in front."""
    return nonce + AESGCM(key).encrypt(nonce, plain, route)


def unseal(key: bytes, sealed: bytes, route: bytes) -> bytes:
    """Return what `seal` closed.

    Raises:
        ProtocolError: Forged, altered, or meant for another session, sender or receiver.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], route)
    except InvalidTag as error:
        raise ProtocolError("sealed shares are forged, altered or misdirected") from error


def route(session: bytes, sender: str, receiver: str) -> bytes:
    """Return the associated data of what one client seals for another."""
    return session + bytes.fromhex(sender) + bytes.fromhex(receiver)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca
