"""The role that signs software other than models: it exists only where an operator delegated it.

    bundle = propose_role(authority, keys, 2, now)                  # once: who signs software
    bundle = propose_software(authority, metadata, software, now)   # for each new version

A repository begins without it, so that no key, stolen or lent, can send a device anything but
models. Delegating is a change of the top-level targets, which the keys of `targets` sign offline.
The role signs `software/*` and nothing else; devices of an owner whose policy names no line of
software do not ask for it. Both are bundles: nothing here signs.

From then on its keys change as those of any role do (`ota.release.bundle.propose`).
"""

from collections.abc import Sequence
from datetime import datetime

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Metadata, Targets

from wildflower.ota.errors import SigningError
from wildflower.ota.release.bundle import Bundle
from wildflower.ota.release.ceremony import Authority, next_unsigned
from wildflower.ota.release.keys import SOFTWARE
from wildflower.ota.release.repository import Lifetimes
from wildflower.ota.release.signing import PATHS, put_target, read_targets
from wildflower.ota.release.software import Software, software_path


def propose_role(
    authority: Authority,
    keys: Sequence[Key],
    threshold: int,
    now: datetime,
    lifetimes: Lifetimes | None = None,
) -> Bundle:
    """Return the bundle in which the role `software` waits for its signatures.

    The keys of `targets` sign that it is there, its own keys that it has no target yet.

    Args:
        authority: Root and targets in force.
        keys: Who signs software.
        threshold: How many of them must.
        now: From when the new metadata is good.
        lifetimes: For how long it is.

    Raises:
        FormatError: The authority cannot be read.
        SigningError: The role is there already, a key serves another role, or there are fewer keys
            than the threshold.
    """
    if any(role.name == SOFTWARE for role in authority.roles()):
        raise SigningError(
            "the role software is there already", hint="wildflower keys rotate software"
        )
    different = {key.keyid: key for key in keys}
    for keyid in different:
        if holders := authority.holders(keyid):
            raise SigningError(
                f"key {keyid[:12]} signs for {', '.join(holders)} already",
                hint="No key serves two roles; make another.",
            )
    if not 1 <= threshold <= len(different):
        raise SigningError(
            f"software would have {len(different)} keys and a threshold of {threshold}",
            hint="Add a key, or lower the threshold.",
        )
    good, metadata = lifetimes or Lifetimes(), read_targets(authority.targets)
    delegations = metadata.signed.delegations
    if delegations is None or delegations.roles is None:
        raise SigningError("these targets delegate nothing: expected the top-level ones")
    delegations.roles[SOFTWARE] = DelegatedRole(
        SOFTWARE, [], threshold, terminating=True, paths=[PATHS[SOFTWARE]]
    )
    for key in different.values():
        metadata.signed.add_key(key, SOFTWARE)
    first = Metadata(Targets(version=1, expires=(now + good.models).replace(microsecond=0)))
    targets = next_unsigned(metadata, now + good.targets)
    return Bundle(authority, {"targets": targets, SOFTWARE: first.to_bytes()})


def propose_software(
    authority: Authority,
    metadata: bytes,
    software: Software,
    now: datetime,
    lifetimes: Lifetimes | None = None,
) -> Bundle:
    """Return the bundle in which the newest document of a line waits for its signatures.

    Args:
        authority: Root and targets in force.
        metadata: The role's metadata in force.
        software: The document.
        now: From when the new metadata is good.
        lifetimes: For how long it is.

    Raises:
        FormatError: The metadata cannot be parsed, or the document is out of range.
    """
    software.check()
    path, data = software_path(software.name), software.to_bytes()
    expires = now + (lifetimes or Lifetimes()).models
    edited = put_target(metadata, path, data, [], expires=expires)
    return Bundle(authority, {SOFTWARE: edited}, {path: data}, {SOFTWARE: metadata})
