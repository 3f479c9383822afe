"""Whose seeds they are, and to whom they are sealed: what all sides of a one-shot session check.

A helper is known by the digest of its identity, a P-256 key that signs the card with its X25519
key. A device signs what it seals with the identity that the enrolment CA vouches for, over the
session and the digest of its parameters, which name the helpers: what it sealed for one session,
one encoding or one set of helpers fits no other.

    seal key = HKDF-SHA256(X25519(ephemeral, sealing key), salt = session)
    route    = session, device, digest of the parameters, ephemeral key, helper    (bound by GCM)

An ephemeral key serves one device in one session, so each seal key encrypts one seed.

Not here: who may be a helper (`one_shot`: the device's own list), and how many devices a sum needs
(`helper`). The CA is the operator's: whoever can enrol devices at will can fill a cohort with his
own, against which no secure sum protects.

Sources: RFC 7748, RFC 5869, NIST SP 800-38D.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.one_shot_messages import (
    HelperCard,
    OneShotParams,
    SealedSeeds,
)

P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""What the SubjectPublicKeyInfo of every P-256 key begins with; an uncompressed point follows."""

_SEAL: Final = b"one-shot/seal"


def make_card(
    identity: bytes, sealing_key: bytes, min_cohort: int, sign: Callable[[bytes], bytes]
) -> HelperCard:
    """Return a helper's signed card.

    Args:
        identity: Its public P-256 key, SubjectPublicKeyInfo in DER.
        sealing_key: Its X25519 public key.
        min_cohort: Fewest devices whose masks it adds up.
        sign: Signs with the identity's key: ECDSA over SHA-256, DER.
    """
    signature = sign(card_bytes(identity, sealing_key, min_cohort))
    return HelperCard(identity, sealing_key, min_cohort, signature)


def card_bytes(identity: bytes, sealing_key: bytes, min_cohort: int) -> bytes:
    """Return what a helper signs: all parts have one length."""
    title = b"wildflower/one-shot/1/helper\0"
    return title + identity + sealing_key + min_cohort.to_bytes(4, "big")


def check_card(card: HelperCard) -> None:
    """Refuse a card that its helper did not sign, or whose key protects nothing.

    Raises:
        ProtocolError: Another key, another signature, a key of low order.
    """
    signed = card_bytes(card.identity, card.sealing_key, card.min_cohort)
    if not card.identity.startswith(P256):
        raise ProtocolError(f"helper {card.digest[:12]}: its identity is no P-256 key")
    try:
        point = card.identity[len(P256) :]
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(card.signature, signed, ec.ECDSA(hashes.SHA256()))
    except ValueError as error:
        raise ProtocolError(f"helper {card.digest[:12]}: {error}") from error
    except InvalidSignature as error:
        raise ProtocolError(
            f"the card of helper {card.digest[:12]} is not signed by it",
            hint="Somebody exchanged its key on the way: look at the aggregator.",
        ) from error
    keys.check_order(card.sealing_key)


def signed_bytes(params: OneShotParams, seeds: SealedSeeds) -> bytes:
    """Return what a device signs: all parts but the last have one length."""
    return b"".join(
        (
            b"wildflower/one-shot/1/seeds\0",
            params.session,
            bytes.fromhex(seeds.device),
            params.digest,
            seeds.smallest.to_bytes(4, "big"),
            seeds.ephemeral,
            *seeds.sealed,
        )
    )


def verify_seeds(
    params: OneShotParams, seeds: SealedSeeds, *, ca: x509.Certificate, now: datetime
) -> None:
    """Refuse sealed seeds that their device did not make for this session.

    Raises:
        ProtocolError: A certificate that is not valid, or a signature that does not fit, for
            example because the session, its parameters or a seal were exchanged.
    """
    device, key = keys.certified_key(seeds.certificate, ca=ca, now=now)
    if device != seeds.device:
        raise ProtocolError(f"{seeds.device} shows the certificate of {device}")
    if len(seeds.sealed) != len(params.helpers):
        raise ProtocolError(
            f"{seeds.device} sealed {len(seeds.sealed)} seeds for {len(params.helpers)} helpers"
        )
    try:
        key.verify(seeds.signature, signed_bytes(params, seeds), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise ProtocolError(
            f"the seeds of {seeds.device} are not signed by it for this session",
            hint="Somebody exchanged seals or parameters on the way: look at the aggregator.",
        ) from error


def seal_seed(
    params: OneShotParams, seeds: SealedSeeds, card: HelperCard, seed: bytes, *, private: bytes
) -> bytes:
    """Return a seed sealed to one helper, `SEALED_SEED` bytes.

    Args:
        params: The session's.
        seeds: Of the device; only its id and ephemeral key are looked at.
        card: The helper's.
        seed: 32 bytes.
        private: The private half of the ephemeral key; it seals one seed to each helper.
    """
    key = keys.agree(private, card.sealing_key, params.session, _SEAL)
    # one key, one message: the nonce need not be random
    return keys.seal(key, bytes(keys.NONCE), seed, _route(params, seeds, card))


def open_seed(params: OneShotParams, seeds: SealedSeeds, place: int, *, private: bytes) -> bytes:
    """Return the seed that a device sealed to the helper at a place among the parameters' cards.

    Raises:
        ProtocolError: Forged, altered, or meant for another session or helper.
    """
    try:
        key = keys.agree(private, seeds.ephemeral, params.session, _SEAL)
        return keys.unseal(key, seeds.sealed[place], _route(params, seeds, params.helpers[place]))
    except ProtocolError as error:
        raise ProtocolError(f"the seed of {seeds.device} cannot be opened: {error}") from error


def mask_key(seed: bytes, session: bytes) -> bytes:
    """Return the key of the mask that comes from a seed."""
    return keys.derive(seed, session, b"one-shot/mask")


def _route(params: OneShotParams, seeds: SealedSeeds, card: HelperCard) -> bytes:
    """Return the associated data of a seal."""
    return b"".join(
        (
            params.session,
            bytes.fromhex(seeds.device),
            params.digest,
            seeds.ephemeral,
            bytes.fromhex(card.digest),
        )
    )
