"""The keys that releases are signed with: one file per key, PKCS #8 in PEM, mode 0600.

They are Ed25519; ECDSA on P-256 is for what others must verify (`model_sig`).

Everything that signs takes securesystemslib's `Signer`, so that a key may move into an HSM or a
KMS (`Signer.from_priv_key_uri`) without a change anywhere else. Nothing here prints or returns
private bytes; a passphrase encrypts the file at rest.

Roles follow the TUF specification (section 2.1). `root` and `targets` stay offline;
`models/approved` is k of n offline keys; `models/auto` belongs to the release signer alone;
`snapshot`, `timestamp` and `rollout` are online and can make no release.
"""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer

from wildflower.ota.errors import SigningError
from wildflower.ota.release.files import write_durably

AUTO: Final = "models/auto"
APPROVED: Final = "models/approved"
ROLLOUT: Final = "rollout"
DELEGATED: Final = (AUTO, APPROVED, ROLLOUT)
ROLES: Final = ("root", "targets", *DELEGATED, "snapshot", "timestamp")
"""Every role of our repositories."""
SOFTWARE: Final = "software"
"""A role that a repository begins without (`ota.release.software_role`)."""

MAX_KEY_FILE: Final = 10_000  # bytes; an encrypted Ed25519 key takes about 300


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who signs for a role, and how many of them must.

    Attributes:
        signers: At least `threshold` signers of different keys.
        threshold: Signatures a client demands, at least 1.
    """

    signers: tuple[Signer, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        """Refuse what no client could ever verify."""
        different = len({signer.public_key.keyid for signer in self.signers})
        if not 1 <= self.threshold <= different:
            raise ValueError(f"threshold {self.threshold} of {different} different keys")

    @property
    def public_keys(self) -> tuple[Key, ...]:
        """The public keys, in the order of the signers."""
        return tuple(signer.public_key for signer in self.signers)


def generate_key(
    path: Path, *, passphrase: bytes | None = None, ecdsa: bool = False
) -> CryptoSigner:
    """Make a key and write it.

    Args:
        path: Where.
        passphrase: Encrypts it at rest; None for none.
        ecdsa: Whether it is an ECDSA key on P-256, not an Ed25519 key.

    Raises:
        SigningError: The file exists; a key is never overwritten.
    """
    if path.exists():
        raise SigningError(
            f"{path} exists", hint="Name another file, or use the key that is there."
        )
    private = generate_private_key(SECP256R1()) if ecdsa else Ed25519PrivateKey.generate()
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase:
        encryption = BestAvailableEncryption(passphrase)
    write_durably(
        path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600
    )
    return CryptoSigner(private)


def load_key(path: Path, *, passphrase: bytes | None = None, ecdsa: bool = False) -> CryptoSigner:
    """Load a key that `generate_key` wrote.

    Args:
        path: Where it is.
        passphrase: As it was made with.
        ecdsa: Whether it must be an ECDSA key, not an Ed25519 key.

    Raises:
        SigningError: No such file, others may read it, it is a key of another kind, or the
            passphrase is wrong or missing.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SigningError(
                f"{path} can be read by others than its owner", hint=f"chmod 600 {path}"
            )
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE)
    except OSError as error:
        raise SigningError(f"key file {path}: {error.strerror}") from error
    try:
        private = load_pem_private_key(data, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"key file {path} cannot be loaded: it is no private key, or the passphrase is wrong",
            hint="Ed25519 keys in PKCS #8 PEM are used here.",
        ) from error
    kind, name = (EllipticCurvePrivateKey, "ECDSA") if ecdsa else (Ed25519PrivateKey, "Ed25519")
    if not isinstance(private, kind):
        raise SigningError(f"key file {path}: expected {name}, found {type(private).__name__}")
    return CryptoSigner(private)


def key_files(directory: Path, signer_key: Path, *, approved: int = 2) -> Mapping[str, list[Path]]:
    """Return where each role's keys lie.

    Args:
        directory: The server's directory of keys.
        signer_key: The release signer's key, in a directory of its own.
        approved: Number of keys of `models/approved`.
    """
    return {
        "root": [directory / "root.pem"],
        "targets": [directory / "targets.pem"],
        AUTO: [signer_key],
        APPROVED: [directory / f"approved-{number}.pem" for number in range(1, approved + 1)],
        ROLLOUT: [directory / "rollout.pem"],
        "snapshot": [directory / "snapshot.pem"],
        "timestamp": [directory / "timestamp.pem"],
    }


def generate_roles(
    directory: Path, signer_key: Path, *, approved: int = 2, approved_threshold: int = 2
) -> Mapping[str, RoleKeys]:
    """Make the keys of every role.

    Raises:
        SigningError: One of the files exists.
        ValueError: The threshold exceeds the number of keys.
    """
    if not 1 <= approved_threshold <= approved:
        raise ValueError(f"threshold {approved_threshold} of {approved} approvers")
    made: dict[str, RoleKeys] = {}
    for role, paths in key_files(directory, signer_key, approved=approved).items():
        threshold = approved_threshold if role == APPROVED else 1
        made[role] = RoleKeys(tuple(generate_key(path) for path in paths), threshold)
    return made


def load_keys(paths: Sequence[Path]) -> tuple[CryptoSigner, ...]:
    """Load several keys without passphrases.

    Raises:
        SigningError: See `load_key`.
    """
    return tuple(load_key(path) for path in paths)
