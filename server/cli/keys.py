"""`wildflower keys`: who may sign for what, and how that changes.

    wildflower keys init vault --name root-2                    # offline: a new key, encrypted
    wildflower keys rotate root --add root-2.pub.json --remove 3f9a0c --out change.json --dir server
    wildflower sign --bundle change.json --keys vault           # offline, once per machine
    wildflower keys publish change.json --dir server

Only `publish` changes anything that devices see. Public halves (`*.pub.json`) and bundles travel;
private halves stay where they were made.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from wildflower.ota.canonical import MAX_DOCUMENT
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release import audit
from wildflower.ota.release.bundle import MAX_BUNDLE, Bundle
from wildflower.ota.release.ceremony import Authority, Change, read_root
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.keyring import import_token, make_key, open_key, read_entry
from wildflower.ota.release.manifest import Release
from wildflower.ota.release.signing import expiry
from wildflower.ota.release.software_role import propose_role
from wildflower.server.cli.remote import DIRECTORY_VARIABLE
from wildflower.server.key_ceremony import Ceremony

app = typer.Typer(no_args_is_help=True, help="Make, rotate and revoke signing keys.")

PASSPHRASE_VARIABLE: Final = "WILDFLOWER_KEY_PASSPHRASE"  # noqa: S105  the variable's name
PIN_VARIABLE: Final = "WILDFLOWER_KEY_PIN"
MAX_TRAIL: Final = 100_000_000  # bytes; a quarter of a million signatures

Server = Annotated[
    Path, typer.Option("--dir", envvar=DIRECTORY_VARIABLE, help="The server's directory.")
]
Passphrase = Annotated[
    str, typer.Option(envvar=PASSPHRASE_VARIABLE, help="Of key files, if they have one.")
]
Pin = Annotated[str, typer.Option(envvar=PIN_VARIABLE, help="Of a PKCS #11 token.")]
Out = Annotated[Path, typer.Option("--out", help="Where the bundle shall be written.")]
Add = Annotated[
    list[Path] | None,
    typer.Option("--add", help="Public half (.pub.json) of a new key; may be repeated."),
]
Threshold = Annotated[
    int, typer.Option(min=0, help="Signatures that devices demand; 0 leaves it as it is.")
]


@dataclass(frozen=True, slots=True)
class KeyMade:
    """A key and where it is."""

    keyid: str
    public: str
    uri: str


@dataclass(frozen=True, slots=True)
class RoleLine:
    """Who signs for a role."""

    role: str
    threshold: int
    keys: list[str]
    holder: list[str]


@dataclass(frozen=True, slots=True)
class KeysShown:
    """Who signs for every role, and what a bundle still needs."""

    root: int
    root_expires: datetime
    targets_expires: datetime
    roles: list[RoleLine]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class BundleMade:
    """A change that waits for signatures."""

    bundle: str
    says: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class KeysPublished:
    """A change that devices see."""

    root: int
    changed: list[str]


@dataclass(frozen=True, slots=True)
class AuditShown:
    """A trail that is whole; `head` is what to note down elsewhere."""

    signatures: int
    head: str
    by_key: dict[str, int]
    last: list[str]


@dataclass(frozen=True, slots=True)
class ModelSigned:
    """A model.sig; whoever has the slot and the public key can verify it."""

    signature: str
    public_key: str
    files: list[str]


@app.command("init", epilog="Example: wildflower keys init vault --name approved-3")
def init(
    keys: Annotated[Path, typer.Argument(help="Directory for the key; not the server's.")],
    *,
    name: Annotated[str, typer.Option(help="Its name there, such as approved-3.")],
    uri: Annotated[
        str, typer.Option(help="Of a key that exists in a PKCS #11 token: hsm:2?label=NAME.")
    ] = "",
    plain: Annotated[
        bool, typer.Option("--plain", help="Without a passphrase: for a server's online keys.")
    ] = False,
    ecdsa: Annotated[
        bool, typer.Option("--ecdsa", help="ECDSA on P-256 instead of Ed25519: for a model.sig.")
    ] = False,
    passphrase: Passphrase = "",
    pin: Pin = "",
) -> KeyMade:
    """Make a key, or describe one that a token holds. Its .pub.json may travel, nothing else."""
    if uri:
        entry = import_token(_directory(keys), name, uri, lambda _: pin)
    elif plain is bool(passphrase):
        raise SigningError(
            "a key needs a passphrase, or --plain",
            hint=f"Set {PASSPHRASE_VARIABLE}; --plain is for keys that a server uses alone.",
        )
    else:
        secret = passphrase.encode() or None
        entry = make_key(_directory(keys), name, passphrase=secret, ecdsa=ecdsa)
    return KeyMade(entry.public.keyid, str(keys / f"{name}.pub.json"), entry.uri)


@app.command("show", epilog="Example: wildflower keys show --dir server")
def show(
    *,
    directory: Server = Path("wildflower-server"),
    bundle: Annotated[
        Path | None, typer.Option(help="Show what a bundle would make of it instead.")
    ] = None,
    keys: Annotated[
        list[Path] | None, typer.Option(help="Directories whose keys are named; may be repeated.")
    ] = None,
) -> KeysShown:
    """Show who signs for every role, until when, and what is still to be signed."""
    if bundle is None:
        authority, missing = _ceremony(directory).authority(), []
    else:
        found = read_bundle(bundle)
        authority, missing = found.after, bundle_missing(found)
    return KeysShown(
        root=_version(authority),
        root_expires=expiry(authority.root),
        targets_expires=expiry(authority.targets),
        roles=_lines(authority, keys or []),
        missing=missing,
    )


@app.command(
    "rotate",
    epilog="Example: wildflower keys rotate root --add root-2.pub.json --remove 3f9a --out c.json",
)
def rotate(
    role: Annotated[str, typer.Argument(help="root, targets, snapshot, models/approved …")],
    *,
    add: Add = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="Id of a key that signs no more, or its beginning; may be repeated."),
    ] = None,
    threshold: Threshold = 0,
    out: Out,
    directory: Server = Path("wildflower-server"),
) -> BundleMade:
    """Propose new keys or a new threshold for a role: a bundle that waits for its signatures."""
    ceremony = _ceremony(directory)
    authority = ceremony.authority()
    change = Change(
        role,
        tuple(read_entry(path).public for path in add or ()),
        tuple(_key_id(authority, beginning) for beginning in remove or ()),
        threshold or None,
    )
    return made_bundle(ceremony.propose(change), out)


@app.command(
    "revoke", epilog="Example: wildflower keys revoke 3f9a0c --add approved-3.pub.json --out c.json"
)
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, or its beginning.")],
    *,
    add: Add = None,
    threshold: Threshold = 0,
    out: Out,
    directory: Server = Path("wildflower-server"),
) -> BundleMade:
    """Propose that a key signs no more. What it alone vouched for is to be signed anew."""
    ceremony = _ceremony(directory)
    authority = ceremony.authority()
    keyid = _key_id(authority, key)
    [role] = authority.holders(keyid)
    added = tuple(read_entry(path).public for path in add or ())
    change = Change(role, added, (keyid,), threshold or None)
    return made_bundle(ceremony.propose(change), out)


@app.command(
    "delegate-software",
    epilog="Example: wildflower keys delegate-software --add software-1.pub.json --out c.json",
)
def delegate_software(
    *,
    add: Add = None,
    threshold: Annotated[
        int, typer.Option(min=0, help="Signatures that devices demand; 0 for one of each key.")
    ] = 0,
    out: Out,
    directory: Server = Path("wildflower-server"),
) -> BundleMade:
    """Propose who signs software other than models; a repository begins without such a role."""
    keys = [read_entry(path).public for path in add or ()]
    ceremony = _ceremony(directory)
    demanded = threshold or len(keys)
    return made_bundle(propose_role(ceremony.authority(), keys, demanded, ceremony.now()), out)


@app.command("publish", epilog="Example: wildflower keys publish change.json --dir server")
def publish(
    bundle: Annotated[Path, typer.Argument(help="A bundle that has its signatures.")],
    *,
    directory: Server = Path("wildflower-server"),
) -> KeysPublished:
    """Publish a signed change; the server may be running. Repeating it changes nothing."""
    done = _ceremony(directory).publish(read_bundle(bundle))
    return KeysPublished(_version(done.after), list(done.proposals))


@app.command("audit", epilog="Example: wildflower keys audit vault --head 5be1")
def audit_(
    place: Annotated[Path, typer.Argument(help="A trail, or the directory of the keys.")],
    *,
    head: Annotated[
        str, typer.Option(help="A head noted down earlier (64 digits): it must still be there.")
    ] = "",
    last: Annotated[int, typer.Option(min=0, help="How many signatures are listed.")] = 10,
) -> AuditShown:
    """Follow the trail of every signature that keys in a directory have made."""
    path = place / audit.FILE if place.is_dir() else place
    data = _read(path, MAX_TRAIL)
    records = audit.follow(data, seen=head)
    counts: dict[str, int] = {}
    for record in records:
        counts[record.key] = counts.get(record.key, 0) + 1
    return AuditShown(
        signatures=len(records),
        head=audit.head(data),
        by_key=counts,
        last=[
            f"{one.number} {one.at:%Y-%m-%d %H:%M:%S} {one.key[:12]} {one.what} {one.payload[:12]}"
            for one in records[len(records) - min(last, len(records)) :]
        ],
    )


@app.command(
    "model-sig", epilog="Example: wildflower keys model-sig manifest.json vault/oms.pub.json"
)
def model_sig(
    manifest: Annotated[Path, typer.Argument(help="The release's manifest.")],
    key: Annotated[Path, typer.Argument(help="Description (.pub.json) of an ECDSA key.")],
    *,
    out: Annotated[Path, typer.Option(help="Where it shall be written.")] = Path("model.sig"),
    passphrase: Passphrase = "",
    pin: Pin = "",
) -> ModelSigned:
    """Sign a release's files for OpenSSF model-signing: a model.sig and the key to verify with."""
    from wildflower.ota.release.model_sig import model_signature, public_pem

    release = Release.from_bytes(_read(manifest, MAX_DOCUMENT))
    secrets = {"passphrase": passphrase, "pin": pin}
    entry, place = read_entry(key), key.parent
    signer = open_key(entry, place, lambda name: secrets.get(name, ""))
    trail = audit.Trail(place / audit.FILE)
    audited = audit.AuditedSigner(signer, trail, lambda: datetime.now(UTC))
    public = out.with_name(f"{out.name}.pub.pem")
    write_durably(public, public_pem(entry.public))
    write_durably(out, model_signature(release, audited))
    return ModelSigned(str(out), str(public), [file.name for file in release.files])


def read_bundle(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        FormatError: The file is none.
        SigningError: It cannot be read.
    """
    return Bundle.from_bytes(_read(path, MAX_BUNDLE))


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write a bundle.

    Raises:
        SigningError: The file cannot be written.
    """
    try:
        write_durably(path, bundle.to_bytes())
    except OSError as error:
        raise SigningError(f"{path} cannot be written: {error.strerror}") from error


def made_bundle(bundle: Bundle, out: Path) -> BundleMade:
    """Write a bundle that waits for signatures, and say what it would change.

    Raises:
        SigningError: The file cannot be written.
    """
    write_bundle(out, bundle)
    return BundleMade(str(out), list(bundle.says()), bundle_missing(bundle))


def bundle_missing(bundle: Bundle) -> list[str]:
    """Return what is still to be signed, a line for each role and judge."""
    return [
        f"{one.role}: {one.missing} of {', '.join(key[:12] for key in one.unsigned)}"
        for one in bundle.missing()
    ]


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise SigningError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise FormatError(f"{path}: more than {limit} bytes")
    return data


def _ceremony(directory: Path) -> Ceremony:
    return Ceremony(directory, lambda: datetime.now(UTC))


def _directory(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _version(authority: Authority) -> int:
    return int(read_root(authority.root).signed.version)


def _key_id(authority: Authority, beginning: str) -> str:
    """Return the one key id that begins so."""
    known = sorted({key for role in authority.roles() for key in role.keys})
    found = [key for key in known if beginning and key.startswith(beginning)]
    if len(found) != 1:
        raise SigningError(
            f"{len(found)} keys begin with {beginning!r}",
            hint="`wildflower keys show` lists them.",
        )
    return found[0]


def _lines(authority: Authority, places: list[Path]) -> list[RoleLine]:
    named = {
        read_entry(path).public.keyid: path.name.removesuffix(".pub.json")
        for place in places
        for path in sorted(place.glob("*.pub.json"))
    }
    return [
        RoleLine(role.name, role.threshold, list(role.keys), [named.get(k, "") for k in role.keys])
        for role in authority.roles()
    ]
