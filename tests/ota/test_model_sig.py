"""A model.sig: its form, its signature, and the verdict of the real model-signing."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Signature
from tests.ota_fakes import file_entry, release_of

from wildflower.ota.errors import SigningError
from wildflower.ota.release.model_sig import FILE, model_signature, public_pem

FILES = {"model.onnx": b"model", "golden.npz": b"golden"}
RELEASE = release_of(
    b"model",
    files=(file_entry(b"model"), file_entry(b"golden", role="golden", name="golden.npz")),
)
SIGNER = CryptoSigner.generate_ecdsa()


def test_the_root_digest_is_over_the_files_in_the_order_of_their_names() -> None:
    bundle = json.loads(model_signature(RELEASE, SIGNER))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    digests = [hashlib.sha256(FILES[name]).digest() for name in sorted(FILES)]
    [subject] = statement["subject"]
    assert subject["digest"]["sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert [one["name"] for one in statement["predicate"]["resources"]] == sorted(FILES)


def test_the_signature_verifies_with_the_public_key() -> None:
    found = json.loads(model_signature(RELEASE, SIGNER))["dsseEnvelope"]
    payload = base64.b64decode(found["payload"])
    keyid = SIGNER.public_key.keyid
    signature = Signature(keyid, base64.b64decode(found["signatures"][0]["sig"]).hex())
    envelope = Envelope(payload, found["payloadType"], {keyid: signature})
    assert envelope.verify([SIGNER.public_key], 1)


def test_a_key_that_model_signing_does_not_know_is_refused_with_the_remedy() -> None:
    with pytest.raises(SigningError, match=r"ed25519; a model\.sig needs an ECDSA key") as refused:
        model_signature(RELEASE, CryptoSigner.generate_ed25519())
    assert "--ecdsa" in refused.value.hint


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    place = tmp_path / "slot"
    place.mkdir()
    for name, data in FILES.items():
        (place / name).write_bytes(data)
    (place / FILE).write_bytes(model_signature(RELEASE, SIGNER))
    (tmp_path / "key.pem").write_bytes(public_pem(SIGNER.public_key))
    return place


def verdict(slot: Path) -> int:
    """Ask OpenSSF's own program."""
    program = shutil.which("model_signing")
    if program is None:
        pytest.skip("no model_signing on the path: pip install model-signing pyOpenSSL")
    told = ["--signature", str(slot / FILE), "--public_key", str(slot.parent / "key.pem")]
    ended = subprocess.run(
        [program, "verify", "key", *told, str(slot)],
        check=False,
        capture_output=True,
        env=os.environ,
    )
    return ended.returncode


def test_model_signing_verifies_it(slot: Path) -> None:
    assert verdict(slot) == 0


@pytest.mark.parametrize("name", sorted(FILES))
def test_model_signing_refuses_a_changed_file(slot: Path, name: str) -> None:
    (slot / name).write_bytes(b"changed")
    assert verdict(slot) != 0


def test_model_signing_refuses_another_key(slot: Path) -> None:
    (slot.parent / "key.pem").write_bytes(public_pem(CryptoSigner.generate_ecdsa().public_key))
    assert verdict(slot) != 0
