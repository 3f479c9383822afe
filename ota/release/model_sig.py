"""A `model.sig` that OpenSSF model-signing verifies, for whoever does not know our metadata.

    model_signing verify key SLOT --signature model.sig --public_key key.pem

Devices do not read it: they trust the manifest. It is made from the manifest alone, whose digests
are the ones that model-signing computes, and signed by any ECDSA key of a keyring, a token's too.
Nothing of model-signing is needed to make it; a test verifies with the real one.

Source: model-signing 1.1, predicate https://model_signing/signature/v1.0; sigstore bundle 0.3.
"""

import base64
import hashlib
import json
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import KEY_TYPE_ECDSA, Key, Signer

from wildflower.ota.errors import SigningError
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.statement import PAYLOAD_TYPE, STATEMENT

FILE: Final = "model.sig"
PREDICATE: Final = "https://model_signing/signature/v1.0"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"


def model_signature(release: Release, signer: Signer) -> bytes:
    """Return the `model.sig` of the slot that a release makes.

    Args:
        release: Its files are what is signed; the slot holds nothing else.
        signer: An ECDSA key.

    Raises:
        SigningError: The key is of another type; model-signing knows ECDSA only.
    """
    envelope = Envelope(_statement(release), PAYLOAD_TYPE, {})
    public = public_pem(signer.public_key)
    signature = envelope.sign(signer)
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode(),
                    "keyid": "",
                }
            ],
        },
    }
    return json.dumps(bundle, indent=1).encode()


def public_pem(key: Key) -> bytes:
    """Return the public half of an ECDSA key in PEM, as `--public_key` takes it.

    Raises:
        SigningError: The key is of another type.
    """
    if key.keytype != KEY_TYPE_ECDSA:
        raise SigningError(
            f"key {key.keyid[:12]} is {key.keytype}; a model.sig needs an ECDSA key",
            hint="Make one: wildflower keys init DIR --name NAME --ecdsa",
        )
    loaded = load_pem_public_key(str(key.keyval["public"]).encode())
    return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _statement(release: Release) -> bytes:
    """Return the in-toto statement; the root digest is over the files' digests, by name."""
    files = sorted(release.files, key=lambda entry: entry.name)
    root = hashlib.sha256(b"".join(bytes.fromhex(entry.digest) for entry in files))
    resources = [
        {"name": entry.name, "algorithm": "sha256", "digest": entry.digest} for entry in files
    ]
    document: dict[str, Any] = {
        "_type": STATEMENT,
        "subject": [{"name": release.target_group, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [FILE],
            },
            "resources": resources,
        },
    }
    return json.dumps(document).encode()
