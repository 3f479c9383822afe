"""The keys in a directory, wherever their private halves are.

    approved-1.pub.json     the public half, and a URI that says where the private one is
    approved-1.pem          a private half in a file (PKCS #8, encrypted if it has a passphrase)

URIs are securesystemslib's: `hsm:2?label=NAME` for PKCS #11, `awskms:`, `gcpkms:`, `azurekms:`,
`hv:` for key services; they need its extras. `file:NAME` is a file beside the description. A
`.pem` without a description is a key too. A `.pub.json` holds nothing secret and may travel.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from securesystemslib.exceptions import Error, UnsupportedLibraryError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import (
    KEY_TYPE_ECDSA,
    SIGNER_FOR_URI_SCHEME,
    HSMSigner,
    Key,
    Signer,
)

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.keys import generate_key, load_key

KIND: Final = "wildflower.public-key"
SUFFIX: Final = ".pub.json"
FILE_SCHEME: Final = "file:"
PASSPHRASE: Final = "passphrase"  # noqa: S105  what a file's secret is called, not a secret
LONGEST_URI: Final = 500  # characters

Secrets = Callable[[str], str]
"""Returns the secret of a name: "passphrase" for a file, "pin" for a token; "" for none."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key as its description tells it.

    Attributes:
        public: The public half.
        uri: Where the private half is.
    """

    public: Key
    uri: str

    def to_bytes(self) -> bytes:
        """Return the canonical bytes of the description."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "uri": self.uri,
                "keyid": self.public.keyid,
                "key": self.public.to_dict(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a description from outside.

        Raises:
            FormatError: It is none, or its id is not that of its key.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            key = Key.from_dict(str(document["keyid"]), dict(document["key"]))
            entry = cls(key, str(document["uri"]))
            own = _key_id(key)
        except (KeyError, TypeError, ValueError, AttributeError, Error) as error:
            raise FormatError(f"public key: {error!r}") from error
        if own != key.keyid:
            raise FormatError(f"public key: found id {key.keyid[:12]}, expected {own[:12]}")
        if len(entry.uri) > LONGEST_URI or ":" not in entry.uri or entry.to_bytes() != data:
            raise FormatError("public key: a URI or fields that it should not have")
        return entry


def read_entry(path: Path) -> KeyEntry:
    """Read a description.

    Raises:
        FormatError: The file is none.
        SigningError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return KeyEntry.from_bytes(file.read(canonical.MAX_DOCUMENT + 1))
    except OSError as error:
        raise SigningError(f"key description {path}: {error.strerror}") from error


def make_key(
    directory: Path, name: str, *, passphrase: bytes | None, ecdsa: bool = False
) -> KeyEntry:
    """Make a key in a file and its description.

    Args:
        directory: Where both shall lie.
        name: Their name there.
        passphrase: Encrypts the private half; None for none.
        ecdsa: Whether it is ECDSA on P-256, not Ed25519.

    Raises:
        SigningError: One of the files exists.
    """
    signer = generate_key(directory / f"{name}.pem", passphrase=passphrase, ecdsa=ecdsa)
    return _describe(directory, name, KeyEntry(signer.public_key, f"{FILE_SCHEME}{name}.pem"))


def import_token(directory: Path, name: str, uri: str, secrets: Secrets) -> KeyEntry:
    """Describe a key that a PKCS #11 token holds; its private half never leaves the token.

    Args:
        directory: Where the description shall lie.
        name: Its name there.
        uri: "hsm:" or "hsm:KEYID" or "hsm:KEYID?label=TOKEN"; `PYKCS11LIB` names the module.
        secrets: Asked for the token's "pin" if the public half cannot be read without.

    Raises:
        SigningError: There is no such token or key, or the library for it is missing.
    """
    number, _, query = uri.removeprefix("hsm:").partition("?label=")
    try:
        found, key = HSMSigner.import_(int(number) if number else None, query or None, secrets)
    except (UnsupportedLibraryError, ValueError, OSError, RuntimeError) as error:
        why = str(error) or type(error).__name__  # a token's own errors are RuntimeErrors, wordless
        raise SigningError(f"{uri}: {why}", hint=HSM_HINT) from error
    return _describe(directory, name, KeyEntry(key, found))


def find_signers(directory: Path, wanted: Collection[str], secrets: Secrets) -> list[Signer]:
    """Return signers for those keys of a directory that are wanted.

    Args:
        directory: Holds descriptions and key files.
        wanted: Ids of keys; private halves of others are not touched.
        secrets: Asked for passphrases and PINs, when they are needed.

    Raises:
        FormatError: A description is malformed.
        SigningError: A private half cannot be used.
    """
    found: dict[str, Signer] = {}
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        entry = read_entry(path)
        if entry.public.keyid in wanted:
            found[entry.public.keyid] = open_key(entry, directory, secrets)
    for signer in _undescribed(directory, secrets):
        if signer.public_key.keyid in wanted:
            found.setdefault(signer.public_key.keyid, signer)
    return list(found.values())


def open_key(entry: KeyEntry, directory: Path, secrets: Secrets) -> Signer:
    """Return a signer for a key.

    Raises:
        SigningError: The private half cannot be used, or is another key's.
    """
    if entry.uri.startswith(FILE_SCHEME):
        path = directory / entry.uri.removeprefix(FILE_SCHEME)
        signer: Signer = load_key(
            path,
            passphrase=secrets(PASSPHRASE).encode() or None,
            ecdsa=entry.public.keytype == KEY_TYPE_ECDSA,
        )
    else:
        signer = _from_uri(entry, secrets)
    if signer.public_key.keyid != entry.public.keyid:
        raise SigningError(f"{entry.uri} is another key than its description says")
    return signer


def _from_uri(entry: KeyEntry, secrets: Secrets) -> Signer:
    scheme = entry.uri.partition(":")[0]
    if scheme not in SIGNER_FOR_URI_SCHEME:
        known = ", ".join(sorted(SIGNER_FOR_URI_SCHEME))
        raise SigningError(f"no signer for {scheme}: URIs", hint=f"Known: file, {known}.")
    try:
        return Signer.from_priv_key_uri(entry.uri, entry.public, secrets)
    except (UnsupportedLibraryError, Error, ValueError, OSError, ImportError) as error:
        raise SigningError(
            f"{entry.uri}: {error}", hint=f"Is securesystemslib's extra for {scheme} installed?"
        ) from error


def _undescribed(directory: Path, secrets: Secrets) -> Iterator[Signer]:
    for path in sorted(directory.glob("*.pem")):
        if not path.with_name(f"{path.stem}{SUFFIX}").exists():
            yield load_key(path, passphrase=secrets(PASSPHRASE).encode() or None)


def _describe(directory: Path, name: str, entry: KeyEntry) -> KeyEntry:
    path = directory / f"{name}{SUFFIX}"
    if path.exists():
        raise SigningError(f"{path} exists", hint="Name another, or use the key that is there.")
    write_durably(path, entry.to_bytes())
    return entry


def _key_id(key: Key) -> str:
    """Return the id that securesystemslib gives a key: the digest of what it consists of.

    A key under an id of its own choosing would be two keys to whoever counts a threshold.
    """
    parts = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    return canonical.digest(str(encode_canonical(parts)).encode())


HSM_HINT: Final = (
    "PYKCS11LIB must name the token's PKCS #11 module, and python-pkcs11 must be installed; "
    "keys are ECDSA on P-256 or P-384."
)
