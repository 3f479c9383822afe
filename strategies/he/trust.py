"""Whose key it is, and whose ciphertexts: what devices and server check before they believe.

    device   <- a run's key, signed by the key holder that the device's owner pinned
    server   <- ciphertexts, signed by the identity that the enrolment CA vouches for

The aggregator carries the key to the devices, so it must not be able to put its own in its place:
with that it could decrypt every update. The key holder signs the key's digest, for which run it is,
how few updates it decrypts the sum of and when it forgets the key. A device signs its ciphertexts
for one session under one key, so that nobody on the way can alter or exchange them unnoticed.

What no check here can see: how many updates are in a sum that the server has decrypted. Ciphertexts
that were added up do not tell, and the key holder sees nothing else (`server.keyholder`).
"""

import hashlib
from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.he.messages import Encrypted, Invitation, RunKey
from wildflower.strategies.secagg import keys


def make_key(
    run: str,
    context: bytes,
    *,
    min_cohort: int,
    expires: int,
    identity: bytes,
    sign: Callable[[bytes], bytes],
) -> RunKey:
    """Return a run's key with the key holder's promise.

    Args:
        run: What the key is for.
        context: The public key.
        min_cohort: Fewest updates whose sum is decrypted.
        expires: When the secret key is erased, seconds since 1970.
        identity: The key holder's P-256 key, SubjectPublicKeyInfo in DER.
        sign: Signs with that key: ECDSA over SHA-256, DER.
    """
    signature = sign(promise_bytes(run, context, min_cohort, expires))
    return RunKey(run, context, min_cohort, expires, identity, signature)


def promise_bytes(run: str, context: bytes, min_cohort: int, expires: int) -> bytes:
    """Return what a key holder signs: all parts have one length."""
    return b"".join(
        (
            b"wildflower/he/1/run-key\0",
            hashlib.sha256(run.encode()).digest(),
            hashlib.sha256(context).digest(),
            min_cohort.to_bytes(4, "big"),
            expires.to_bytes(8, "big"),
        )
    )


def check_key(key: RunKey, *, holder: str, min_cohort: int, now: datetime) -> None:
    """Refuse a run's key that the pinned key holder did not promise enough about.

    Args:
        key: As it arrived.
        holder: Id of the key holder that was pinned.
        min_cohort: Fewest updates whose sum may be decrypted.
        now: The present, with a time zone.

    Raises:
        ProtocolError: Another key holder's, altered, expired, or for smaller sums.
    """
    if key.holder != holder:
        raise ProtocolError(
            f"the key is that of key holder {key.holder[:12]}, pinned is {holder[:12] or 'none'}",
            hint="The device's owner pins one: `key_holder` in policy.toml.",
        )
    _verify(
        key.identity,
        key.signature,
        promise_bytes(key.run, key.context, key.min_cohort, key.expires),
        f"the key of key holder {holder[:12]} is not signed by it",
    )
    if key.expires <= now.timestamp():
        raise ProtocolError(
            f"the key expired {now.timestamp() - key.expires:.0f} s ago",
            hint="Check the device's clock.",
        )
    if key.min_cohort < min_cohort:
        raise ProtocolError(
            f"the key holder decrypts sums of {key.min_cohort}, this device wants {min_cohort}"
            " or more"
        )


def update_bytes(invitation: Invitation, device: str, ciphertexts: bytes) -> bytes:
    """Return what a device signs: all parts have one length.

    Args:
        invitation: To what it answers.
        device: Its id.
        ciphertexts: Their digest, 32 bytes.
    """
    title = b"wildflower/he/1/update\0"
    return title + invitation.digest + bytes.fromhex(device) + ciphertexts


def verify_update(
    invitation: Invitation, update: Encrypted, *, ca: x509.Certificate, now: datetime
) -> None:
    """Refuse ciphertexts that their device did not make for this session and key.

    Raises:
        ProtocolError: Another session's, a certificate that is not valid, or a signature that does
            not fit, for example because a ciphertext was altered on the way.
    """
    if update.session != invitation.session:
        raise ProtocolError(f"{update.device} answers another session")
    device, key = keys.certified_key(update.certificate, ca=ca, now=now)
    if device != update.device:
        raise ProtocolError(f"{update.device} shows the certificate of {device}")
    signed = update_bytes(invitation, device, update.digest)
    try:
        key.verify(update.signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise ProtocolError(
            f"the ciphertexts of {device} are not signed by it for this session and key",
            hint="They were altered on the way, or made for another key.",
        ) from error


def _verify(identity: bytes, signature: bytes, signed: bytes, refusal: str) -> None:
    try:
        key = load_der_public_key(identity)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ProtocolError("a key holder's identity is no P-256 key")
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ProtocolError(f"a key holder's identity cannot be read: {error}") from error
    except InvalidSignature as error:
        raise ProtocolError(
            refusal, hint="Somebody exchanged it on the way: look at the aggregator."
        ) from error
