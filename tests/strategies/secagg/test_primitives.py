"""The primitives, as `keys` and `masking` use them, against the vectors of their standards.

Vectors: the package cryptography-vectors, which follows the package that is tested here.
"""

from collections.abc import Iterator

import cryptography_vectors
import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.masking import add_masks

Vector = dict[str, str]


def vectors(name: str, *, first: str, section: str = "") -> Iterator[Vector]:
    """Yield the vectors of a file: lines `name = value`, each vector begins with `first`.

    Args:
        name: Path of the file in the package.
        first: The name that begins a vector.
        section: Only what stands below this line in brackets; the headings' own values are given
            with each vector.
    """
    found: Vector = {}
    heading: Vector = {}
    is_wanted = not section
    with cryptography_vectors.open_vector_file(name, "r") as file:
        for line in map(str.strip, file):
            if line.startswith("["):
                is_wanted = section in ("", line)
                left, _, right = line.strip("[]").partition(" = ")
                heading = {**heading, left: right}
            elif line.startswith("FAIL"):
                found["FAIL"] = ""
            elif " = " in line or line.endswith(" ="):
                left, _, right = line.partition("=")
                if left.strip() == first:
                    if found:
                        yield found
                    found = {}
                if is_wanted:
                    found = {**heading, **found, left.strip(): right.strip()}
    if found:
        yield found


def of(vector: Vector, name: str) -> bytes:
    return bytes.fromhex(vector[name])


# X25519, RFC 7748.


def test_pairs_agree_as_rfc_7748_says() -> None:
    found = list(vectors("asymmetric/X25519/rfc7748.txt", first="COUNT"))
    assert len(found) >= 3
    for vector in found:
        shared = keys.derive(of(vector, "OUTPUT_U"), bytes(32), b"mask")
        agreed = keys.agree(of(vector, "INPUT_SCALAR"), of(vector, "INPUT_U"), bytes(32), b"mask")
        assert agreed == shared


# HKDF, RFC 5869.


def test_keys_are_derived_as_rfc_5869_says() -> None:
    found = list(vectors("KDF/rfc-5869-HKDF-SHA256.txt", first="COUNT"))
    assert len(found) == 3
    for vector in found:
        kdf = HKDF(hashes.SHA256(), int(vector["L"]), of(vector, "salt"), of(vector, "info"))
        assert kdf.derive(of(vector, "IKM")) == of(vector, "OKM")


# AES, NIST SP 800-38A and 800-38D, RFC 3686.


def counter_mode(key: bytes, counter: bytes, plain: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    return encryptor.update(plain) + encryptor.finalize()


SP_800_38A_KEY = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
SP_800_38A_PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
SP_800_38A_CTR = (
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)
SP_800_38A_ECB = (
    "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870"
    "b6ed21b99ca6f4f9f153e7b1beafed1d23304b7a39f9f3ff067d8d8f9e24ecc7"
)


def test_counter_mode_is_that_of_sp_800_38a() -> None:
    # appendix F.5.5
    key, plain = bytes.fromhex(SP_800_38A_KEY), bytes.fromhex(SP_800_38A_PLAIN)
    assert counter_mode(key, bytes(range(0xF0, 0x100)), plain).hex() == SP_800_38A_CTR
    found = list(vectors("ciphers/AES/CTR/aes-256-ctr.txt", first="COUNT"))
    assert len(found) == 3
    for vector in found:
        sealed = counter_mode(of(vector, "KEY"), of(vector, "IV"), of(vector, "PLAINTEXT"))
        assert sealed == of(vector, "CIPHERTEXT")


def ecb(key: bytes, blocks: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)


ECB_FILES = ("GFSbox", "KeySbox", "VarKey", "VarTxt", "MMT")


def block_vectors() -> Iterator[Vector]:
    """Yield the vectors of AES-256 on single blocks, and those of decryption as well."""
    for name in ECB_FILES:
        yield from vectors(f"ciphers/AES/ECB/ECB{name}256.rsp", first="COUNT")


def test_a_block_is_encrypted_as_nist_says() -> None:
    # SP 800-38A, appendix F.1.5
    key, plain = bytes.fromhex(SP_800_38A_KEY), bytes.fromhex(SP_800_38A_PLAIN)
    assert ecb(key, plain).hex() == SP_800_38A_ECB
    count = 0
    for vector in block_vectors():
        count += 1
        assert ecb(of(vector, "KEY"), of(vector, "PLAINTEXT")) == of(vector, "CIPHERTEXT")
    assert count > 500


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_mask_is_made_of_the_blocks_of_counters_from_two_on(
    dtype: type[np.uint16] | type[np.uint32],
) -> None:
    for key in {of(vector, "KEY") for vector in block_vectors()}:
        counters = b"".join(bytes(12) + count.to_bytes(4, "big") for count in range(2, 8))
        residues = np.zeros(6 * 16 // dtype().itemsize, dtype)
        add_masks(residues, [key], [])
        assert residues.astype(residues.dtype.newbyteorder("<")).tobytes() == ecb(key, counters)


def test_shares_are_sealed_as_sp_800_38d_says() -> None:
    count = 0
    for vector in vectors("ciphers/AES/GCM/gcmEncryptExtIV256.rsp", first="Count"):
        if (vector["IVlen"], vector["Taglen"]) == ("96", "128"):
            count += 1
            nonce = of(vector, "IV")
            sealed = keys.seal(of(vector, "Key"), nonce, of(vector, "PT"), of(vector, "AAD"))
            assert sealed == nonce + of(vector, "CT") + of(vector, "Tag")
    assert count > 300


def test_shares_are_opened_as_sp_800_38d_says() -> None:
    opened = refused = 0
    for vector in vectors("ciphers/AES/GCM/gcmDecrypt256.rsp", first="Count"):
        if (vector["IVlen"], vector["Taglen"]) != ("96", "128"):
            continue
        sealed = of(vector, "IV") + of(vector, "CT") + of(vector, "Tag")
        if "FAIL" in vector:
            refused += 1
            with pytest.raises(ProtocolError, match="forged"):
                keys.unseal(of(vector, "Key"), sealed, of(vector, "AAD"))
        else:
            opened += 1
            assert keys.unseal(of(vector, "Key"), sealed, of(vector, "AAD")) == of(vector, "PT")
    assert min(opened, refused) > 100


# Signatures: ECDSA P-256 (FIPS 186-3) under devices' keys, Ed25519 (RFC 8032) under releases.


def test_devices_signatures_are_verified_as_fips_186_says() -> None:
    good = bad = 0
    name = "asymmetric/ECDSA/FIPS_186-3/SigVer.rsp"
    for vector in vectors(name, first="Msg", section="[P-256,SHA-256]"):
        x, y, r, s = (int(vector[each], 16) for each in ("Qx", "Qy", "R", "S"))
        signature = encode_dss_signature(r, s)
        try:
            key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            key.verify(signature, of(vector, "Msg"), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            bad += 1
            assert vector["Result"].startswith("F")
        else:
            good += 1
            assert vector["Result"].startswith("P")
    assert min(good, bad) >= 1
    assert good + bad == 15


def test_releases_are_signed_as_rfc_8032_says() -> None:
    count = 0
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        for line in file:
            secret, public, message, signed = map(bytes.fromhex, line.strip().split(":")[:4])
            key = Ed25519PrivateKey.from_private_bytes(secret[:32])
            assert key.public_key().public_bytes_raw() == public
            assert key.sign(message) + message == signed
            count += 1
    assert count == 1024
